"""The sampler: exact where unadjusted Langevin is not, and ladders that space themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt import diagnostics
from tests.test_double_well import OBSERVABLES, energy

TEMPERATURES, STEP, LADDERS = np.array([0.1, 0.3, 1.0]), 0.04, 64


def deviations(engine, periods=600, dropped=100):
    """Distance of each rung's means from numerical integration, in standard errors over ladders of one seed each."""
    keys = jax.random.split(jax.random.key(0), LADDERS)
    _, trace = engine.run(engine.init(keys), periods=periods)
    x = np.linspace(-4, 4, 200_001)
    weight = np.exp(-energy(x)[None] / TEMPERATURES[:, None])
    found = {}
    for name, function in OBSERVABLES.items():
        exact = (function(x) * weight).sum(-1) / weight.sum(-1)
        means = diagnostics.samples(trace, name)[dropped:].mean(0)
        found[name] = (means.mean(0) - exact) / (means.std(0, ddof=1) / np.sqrt(LADDERS))
    return found


METRICS = {name: function for name, function in OBSERVABLES.items() if name != "energy"}


@pytest.mark.slow
def test_every_rung_is_sampled_exactly_whatever_the_step_size():
    """Within 3.5 standard errors of nine means, at a step size of which the next test shows that it is no small one."""
    engine = jaxpt.sampler(
        energy, lambda key: jnp.ones(()), temperature=TEMPERATURES, step_size=STEP, every=10, metrics=METRICS
    )
    for name, deviation in deviations(engine).items():
        assert np.abs(deviation).max() < 3.5, (name, deviation)


@pytest.mark.slow
def test_and_unadjusted_langevin_is_not_exact_there():
    engine = jaxpt.Engine(
        jaxpt.energy_problem(energy, lambda key: jnp.ones(()), metrics=METRICS),
        lambda h: jaxpt.langevin(STEP, h["temperature"]),
        jaxpt.Ladder(temperature=TEMPERATURES),
        jaxpt.Tempering(1.0, "deo"),
        every=10,
    )
    assert max(np.abs(d).max() for d in deviations(engine).values()) > 6


@pytest.mark.slow
def test_a_proposal_without_a_finite_energy_is_refused():
    wall = lambda x: jnp.where(x < 0, jnp.nan, x)
    move = jaxpt.mala(wall, 0.5, 1.0)
    update = lambda key: move.update(jnp.ones(()), move.init(jnp.zeros(())), jnp.full((), 0.1), key=key)
    moved, state = jax.vmap(update)(jax.random.split(jax.random.key(0), 500))
    assert (0.1 + moved >= 0).all()
    assert 0 < state.accepted.sum() == (moved != 0).sum() < 500


@functools.cache
def adapted(adapt, window=40, rounds=12, periods=300):
    """Rejections [seeds, pairs] after burn-in, and the ladders, of a ladder bunched at its cold end."""
    engine = jaxpt.sampler(
        energy,
        lambda key: jax.random.normal(key),
        temperature=[0.1, 0.105, 0.11, 0.115, 0.12, 3.0],
        step_size=0.03,
        every=10,
        burn_in=10 * window * rounds,
        adapt_ladder=adapt,
        window=window,
    )
    state, trace = engine.run(engine.init(jax.random.split(jax.random.key(0), 16)), periods=window * rounds + periods)
    return diagnostics.rejection(trace), trace, state


@pytest.mark.slow
def test_a_bad_ladder_becomes_a_good_one():
    """Twelve adaptations; the spread of the rejections falls to less than a third."""
    bad, _, _ = adapted(False)
    good, trace, state = adapted(True)
    assert good.std(-1).mean() < bad.std(-1).mean() / 3
    beta = np.asarray(trace.info.beta)
    assert len(np.unique(beta[:, 0, 2])) == 13, "the first ladder and twelve adaptations"
    np.testing.assert_array_equal(beta[480:], np.broadcast_to(beta[480], beta[480:].shape), "frozen after burn-in")
    np.testing.assert_array_equal(beta[..., [0, -1]], np.broadcast_to(beta[0, 0, [0, -1]], beta[..., [0, -1]].shape))
    assert (np.diff(beta) < 0).all()
    # Values follow beta, and the replicas' follow the ladder's.
    ladder = state.ladders["temperature"]
    np.testing.assert_allclose(1 / ladder.values["temperature"], ladder.beta, rtol=1e-6)
    on_rung = np.take_along_axis(np.asarray(trace.hyper["temperature"]), np.argsort(trace.rung["temperature"], -1), -1)
    np.testing.assert_allclose(1 / on_rung, beta, rtol=1e-6)


