"""Draws of a sampler's run, gathered by rung, and the acceptance and step sizes of its moves."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt import diagnostics
from jaxpt.training import prepare

STEPS, EVERY, BURN_IN, TARGET = 6000, 5, 2000, 0.7


def energy(w):
    return jnp.sum(w["x"] ** 2) / 2 + jnp.sum((w["y"] - 1) ** 2)


def start(key):
    return {"x": jax.random.normal(key, (2,)), "y": jnp.zeros(())}


def make(**options):
    chosen = {"temperature": [1.0, 2.0, 4.0], "step_size": 0.01, "every": EVERY, "burn_in": BURN_IN, **options}
    return jaxpt.sampler(energy, start, **chosen)


@functools.cache
def found():
    """A run of two seeds, whose step sizes begin much too small."""
    engine = make(adapt_step_size=True, target=TARGET, adapt_ladder=True, window=100)
    return jaxpt.fit(engine, steps=STEPS, seeds=range(2), progress=False)


@pytest.mark.slow
def test_draws_are_the_weights_of_the_replica_on_each_rung():
    """Their energies are those of the trace, rung by rung, once burn-in is over."""
    result, count = found(), (STEPS - BURN_IN) // EVERY
    every = result.draws(3)
    assert jax.tree.map(np.shape, every) == {"x": (count, 2, 3, 2), "y": (count, 2, 3)}
    energies = (every["x"] ** 2).sum(-1) / 2 + (every["y"] - 1) ** 2
    np.testing.assert_allclose(energies, diagnostics.samples(result.trace)[-count:], rtol=1e-5)
    jax.tree.map(lambda few, many: np.testing.assert_array_equal(few, many[:, :, 0]), result.draws(), every)
    jax.tree.map(lambda few, many: np.testing.assert_array_equal(few, many[::7, :, :2]), result.draws(2, thin=7), every)
    assert len(np.unique(result.trace.rung["temperature"][:, 0], axis=0)) > 3, "replicas change their rungs"


@pytest.mark.slow
def test_step_sizes_are_adapted_to_the_target_on_each_rung_and_then_frozen():
    result = found()
    np.testing.assert_allclose(diagnostics.move_acceptance(result.trace), TARGET, atol=0.04)
    rung = np.argsort(result.trace.rung["temperature"], -1)
    size = np.take_along_axis(result.trace.hyper["step_size"], rung, -1)
    frozen = result.trace.step > BURN_IN
    assert (size[frozen] == size[-1]).all()
    assert (size[-1] > 5 * size[0]).all()
    assert re.search(
        r"moves accepted on each rung: (6|7)\d%, (6|7)\d%, (6|7)\d%", str(diagnostics.diagnosis(result.trace))
    )


@pytest.mark.slow
def test_arviz_takes_the_seeds_as_chains():
    arviz = pytest.importorskip("arviz")
    data = found().inference_data(thin=2)
    posterior = data["posterior"]
    assert dict(posterior.sizes) == {"chain": 2, "draw": 400, "x_dim_0": 2}
    np.testing.assert_array_equal(posterior["y"], found().draws(thin=2)["y"].T)
    table = arviz.summary(data)
    assert (table["r_hat"] < 1.05).all()
    assert (table["ess_bulk"] > 100).all()


@pytest.mark.slow
def test_a_resumed_run_keeps_its_draws(tmp_path):
    whole = jaxpt.fit(make(burn_in=0, step_size=0.3), steps=100, progress=False)
    for steps in (50, 100):
        resumed = jaxpt.fit(make(burn_in=0, step_size=0.3), steps=steps, directory=tmp_path, progress=False)
    loaded = jaxpt.load_run(make(burn_in=0, step_size=0.3), tmp_path)
    for result in (resumed, loaded):
        jax.tree.map(np.testing.assert_array_equal, result.draws(3), whole.draws(3))
    np.testing.assert_array_equal(loaded.trace.reported["acceptance"], whole.trace.reported["acceptance"])
    with pytest.raises(ValueError, match="draws"):
        jaxpt.fit(make(burn_in=0, step_size=0.3, draws=lambda w: w["x"]), steps=100, directory=tmp_path, progress=False)


def test_one_temperature_and_independent_rungs_have_draws_too():
    alone = jaxpt.fit(make(temperature=[1.0], burn_in=0), steps=50, progress=False)
    assert alone.draws()["x"].shape == (10, 2)
    assert make(temperature=[1.0], draws=None).draws is None


def test_a_start_outside_the_support_is_drawn_again():
    """Half the draws of init are below zero, where the energy is infinite."""
    engine = jaxpt.sampler(
        lambda w: jnp.where(w > 0, w, jnp.inf),
        jax.random.normal,
        temperature=[1.0, 2.0, 3.0, 4.0],
        step_size=0.1,
        every=2,
    )
    start = engine.init(jax.random.split(jax.random.key(0), 8)).replicas.params
    assert start.shape == (8, 4)
    assert (start > 0).all()
    assert len(np.unique(start)) == 32


def test_the_draws_of_a_dispatch_are_bounded():
    """A replica's draws of 64 MiB: a dispatch holds 1 period of 3 replicas, not 1024."""
    wide = jaxpt.sampler(
        lambda w: jnp.sum(w), lambda key: jnp.zeros(2**24), temperature=[1.0, 2.0, 3.0], step_size=0.1, every=1
    )
    assert prepare._most_rows(wide, wide.abstract(jax.random.key(0))) == 1
    small = make()
    assert prepare._most_rows(small, small.abstract(jax.random.key(0))) > 1024
