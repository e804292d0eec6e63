"""Given weights: replicas that start from them, parts that stay frozen, held once."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxpt
from jaxpt.core.tree import name as named
from jaxpt.devices.memory import bytes_of
from tests.conftest import QUICK

WIDTH = 16


class Net(nnx.Module):
    def __init__(self, width=WIDTH, *, rngs):
        self.hidden, self.out = nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = jaxpt.Dropout(rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.tanh(self.norm(self.hidden(x)))))


class Lora(Net):
    def __init__(self, width=WIDTH, *, rngs):
        super().__init__(width, rngs=rngs)
        self.hidden = nnx.LoRALinear(2, width, lora_rank=2, rngs=rngs)


def loss(model, batch):
    return jaxpt.cross_entropy(model(batch["x"]), batch["y"])


X = np.random.default_rng(0).normal(size=(96, 2)).astype(np.float32)
DATA = {"x": X, "y": (X[:, 0] * X[:, 1] > 0).astype(np.int32)}
BASE = Net(rngs=nnx.Rngs(7))
OPTIONS = {"predict": lambda model, batch: model(batch["x"])}


def lora(base=BASE, **options):
    return jaxpt.nnx_problem(Lora, loss, wrt=nnx.LoRAParam, start=base, **OPTIONS, **options)


def engine(problem, replicas=3, **options):
    ladder = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.01, 0.1, replicas))
    options = {"every": 4, "batch_size": 16, "fixed": {"dropout_rate": 0.1}} | options
    return jaxpt.Engine(problem, lambda h: optax.adam(h["learning_rate"]), ladder, **options)


def leaves(tree):
    return {named(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def same(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    assert all((a[name] == b[name]).all() for name in a)


@pytest.fixture(scope="module")
def tuned():
    """A run of adapters, 8 steps, that several tests look at."""
    return jaxpt.fit(engine(lora()), DATA, DATA, steps=8, keep_best=True)


@pytest.mark.parametrize("form", ["module", "state", "dict"])
def test_every_replica_starts_from_the_given_weights(form):
    forms = {"module": BASE, "state": nnx.state(BASE), "dict": nnx.to_pure_dict(nnx.state(BASE, nnx.Param))}
    problem = jaxpt.nnx_problem(Net, loss, start=forms[form])
    state = engine(problem).init(jax.random.key(0))
    for path, given in leaves(nnx.state(BASE, nnx.Param)).items():
        begun = leaves(state.replicas.params)[path]
        assert begun.shape == (3, *given.shape)
        assert (begun == given).all()


def test_what_is_not_given_is_drawn_by_each_replica():
    start = nnx.to_pure_dict(nnx.state(BASE, nnx.Param))
    del start["out"]
    params = engine(jaxpt.nnx_problem(Net, loss, start=start)).init(jax.random.key(0)).replicas.params
    free = engine(jaxpt.nnx_problem(Net, loss)).init(jax.random.key(0)).replicas.params
    assert (params["hidden"]["kernel"][...] == BASE.hidden.kernel[...]).all()
    same(params["out"], free["out"])
    assert len(np.unique(params["out"]["kernel"][...][:, 0, 0])) == 3


@pytest.mark.slow
def test_a_model_file_is_a_start(tmp_path):
    first = jaxpt.fit(engine(jaxpt.nnx_problem(Net, loss, start=BASE)), DATA, DATA, steps=4)
    first.save_model(tmp_path / "base")
    best = first.best().model
    problem = jaxpt.nnx_problem(Net, loss, start=jaxpt.load_model(tmp_path / "base"))
    replicas = engine(problem).init(jax.random.key(0)).replicas
    same(jax.tree.map(lambda leaf: leaf[1], replicas.params), nnx.state(best, nnx.Param))
    same(jax.tree.map(lambda leaf: leaf[1], replicas.model_state), nnx.state(best, nnx.BatchStat))


@pytest.mark.slow
def test_only_the_selected_weights_are_trained():
    problem = jaxpt.nnx_problem(Net, loss, wrt=lambda path, variable: path[0] == "out", start=BASE)
    result = jaxpt.fit(engine(problem), DATA, DATA, steps=20)
    assert {path.split("/")[0] for path in leaves(result.state.replicas.params)} == {"out"}
    model = result.best().model
    same(nnx.state(model.hidden), nnx.state(BASE.hidden))
    assert (model.out.kernel[...] != BASE.out.kernel[...]).all()


@pytest.mark.slow
def test_frozen_weights_give_the_numbers_of_a_zero_rate():
    """Freezing a part gives the weights that a rate of zero for that part gives."""
    some = lambda path, variable: path[0] == "out"
    only = jaxpt.nnx_problem(Net, loss, wrt=some, start=BASE)
    whole = jaxpt.nnx_problem(Net, loss, start=BASE)

    def masked(h):
        labels = lambda params: jax.tree.map_with_path(lambda path, _: path[0].key, params)
        parts = dict.fromkeys(("hidden", "norm"), optax.set_to_zero())
        return optax.partition({"out": optax.adam(h["learning_rate"]), **parts}, labels)

    frozen = jaxpt.fit(engine(only), DATA, DATA, steps=12)
    zeroed = jaxpt.fit(dataclasses.replace(engine(whole), optimizer=masked), DATA, DATA, steps=12)
    np.testing.assert_allclose(frozen.trace.valid["energy"], zeroed.trace.valid["energy"], rtol=1e-5)
    out = [leaves(found.state.replicas.params["out"]) for found in (frozen, zeroed)]
    for path in out[0]:
        np.testing.assert_allclose(out[0][path], out[1][path], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_64_adapters_cost_one_base():
    """The state holds adapters alone, and the program takes the base once, as an argument."""
    width, count = 128, 64
    make = lambda rngs: Lora(width, rngs=rngs)
    problem = jaxpt.nnx_problem(make, loss, wrt=nnx.LoRAParam, start=Net(width, rngs=nnx.Rngs(0)))
    run = engine(problem, count)
    state = run.abstract(jax.random.key(0))
    base = bytes_of(problem.frozen)
    adapters = 4 * 2 * (2 + width)
    statistics = 4 * 2 * width
    assert base == 4 * (2 * width + width + 2 * width + width * 2 + 2)
    # Weights and the two moments of Adam; batch statistics; keys, rungs and hyperparameters.
    assert bytes_of(state) <= count * (3 * adapters + statistics + 64) + 4096
    data = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), DATA)
    program = run.lower(state, jaxpt.Data(data, data), periods=1).compile()
    needs = program.memory_analysis().argument_size_in_bytes
    shared = bytes_of((data, data)) + base
    assert bytes_of(state) + base <= needs <= bytes_of(state) + shared + 4096
    assert not [line for line in program.as_text().splitlines() if "constant(" in line and f"f32[2,{width}]" in line]


@pytest.mark.slow
def test_another_base_compiles_nothing():
    traced = []

    def optimizer(h):
        traced.append(1)
        return optax.sgd(h["learning_rate"])

    first = dataclasses.replace(engine(lora()), optimizer=optimizer)
    zero = jax.tree.map(jnp.zeros_like, first.problem.frozen)
    other = dataclasses.replace(first, problem=jaxpt.core.types.with_frozen(first.problem, lambda _: zero))
    state, data = first.init(jax.random.key(0)), jaxpt.Data(DATA, DATA)
    _, trace = first.run(state, data, periods=2)
    first.evaluate(state, DATA)
    compiled = len(traced)
    assert jax.tree.structure(first) == jax.tree.structure(other)
    _, changed = other.run(state, data, periods=2)
    assert len(traced) == compiled, "nothing is traced anew"
    assert (trace.valid["energy"] != changed.valid["energy"]).all()
    np.testing.assert_allclose(changed.valid["energy"], np.log(2), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("replica_axis", ["unroll", "map"])
def test_execution_does_not_matter(replica_axis, tuned):
    found = jaxpt.fit(engine(lora(), replica_axis=replica_axis), DATA, DATA, steps=8)
    np.testing.assert_allclose(found.trace.valid["energy"], tuned.trace.valid["energy"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [jaxpt.PBT(), jaxpt.CopyBest()], ids=["PBT", "CopyBest"])
def test_copies_take_adapters_alone(rule):
    result = jaxpt.fit(engine(lora(), rule=rule), DATA, DATA, steps=12)
    assert np.isfinite(result.trace.valid["energy"]).all()
    assert result.trace.info.parents is not None
    same(nnx.state(result.best().model.out, nnx.Param), nnx.state(BASE.out))


@pytest.mark.slow
def test_seeds_have_the_same_base(tuned):
    result = jaxpt.fit(engine(lora()), DATA, DATA, steps=8, seeds=[0, 1])
    np.testing.assert_allclose(result.trace.valid["energy"][:, 0], tuned.trace.valid["energy"], rtol=1e-4)


def test_saved_models_are_whole(tmp_path, tuned):
    for ever in (False, True):
        tuned.save_model(tmp_path / "tuned", ever=ever)
        fresh = Lora(rngs=nnx.Rngs(1))
        fresh.eval()
        nnx.update(fresh, jaxpt.load_model(tmp_path / "tuned"))
        expected = tuned.best(ever=ever).model(X)
        assert (fresh(X) == expected).all()


def test_a_saved_ensemble_has_the_base(tmp_path, tuned):
    both = tuned.ensemble(best=2)
    both.save(tmp_path / "both")
    other = lora(Net(rngs=nnx.Rngs(8)))  # the file's base counts, not this one
    again = jaxpt.load_ensemble(tmp_path / "both", other)
    assert (again(DATA) == both(DATA)).all()
    error = {"error": lambda p, batch: jaxpt.zero_one_loss(p, batch["y"])}
    together = jaxpt.ensemble(tuned.engine, tuned.state, DATA, error)["error"]
    np.testing.assert_allclose(together, tuned.ensemble().evaluate(DATA, error)["error"], rtol=1e-6)
    assert both.evaluate(DATA, error) == again.evaluate(DATA, error)
    np.testing.assert_allclose(jaxpt.ensemble_weights(tuned.engine, tuned.state, DATA).sum(), 1, rtol=1e-5)


@pytest.mark.slow
def test_a_run_resumes_with_the_same_base_only(tmp_path):
    whole = jaxpt.fit(engine(lora()), DATA, DATA, steps=16)
    jaxpt.fit(engine(lora()), DATA, DATA, steps=8, directory=tmp_path / "run")
    other = engine(lora(Net(rngs=nnx.Rngs(8))))
    with pytest.raises(ValueError, match="given / frozen/hidden/kernel"):
        jaxpt.fit(other, DATA, DATA, steps=16, directory=tmp_path / "run")
    with pytest.raises(ValueError, match="given / frozen/hidden/kernel"):
        jaxpt.load_run(other, tmp_path / "run")
    resumed = jaxpt.fit(engine(lora()), DATA, DATA, steps=16, directory=tmp_path / "run")
    same(resumed.state.replicas.params, whole.state.replicas.params)
    loaded = jaxpt.load_run(engine(lora()), tmp_path / "run")
    assert (loaded.best().model(X) == whole.best().model(X)).all()


@pytest.mark.slow
def test_changes_of_a_problem_read_the_shared_weights(tuned):
    """In bfloat16 and with noise; a function that was replaced otherwise is refused."""
    half = jaxpt.with_compute_dtype(lora())
    result = jaxpt.fit(engine(half), DATA, DATA, steps=8)
    np.testing.assert_allclose(result.trace.valid["energy"], tuned.trace.valid["energy"], rtol=0.05)
    assert (result.trace.valid["energy"] != tuned.trace.valid["energy"]).any()
    noisy = engine(jaxpt.with_weight_noise(half), fixed={"dropout_rate": 0.0, "weight_noise": 0.01})
    program = noisy.lower(noisy.init(jax.random.key(0)), jaxpt.Data(DATA, DATA), periods=1).as_text()
    assert "bf16" in program
    zero = jax.tree.map(jnp.zeros_like, noisy.problem.frozen)
    blank = dataclasses.replace(noisy, problem=jaxpt.core.types.with_frozen(noisy.problem, lambda _: zero))
    energy = blank.evaluate(blank.init(jax.random.key(0)), DATA)["energy"]
    np.testing.assert_allclose(energy, np.log(2), rtol=1e-2)
    with pytest.raises(ValueError, match=r"loss of a problem with given weights was replaced.*problem.changed"):
        engine(half._replace(loss=lambda *args: lora().loss(*args)))


@pytest.mark.slow
def test_a_frozen_base_may_be_in_bfloat16():
    base = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.state(BASE, nnx.Param))
    problem = lora(base)
    assert {leaf.dtype for leaf in jax.tree.leaves(problem.frozen)} == {jnp.dtype(jnp.bfloat16)}
    result = jaxpt.fit(engine(problem), DATA, DATA, steps=8)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.state.replicas.params)} == {jnp.dtype(jnp.float32)}
    assert np.isfinite(result.trace.valid["energy"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["shard_map", "pmap"])
def test_each_of_two_devices_has_the_base(way):
    command = [sys.executable, "-m", "tests.finetuning_on_devices", way]
    root = Path(__file__).parent.parent
    environment = os.environ | QUICK | {"JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=root, env=environment)
    assert done.stdout.strip() == "the same", done.stderr


@pytest.mark.slow
def test_it_compiles_for_other_devices():
    plan = jaxpt.compile_for(engine(lora()), jaxpt.Data(DATA, DATA), device="cpu", periods=1)
    assert plan.data >= bytes_of((DATA, DATA)) + bytes_of(lora().frozen)


def renamed():
    start = nnx.to_pure_dict(nnx.state(BASE, nnx.Param))
    start["hiden"] = start.pop("hidden")
    return start


def without_out():
    start = nnx.to_pure_dict(nnx.state(BASE, nnx.Param))
    del start["out"]
    return start


MISTAKES = {
    "a name that the model does not have": (
        lambda: jaxpt.nnx_problem(Net, loss, start=renamed()),
        r"does not have: hiden.bias \(the nearest name in the model: hidden.bias\)",
    ),
    "another shape": (
        lambda: jaxpt.nnx_problem(lambda rngs: Net(8, rngs=rngs), loss, start=BASE),
        r"hidden.kernel: \(2, 16\) given, \(2, 8\) in the model",
    ),
    "a frozen weight that is not given": (
        lambda: lora(without_out()),
        "wrt does not train out.bias, out.kernel, and start does not give it",
    ),
    "no start": (lambda: lora(None), "start=nnx.state"),
    "a filter that selects nothing": (
        lambda: jaxpt.nnx_problem(Net, loss, wrt=nnx.LoRAParam, start=BASE),
        "selects no weights; the model has hidden.bias",
    ),
    "no filter": (lambda: jaxpt.nnx_problem(Net, loss, wrt=3), "must be a filter of Flax NNX"),
    "a path": (
        lambda: jaxpt.nnx_problem(Net, loss, start="best"),
        "the path 'best'; load it first, by jaxpt.load_model",
    ),
    "arrays without names": (
        lambda: jaxpt.nnx_problem(Net, loss, start=jax.tree.leaves(nnx.state(BASE))),
        "but it is a list$",
    ),
    "NaN": (
        lambda: jaxpt.nnx_problem(Net, loss, start={"hidden": {"bias": np.full(16, np.nan, np.float32)}}),
        "start holds NaN in hidden.bias",
    ),
    "names for a filter": (
        lambda: jaxpt.nnx_problem(Net, loss, start=BASE, wrt=["out"]),
        r"a function selects by name: wrt=lambda path, variable: path\[0\] == 'out'",
    ),
    "no array": (lambda: jaxpt.nnx_problem(Net, loss, start={"hidden": 3}), "holds 3 as hidden, which is no array"),
    "a model for make": (lambda: jaxpt.nnx_problem(BASE, loss), "give start=model"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    act, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        act()
