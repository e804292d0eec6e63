import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.core import tree
from tests import conftest
from tests.conftest import make_engine

PROBLEMS = {"nnx": conftest.nnx_problem, "linen": conftest.linen_problem}
ROOM = 8
"""Rows of a trace: the same ones are the same program, which takes seconds to compile."""


def assert_same(a, b):
    """Equal to the bit, keys included."""
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)


def slope(rungs=None, optimizer=None, **settings):
    """Energy w without data: its gradient is 1, so weights add up the steps taken. Replica k starts at k."""
    problem = jaxpt.energy_problem(lambda w: w, lambda key: jnp.zeros(()))
    rungs = rungs or jaxpt.Ladder(learning_rate=[0.25, 0.5])
    engine = jaxpt.Engine(
        problem, optimizer or (lambda h: optax.sgd(h["learning_rate"])), rungs, **{"every": 4, **settings}
    )
    state = engine.init(jax.random.key(0))
    start = jnp.arange(engine.num_replicas, dtype=jnp.float32)
    return engine, state._replace(replicas=state.replicas._replace(params=start))


@pytest.mark.parametrize("name", ["nnx", pytest.param("linen", marks=pytest.mark.slow)])
@pytest.mark.parametrize("k", [0, 3])
def test_a_replica_in_the_stack_equals_one_trained_alone(name, k, data):
    """BatchNorm, dropout and momentum included; 2e-5 after 15 steps in float32, the sums being ordered otherwise."""
    ladder = conftest.ladder()
    stacked = make_engine(PROBLEMS[name](), ladder, rule=jaxpt.Independent())
    one_rung = jaxpt.Ladder(
        beta="learning_rate", **{n: v[k : k + 1] for n, v in ladder.values.items()}, name=ladder.name
    )
    alone = dataclasses.replace(stacked, ladder=one_rung)
    state = stacked.init(jax.random.key(7))
    own = alone.init(jax.random.key(7))
    own = own._replace(
        replicas=tree.take(state.replicas, jnp.array([k]))._replace(rung={ladder.name: jnp.zeros(1, jnp.int32)})
    )
    state, trace = stacked.run(state, data, periods=3)
    own, own_trace = alone.run(own, data, periods=3)
    close = lambda a, b: np.testing.assert_allclose(
        a[..., k, :] if a.ndim > 2 else a[:, k], b[..., 0, :] if b.ndim > 2 else b[:, 0], rtol=2e-5, atol=2e-5
    )
    close(trace.valid["energy"], own_trace.valid["energy"])
    close(trace.loss, own_trace.loss)
    for part in ("params", "model_state", "opt_state"):
        mine, others = getattr(own.replicas, part), getattr(state.replicas, part)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b[k], rtol=2e-5, atol=2e-5), mine, others)


@pytest.mark.slow
@pytest.mark.users_compiler
def test_swaps_permute_hyperparameters_and_leave_weights_and_momentum(data):
    """The exchange comes last in a period, so after one period only rungs and hyperparameters can differ."""
    engine = make_engine(rule=jaxpt.Tempering(1e-9))
    with_swap, trace = engine.run(engine.init(jax.random.key(0)), data, periods=1, max_periods=ROOM)
    alone = dataclasses.replace(engine, rule=jaxpt.Independent())
    without, _ = alone.run(alone.init(jax.random.key(0)), data, periods=1, max_periods=3)
    assert trace.info.accepted.sum() == 1
    for part in ("params", "model_state", "opt_state", "key"):
        assert_same(getattr(with_swap.replicas, part), getattr(without.replicas, part))
    name, ladder = next(iter(engine.ladders.items()))
    rung = np.asarray(with_swap.replicas.rung[name])
    assert sorted(rung) == [0, 1, 2, 3]
    assert (rung != np.arange(4)).sum() == 2
    for key, values in ladder.values.items():
        np.testing.assert_array_equal(with_swap.replicas.hyper[key], values[rung])


@pytest.mark.users_compiler
def test_the_same_seed_gives_the_same_bits_and_a_cut_changes_nothing(data):
    engine = make_engine(rule=jaxpt.Tempering(5.0))
    run = lambda state, periods: engine.run(state, data, periods=periods, max_periods=ROOM)
    whole, trace = run(engine.init(jax.random.key(3)), 4)
    again, _ = run(engine.init(jax.random.key(3)), 4)
    assert_same(whole, again)
    part, first = run(engine.init(jax.random.key(3)), 2)
    cut, second = run(part, 2)
    assert_same(whole, cut)
    assert_same(tree.take(trace, slice(4)), jax.tree.map(lambda a, b: jnp.concatenate([a[:2], b[:2]]), first, second))
    other, _ = run(engine.init(jax.random.key(4)), 4)
    assert not np.allclose(*(jax.tree.leaves(s.replicas.params)[0] for s in (whole, other)))