def spread_of_rejections(swap):
    """The range of the pairs' rejections on a ladder adapted to a narrow and a wide mode; all start in the narrow one.

    The modes have equal mass: only a replica that has been in both knows the energies of either.
    """

    def energy(x):
        narrow, wide = (jnp.sum((x - centre) ** 2) / (2 * width**2) for centre, width in ((3.0, 0.2), (-3.0, 1.0)))
        return -jnp.logaddexp(-narrow - 2 * jnp.log(0.2), -wide)

    engine = jaxpt.sampler(
        energy,
        lambda key: 3 + 0.2 * jax.random.normal(key, (2,)),
        temperature=jaxpt.geometric(1, 100, 8),
        step_size=0.05,
        every=5,
        burn_in=5 * 64 * 10,
        adapt_ladder=True,
        window=64,
        swap_while_tuning=swap,
        adapt_step_size=True,
        draws=None,
    )
    _, trace = engine.run(engine.init(jax.random.split(jax.random.key(0), 16)), periods=64 * 10 + 1000)
    rejections = diagnostics.rejection(diagnostics.window(trace, 5 * 64 * 10)).mean(0)
    return np.ptp(rejections)


@pytest.mark.slow
def test_between_unlike_modes_rejections_are_equal_only_if_swaps_are_offered_while_the_ladder_adapts():
    assert spread_of_rejections(True) < 0.08
    assert spread_of_rejections(False) > 0.15


@pytest.mark.slow
def test_a_ladder_adapts_without_a_new_program():
    count = 0

    def counted(x):
        nonlocal count
        count += 1
        return energy(x)

    make = functools.partial(
        jaxpt.Engine,
        jaxpt.energy_problem(counted, lambda key: jnp.ones(())),
        lambda h: jaxpt.langevin(0.01, h["temperature"]),
        rule=jaxpt.Tempering("auto", "deo", adapt_ladder=True, window=3, settle=2),
        every=2,
        burn_in=40,
    )
    engine = make(ladder=jaxpt.Ladder(temperature=[0.1, 0.2, 0.5, 2.0]))
    state, first = engine.run(engine.init(jax.random.key(0)), periods=15)
    traced = count
    state, trace = engine.run(state, periods=15)
    other = make(ladder=jaxpt.Ladder(temperature=[0.2, 0.3, 0.4, 1.0]))
    other.run(other.init(jax.random.key(1)), periods=15)
    assert count == traced
    assert len(np.unique(first.info.beta[:, 1])) == 5
    assert len(np.unique(trace.info.beta[-10:, 1])) == 1
    assert len(np.unique(first.info.C)) > 5
    assert len(np.unique(trace.info.C[7:])) == 1, "frozen after two exchanges"
    assert len(np.unique(trace.info.C[5:8])) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("dimensions", "expected"), [(2, 1.1513), (10, 2.8333)])
def test_barrier_of_the_gaussian_path(dimensions, expected):
    """Precision 1 to 10: Lambda = 2^(2-d) / B(d/2, d/2) ln sqrt(10), within 2 %, from samples drawn exactly."""
    draw = lambda h: jaxpt.gradient_noise(jnp.sqrt(h["temperature"]))

    def exact(h):
        noise = draw(h)
        return noise._replace(
            update=lambda updates, state, params, *, key: noise.update(-params, state, params, key=key)
        )

    engine = jaxpt.Engine(
        jaxpt.energy_problem(lambda x: jnp.sum(x**2) / 2, lambda key: jnp.zeros(dimensions)),
        exact,
        jaxpt.Ladder(temperature=1 / jaxpt.geometric(1, 10, 25)),
        jaxpt.Tempering(1.0, "deo"),
        every=1,
    )
    _, trace = engine.run(engine.init(jax.random.split(jax.random.key(0), 16)), periods=2000)
    barrier = diagnostics.barrier(trace)
    assert barrier.total == pytest.approx(expected, rel=0.02)
    # lambda(beta) is proportional to 1 / beta.
    beta = np.array([1.5, 3.0, 6.0])
    np.testing.assert_allclose(barrier.density(beta), expected / np.log(10) / beta, rtol=0.1)
    assert jaxpt.suggest_replicas(trace) == round(2 * expected) + 1
    np.testing.assert_allclose(barrier.rungs(4), [10, 10 ** (2 / 3), 10 ** (1 / 3), 1], rtol=0.03)


def test_a_step_that_never_moves_is_refused():
    for step_size in (0.0, [0.1, -0.1]):
        with pytest.raises(ValueError, match="step_size must be positive"):
            jaxpt.sampler(jnp.sum, lambda key: jnp.zeros(1), temperature=[1.0, 2.0], step_size=step_size, every=1)
