"""Given weights and frozen parts in Flax Linen; the same network in NNX gives the same numbers."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxpt
from jaxpt.core.tree import name as named
from jaxpt.core.types import with_frozen
from jaxpt.devices.memory import bytes_of


class Net(linen.Module):
    rank: int = 0

    @linen.compact
    def __call__(self, x, train=False):
        x = linen.BatchNorm(use_running_average=not train, name="norm")(linen.Dense(8, name="hidden")(x))
        if self.rank:
            down = self.param("lora_a", linen.initializers.normal(0.1), (8, self.rank))
            x = x + x @ down @ self.param("lora_b", linen.initializers.zeros, (self.rank, 8))
        return linen.Dense(2, name="out")(linen.tanh(x))


def loss(model, batch):
    return jaxpt.cross_entropy(model(batch["x"]), batch["y"])


X = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
DATA = {"x": X, "y": (X[:, 0] * X[:, 1] > 0).astype(np.int32)}
BASE = Net().init(jax.random.key(7), X)
PREDICT = {"predict": lambda model, batch: model(batch["x"])}


def is_lora(path, array):
    return path[-1].startswith("lora")


def tuned(base=BASE, wrt=is_lora):
    return jaxpt.linen_problem(Net(rank=2), loss, example=X[:1], wrt=wrt, start=base, **PREDICT)


def engine(problem, replicas=3, **options):
    ladder = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.01, 0.1, replicas))
    options = {"every": 4, "batch_size": 16} | options
    return jaxpt.Engine(problem, lambda h: optax.adam(h["learning_rate"]), ladder, **options)


@pytest.fixture(scope="module")
def result():
    return jaxpt.fit(engine(tuned()), DATA, DATA, steps=8, keep_best=True)


@pytest.mark.slow
def test_only_the_selected_weights_are_held_by_each_replica(result):
    replicas = result.state.replicas
    assert {named(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(replicas.params)} == {
        "lora_a": (3, 8, 2),
        "lora_b": (3, 2, 8),
    }
    assert bytes_of(tuned().frozen) == bytes_of(BASE["params"])
    best = result.best().model
    for path, leaf in flax.traverse_util.flatten_dict(BASE["params"]).items():
        assert (flax.traverse_util.flatten_dict(best.params)[path] == leaf).all()


def test_saved_models_and_ensembles_are_whole(result, tmp_path):
    result.save_model(tmp_path / "tuned")
    variables = jaxpt.load_model(tmp_path / "tuned")
    np.testing.assert_allclose(Net(rank=2).apply(variables, X), result.best().model(X), rtol=1e-5, atol=1e-6)
    result.save_model(tmp_path / "ever", ever=True)
    assert set(jaxpt.load_model(tmp_path / "ever")["params"]) == {"hidden", "norm", "out", "lora_a", "lora_b"}
    both = result.ensemble(best=2)
    both.save(tmp_path / "both")
    other = tuned(Net().init(jax.random.key(8), X))
    assert (jaxpt.load_ensemble(tmp_path / "both", other)(DATA) == both(DATA)).all()


def test_names_of_modules_select_weights():
    problem = jaxpt.linen_problem(Net(), loss, example=X[:1], wrt=["out", "norm/scale"], start=BASE)
    params, rest = problem.init(jax.random.key(0))
    assert set(flax.traverse_util.flatten_dict(params)) == {("out", "kernel"), ("out", "bias"), ("norm", "scale")}
    assert (params["out"]["kernel"] == BASE["params"]["out"]["kernel"]).all()
    assert jax.tree.structure(rest) == jax.tree.structure({"batch_stats": BASE["batch_stats"]})


@pytest.mark.slow
def test_every_replica_starts_from_a_model_file(tmp_path):
    begun = jaxpt.fit(engine(jaxpt.linen_problem(Net(), loss, example=X[:1])), DATA, DATA, steps=4)
    begun.save_model(tmp_path / "base")
    start = jaxpt.load_model(tmp_path / "base")
    problem = jaxpt.linen_problem(Net(), loss, example=X[:1], start=start)
    state = engine(problem).init(jax.random.key(0))
    for found, given in ((state.replicas.params, start["params"]), (state.replicas.model_state, start)):
        for path, leaf in flax.traverse_util.flatten_dict(found).items():
            assert (leaf == flax.traverse_util.flatten_dict(given)[path]).all()


def test_another_base_and_another_type(result):
    half = engine(jaxpt.with_compute_dtype(tuned()))
    zero = jax.tree.map(jnp.zeros_like, half.problem.frozen)
    blank = dataclasses.replace(half, problem=with_frozen(half.problem, lambda _: zero))
    assert jax.tree.structure(blank) == jax.tree.structure(half)
    state = half.init(jax.random.key(0))
    np.testing.assert_allclose(blank.evaluate(state, DATA)["energy"], np.log(2), rtol=1e-2)
    energy = half.evaluate(state, DATA)["energy"]
    np.testing.assert_allclose(energy, result.engine.evaluate(state, DATA)["energy"], rtol=0.02)


@pytest.mark.slow
def test_it_is_the_problem_of_nnx():
    """The head of the same network, trained on the same base, in both libraries."""

    class Same(nnx.Module):
        def __init__(self, *, rngs):
            self.hidden, self.out = nnx.Linear(2, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.tanh(self.norm(self.hidden(x))))

    start = BASE["params"]
    in_nnx = jaxpt.nnx_problem(Same, loss, wrt=lambda path, variable: path[0] == "out", start=start)
    in_linen = jaxpt.linen_problem(Net(), loss, example=X[:1], wrt="out", start={"params": start})
    traces = [
        jaxpt.fit(engine(problem, rule=jaxpt.Independent()), DATA, DATA, steps=8).trace
        for problem in (in_nnx, in_linen)
    ]
    np.testing.assert_allclose(traces[0].valid["energy"], traces[1].valid["energy"], rtol=1e-3)


MISTAKES = {
    "weights without their collection": (
        lambda: tuned(BASE["params"]),
        r"hidden.bias \(the nearest name in the model: params.hidden.bias\)",
    ),
    "a frozen weight that is not given": (
        lambda: tuned({"params": {"hidden": BASE["params"]["hidden"]}}),
        "wrt does not train params.norm.bias, params.norm.scale, params.out.bias, params.out.kernel",
    ),
    "an unknown name": (lambda: tuned(wrt=["head"]), "wrt='head' selects no weights; the model has hidden.bias"),
    "no names": (lambda: tuned(wrt=3), "wrt must be names of modules"),
    "a path": (lambda: tuned("runs/best"), "start must be weights by name"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    act, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        act()
