import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxpt
from jaxpt.devices.execution import choose
from tests import conftest
from tests.conftest import make_engine

STRATEGIES = ("vmap", "unroll", "map")


class ConvNet(nnx.Module):
    """Convolution, BatchNorm, tanh, dropout of two kinds, dense; weights in float64 where that is enabled."""

    def __init__(self, *, rngs):
        kind = jnp.zeros(()).dtype
        self.conv = nnx.Conv(1, 3, (3, 3), strides=2, rngs=rngs, param_dtype=kind)
        self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs, param_dtype=kind)
        self.dropout, self.stock = jaxpt.Dropout("dropout_rate", rngs=rngs), nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(27, 3, rngs=rngs, param_dtype=kind)

    def __call__(self, x):
        x = self.stock(self.dropout(jnp.tanh(self.norm(self.conv(x)))))
        return self.out(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(70, 6, 6, 1))
    y = (np.abs(x[:, 0, 0, 0]) + x[:, 1, 1, 0] > 1).astype(np.int32) + (x[:, 2, 3, 0] > 0)
    return jaxpt.Data(*({"x": x[rows], "y": y[rows]} for rows in (slice(0, 40), slice(40, 70))))


CASES = {
    "one ladder": (jax.random.key(0), {}),
    "seeds": (  # and each replica its own minibatches of its own size, and a probe
        jax.random.split(jax.random.key(0), 2),
        {"own_batches": True, "probe": 9, "rungs": jaxpt.Ladder(batch_size=[16, 8, 4])},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["one ladder", "seeds"])
def test_strategies_agree_to_rounding_in_float64(case, images):
    """1e-9 after twelve steps with dropout and batch normalisation; rungs and counts are the same numbers."""
    key, settings = CASES[case]
    found = {}
    with jax.enable_x64(True):
        problem = jaxpt.nnx_problem(ConvNet, conftest.loss, metrics={"error": conftest.error})
        fixed = {"dropout_rate": 0.2, "learning_rate": 0.1}
        settings = {"rungs": jaxpt.Ladder(learning_rate=[0.05, 0.1, 0.2]), **settings}
        for name in settings["rungs"].values:
            fixed.pop(name, None)
        for strategy in STRATEGIES:
            engine = make_engine(
                problem, every=4, rule=jaxpt.Tempering(2.0), fixed=fixed, replica_axis=strategy, **settings
            )
            state, trace = engine.run(engine.init(key), images, periods=3)
            numbers = state.replicas._replace(key=0), trace, engine.evaluate(state, images.valid)
            found[strategy] = jax.tree.map(np.asarray, numbers)
    kernel = found["vmap"][0].params["conv"]["kernel"][...]
    assert kernel.dtype == np.float64
    assert trace.info.accepted.any(), "or the exchanges are not tested"
    for strategy in STRATEGIES[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6 if a.dtype == np.float32 else 1e-9, atol=1e-9),
            found[strategy],
            found["vmap"],
        )
        jax.tree.map(np.testing.assert_array_equal, found[strategy][1].rung, found["vmap"][1].rung)


@pytest.mark.slow
def test_strategies_agree_in_float32(data):
    """2e-5 after ten steps, as for a replica alone: the sums are ordered otherwise."""
    found = []
    for strategy in ("vmap", "map"):
        engine = make_engine(conftest.linen_problem(), rule=jaxpt.Tempering(3.0), replica_axis=strategy)
        state, trace = engine.run(engine.init(jax.random.key(0)), data, periods=2)
        found.append((state.replicas.params, state.replicas.rung, trace))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), *found)


@pytest.mark.slow
def test_a_problem_without_data_runs_in_every_way():
    problem = jaxpt.energy_problem(lambda w: w**2, lambda key: jax.random.normal(key))
    found = []
    for strategy in STRATEGIES:
        engine = make_engine(problem, jaxpt.Ladder(learning_rate=[0.1, 0.2]), replica_axis=strategy)
        state, _ = engine.run(engine.init(jax.random.key(0)), periods=2)
        found.append(np.asarray(state.replicas.params))
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-6)


@pytest.mark.slow
def test_auto_says_what_it_picked(data, images):
    engine = make_engine(conftest.small_problem())
    assert str(engine.execution(data)) == "vmap over 4 replicas on cpu device"
    convolutions = make_engine(jaxpt.nnx_problem(ConvNet, conftest.loss))
    assert convolutions.execution(images).replica_axis == "unroll"
    many = dataclasses.replace(convolutions, ladder=conftest.ladder(9))
    assert many.execution(images).replica_axis == "map"
    assert dataclasses.replace(many, replica_axis="vmap").execution(images).replica_axis == "vmap"
    assert jaxpt.fit(engine, data.train, data.valid, steps=5, progress=False).execution == engine.execution(data)


def test_on_accelerators_auto_is_vmap_but_for_convolutions_that_fill_a_tpus_fast_memory():
    lenet, blocks = 128 * 28 * 28 * 6 * 4, 128 * 16 * 16 * 32 * 4
    found = {where: [choose(where, 8, 1, size) for size in (0, lenet, blocks)] for where in ("gpu", "tpu")}
    assert found == {"gpu": 3 * ["vmap"], "tpu": ["vmap", "vmap", "map"]}
    assert choose("tpu", 7, 1, blocks) == "vmap", "the replicas on one device count"


@pytest.mark.slow
def test_auto_runs_what_it_says(images):
    """Unrolled, the program calls that of one replica M times; in all ways it has the convolutions of one."""
    counts, calls = {}, {}
    for strategy in ("auto", "vmap", "unroll", "map"):
        engine = make_engine(jaxpt.nnx_problem(ConvNet, conftest.loss), replica_axis=strategy)
        text = engine.lower(engine.abstract(jax.random.key(0)), images, periods=1).as_text()
        counts[strategy], calls[strategy] = text.count("stablehlo.convolution"), text.count("call @one_replica")
    assert calls["auto"] == calls["unroll"] > 0 == calls["map"] == calls["vmap"]
    assert calls["unroll"] % engine.num_replicas == 0, "one replica's steps, and its energies"
    assert counts["auto"] == counts["unroll"] == counts["map"] <= counts["vmap"]
    seeds = engine.abstract(jax.random.split(jax.random.key(0), 3))
    engine = dataclasses.replace(engine, replica_axis="auto")
    text = engine.lower(seeds, images, periods=1).as_text()
    assert text.count("call @one_replica") == calls["unroll"], "seeds are looped over: the program does not grow"


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="replica_axis must be one of auto, vmap, unroll, map, but it is 'pmap'"):
        make_engine(replica_axis="pmap")