def regression():
    """Least squares for six weights."""
    return jaxpt.energy_problem(
        lambda w, batch: (batch["x"] @ w - batch["y"]) ** 2,
        lambda key: jax.random.normal(key, (conftest.FEATURES,)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("problem", [conftest.nnx_problem, regression])
def test_seeds_in_one_run_equal_runs_of_their_own(problem, data):
    """Rungs equal; energies to 2e-5 (float32, sums ordered otherwise). The second draws own minibatches and probes."""
    rungs, settings = jaxpt.Ladder(learning_rate=[0.002, 0.004, 0.008]), {"own_batches": True, "probe": 30}
    if problem is conftest.nnx_problem:
        rungs, settings = conftest.ladder(), {}
    engine = make_engine(problem(), rungs, rule=jaxpt.Tempering(3.0), **settings)
    keys = jax.vmap(jax.random.key)(jnp.array([3, 11]))
    together, trace = engine.run(engine.init(keys), data, periods=ROOM)
    assert trace.valid["energy"].shape == (ROOM, 2, engine.num_replicas)
    assert trace.info.accepted.any(), "there are swaps to compare"
    for i, key in enumerate(keys):
        alone, own = engine.run(engine.init(key), data, periods=ROOM)
        name = next(iter(engine.ladders))
        np.testing.assert_array_equal(trace.rung[name][:, i], own.rung[name])
        np.testing.assert_allclose(trace.valid["energy"][:, i], own.valid["energy"], rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(together.replicas.rung[name][i], alone.replicas.rung[name])


@pytest.mark.slow
def test_fit_equals_the_bare_engine(data):
    """To the bit; the program of two seeds is that of the test above."""
    engine = make_engine(rule=jaxpt.Tempering(3.0))
    fitted = jaxpt.fit(engine, data.train, data.valid, test=data.test, steps=40, seeds=[3, 11], progress=False)
    _, trace = engine.run(engine.init(jax.vmap(jax.random.key)(np.array([3, 11]))), data, periods=ROOM)
    jax.tree.map(np.testing.assert_array_equal, fitted.trace, trace)


@pytest.mark.slow
def test_new_numbers_trace_nothing_anew(data):
    """Other ladder values, C, burn-in, fixed values, key: one trace of the loss for training, none after it."""
    count = 0

    def loss(model, batch):
        nonlocal count
        count += 1
        return conftest.loss(model, batch)

    problem = jaxpt.nnx_problem(conftest.NnxNet, loss)
    ladder = jaxpt.Ladder(learning_rate=[0.1, 0.2])
    engine = make_engine(problem, ladder, rule=jaxpt.Tempering(1.0), fixed={"dropout_rate": 0.1})
    device = jax.device_put(data)
    state, _ = engine.run(engine.init(jax.random.key(0)), device, periods=2)
    traced = count
    assert traced > 0
    engine.run(state, device, periods=2)
    other = dataclasses.replace(
        engine,
        ladder=jaxpt.Ladder(learning_rate=[0.03, 0.3]),
        rule=jaxpt.Tempering(77.0),
        burn_in=5,
        fixed={"dropout_rate": 0.2},
    )
    _, trace = other.run(other.init(jax.random.key(1)), device, periods=2)
    assert count == traced
    np.testing.assert_allclose(trace.hyper["learning_rate"][0], [0.03, 0.3], rtol=1e-6)
    np.testing.assert_allclose(trace.hyper["dropout_rate"][0], 0.2, rtol=1e-6)
    assert trace.info.attempted[:, 0].tolist() == [False, True]


@pytest.mark.users_compiler
@pytest.mark.slow
def test_a_period_has_the_same_bits_in_any_dispatch(data):
    """One program runs any number of periods, and no compiler can tell a single one from many."""
    rule = jaxpt.Tempering("auto", "deo", adapt_ladder=True, window=2)
    engine = make_engine(conftest.small_problem(), rule=rule, burn_in=20)
    whole, rows = engine.run(engine.init(jax.random.key(0)), data, periods=9)
    state, parts = engine.init(jax.random.key(0)), []
    for periods in (1, 3, 2, 1, 2):
        state, trace = engine.run(state, data, periods=periods, max_periods=3)
        assert {leaf.shape[0] for leaf in jax.tree.leaves(trace)} == {3}
        parts.append(tree.take(trace, slice(periods)))
    assert_same(state, whole)
    assert_same(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts), rows)
    for periods in (-1, 4):
        with pytest.raises(ValueError, match=rf"periods must be 0 .. max_periods=3, but it is {periods}"):
            engine.run(state, data, periods=periods, max_periods=3)
    before = jaxpt.engine.engine._run._cache_size()
    engine.run(state, data, periods=2, max_periods=3)
    assert jaxpt.engine.engine._run._cache_size() == before
    one, _ = engine.run(engine.init(jax.random.key(0)), data, periods=1)
    assert_same(one, engine.run(engine.init(jax.random.key(0)), data, periods=1, max_periods=3)[0])


@pytest.mark.slow
@pytest.mark.users_compiler
def test_users_may_jit_it_themselves():
    engine, _ = slope(rule=jaxpt.Tempering(1.0))
    state, trace = jax.jit(engine.run, static_argnames="periods")(jax.jit(engine.init)(jax.random.key(0)), periods=3)
    same, same_trace = engine.run(engine.init(jax.random.key(0)), periods=3)
    assert_same((state, trace), (same, same_trace))


@pytest.mark.slow
@pytest.mark.users_compiler
def test_what_compiles_quickly_draws_the_same_bits():
    """`init` asks LLVM for less than a program of which it is a part."""
    draws = {
        "he": jax.nn.initializers.he_normal(),  # a truncated normal
        "orthogonal": jax.nn.initializers.orthogonal(),
        "uniform": jax.random.uniform,
        "normal": jax.random.normal,
        "gamma": lambda key, shape: jax.random.gamma(key, 0.5, shape),
    }
    problem = jaxpt.energy_problem(
        lambda w: w["normal"].sum(),
        lambda key: {name: draw(jax.random.fold_in(key, i), (9, 5)) for i, (name, draw) in enumerate(draws.items())},
    )
    engine, _ = slope()
    engine = dataclasses.replace(engine, problem=problem)
    for key in (jax.random.key(0), jax.random.split(jax.random.key(1), 2)):
        assert_same(engine.init(key), jax.jit(engine.init)(key))


@pytest.mark.parametrize("axis", ["vmap", "unroll", "map"])
def test_a_loss_may_print(axis, capfd):
    """`jax.debug.print` is an equation without outputs."""

    def loud(w):
        jax.debug.print("w is {}", w)
        return w

    problem = jaxpt.energy_problem(loud, lambda key: jnp.zeros(()))
    rungs = jaxpt.Ladder(learning_rate=[0.25, 0.5])
    engine = jaxpt.Engine(problem, lambda h: optax.sgd(h["learning_rate"]), rungs, every=3, replica_axis=axis)
    engine.run(engine.init(jax.random.key(0)), periods=1)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("w is -0.5") == 2, "the cold one's third step, the hot one's second"


def size(arrays):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))


@pytest.mark.slow
def test_a_donated_state_is_written_over_and_nothing_else_is_touched(data):
    key, engine = jax.random.key(0), make_engine(rule=jaxpt.Tempering(jnp.float32(3.0)))
    state = engine.init(key)
    weights = size(state.replicas[:3])
    aliased = {
        donate: engine.lower(state, data, periods=2, donate=donate).compile().memory_analysis().alias_size_in_bytes
        for donate in (False, True)
    }
    assert aliased[False] == 0
    assert aliased[True] >= weights > 1000
    kept = engine.run(state, data, periods=2)
    donated = engine.run(state, data, periods=2, donate=True)
    assert_same(kept, donated)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.replicas))
    assert not key.is_deleted()
    assert not engine.rule.C.is_deleted()
    assert_same(engine.init(key).replicas, engine.init(jax.random.key(0)).replicas)


@pytest.mark.slow
def test_the_training_split_is_gathered_from_and_never_copied(data):
    """In the compiled program nothing but parameters, and what passes them on, has the split's shape."""
    engine = make_engine(rule=jaxpt.Tempering(jnp.float32(1.0)))  # the program of the test above
    text = engine.lower(engine.abstract(jax.random.key(0)), data, periods=2).compile().as_text()
    pattern = r"= f32\[100,6\]\S* ([\w-]+)\("
    kinds = set(re.findall(pattern, text))
    assert kinds <= {"parameter", "get-tuple-element", "bitcast"}
    assert "parameter" in kinds
    copied = data._replace(train={**data.train, "x": 2 * jnp.asarray(data.train["x"])})
    doubled = jax.jit(lambda s, d: engine.run(s, d._replace(train={**d.train, "x": 2 * d.train["x"]}), periods=2))
    text = doubled.lower(engine.abstract(jax.random.key(0)), copied).compile().as_text()
    assert not set(re.findall(pattern, text)) <= {"parameter", "get-tuple-element", "bitcast"}, "a copy is seen"
