import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.studies.diffusion import Diffusion, _ladder
from tests import conftest

RATE, DIMENSIONS = 0.05, 20


def quadratic(stiffness, start):
    """E = stiffness |W|^2 / 2 in 20 dimensions, from W0 with all elements `start`."""
    return jaxpt.energy_problem(
        lambda w: 0.5 * stiffness * jnp.sum(w**2), lambda key: jnp.full(DIMENSIONS, start, jnp.float32)
    )


def exact_mean_square(steps, stiffness, temperature, start):
    """E|W(n) - W(0)|^2 of W <- a W + s xi, a = 1 - RATE stiffness, s^2 = 2 RATE T.

    W(n) = a^n W(0) + s sum_{i<n} a^i xi_i, so each element adds (1 - a^n)^2 W(0)^2 + s^2 (1 - a^2n) / (1 - a^2).
    """
    a = 1 - RATE * np.asarray(stiffness)
    n = np.asarray(steps)[:, None]
    variance = 2 * RATE * np.asarray(temperature) * (1 - a ** (2 * n)) / (1 - a**2)
    return DIMENSIONS * ((1 - a**n) ** 2 * start**2 + variance)


def assert_within_four_standard_errors(found, exact):
    square = found.displacement**2
    error = square.std(1, ddof=1) / np.sqrt(square.shape[1])
    assert np.abs((found.mean_square - exact) / error).max() < 4


@pytest.mark.parametrize("start", [0.0, 1.5])
def test_langevin_on_a_quadratic_diffuses_as_the_exact_recursion_says(start):
    """At every step, far beyond the relaxation time of 1 / (RATE stiffness) = 10 steps."""
    temperatures = [0.1, 0.5, 1.0, 4.0]
    found = jaxpt.diffusion(
        quadratic(2.0, start), lambda h: jaxpt.langevin(RATE, h["temperature"]), name="temperature",
        values=temperatures, steps=100, every=1, seeds=range(100), progress=False,
    )  # fmt: skip
    assert found.displacement.shape == (100, 100, 4)
    np.testing.assert_array_equal(found.steps, np.arange(1, 101))
    np.testing.assert_allclose(found.values, temperatures)
    assert_within_four_standard_errors(found, exact_mean_square(found.steps, 2.0, temperatures, start))
    assert found.verdict().answer == "temperature-like"


@pytest.fixture(scope="module")
def decaying():
    """A flat energy with noise and weight decay, which is then the stiffness. Each element of W(0) is 1; T = 0.1."""
    optimizer = lambda h: optax.chain(optax.add_decayed_weights(h["weight_decay"]), jaxpt.langevin(RATE, 0.1))
    return jaxpt.diffusion(
        quadratic(0.0, 1.0), optimizer, name="weight_decay", values=[0.25, 0.5, 1.0], steps=400, every=10,
        seeds=range(128), progress=False,
    )  # fmt: skip


def test_weight_decay_is_not_temperature_like(decaying):
    """Figure 1's negative control, exactly solvable: the stronger, the faster at first, the lower at the end."""
    assert_within_four_standard_errors(decaying, exact_mean_square(decaying.steps, decaying.values, 0.1, 1.0))
    verdict = decaying.verdict()
    assert verdict.answer == "not temperature-like"
    assert verdict.steps == (40, 400)
    assert (verdict.low[0] > 0).all(), "early it looks like a temperature"
    assert (verdict.high[1] < 0).all(), "late the order is reversed"
    assert decaying.verdict(early=20, late=40).answer == "temperature-like", "early times alone would be fooled"
    assert "step 400" in str(verdict)


def test_each_value_may_have_a_burn_in_of_its_own():
    """From weights near each value's equilibrium nothing drifts there: weight decay never looks hot."""
    decay, burn_in = np.array([0.25, 0.5, 1.0]), 120
    optimizer = lambda h: optax.chain(optax.add_decayed_weights(h["weight_decay"]), jaxpt.langevin(RATE, 0.1))
    found = jaxpt.diffusion(
        quadratic(0.0, 1.0), optimizer, name="weight_decay", values=decay, steps=200, every=10, burn_in=burn_in,
        own_burn_in=True, seeds=range(128), progress=False,
    )  # fmt: skip
    # W(t0) has mean square a^2n0 + s^2 (1 - a^2n0) / (1 - a^2) per element; of that (1 - a^n)^2 is left behind.
    a = 1 - RATE * decay
    at_start = a ** (2 * burn_in) + 2 * RATE * 0.1 * (1 - a ** (2 * burn_in)) / (1 - a**2)
    n = found.steps[:, None]
    noise = exact_mean_square(found.steps, decay, 0.1, 0.0)
    assert_within_four_standard_errors(found, DIMENSIONS * (1 - a**n) ** 2 * at_start + noise)
    assert found.verdict().answer == "not temperature-like"


@pytest.mark.parametrize("seeds", [1, 2])
def test_with_too_few_seeds_the_verdict_is_undecided(seeds, decaying):
    verdict = dataclasses.replace(decaying, displacement=decaying.displacement[:, :seeds]).verdict()
    assert verdict.answer == "undecided"
    assert np.isnan(verdict.low).all() == (seeds == 1)


def made(differences, spread, seeds, rng):
    """A `Diffusion` whose adjacent differences over seeds have the given means [times, pairs]."""
    steps = rng.normal(np.asarray(differences)[:, None], spread, (2, seeds, len(differences[0])))
    displacement = 10 + np.concatenate([np.zeros((2, seeds, 1)), np.cumsum(steps, -1)], -1)
    return Diffusion("rate", np.arange(steps.shape[-1] + 1.0), np.array([1, 10]), displacement)


def test_the_verdict_errs_no_more_often_than_its_level_says():
    """Each wrong answer in at most 5 % of 1000 samples (and 4 standard errors: 7.8 %); a clear effect is seen."""
    rng = np.random.default_rng(0)
    answers = lambda means, n=1000: [made(means, 1.0, 5, rng).verdict(early=1).answer for _ in range(n)]
    none = answers([[0, 0], [0, 0]])
    assert none.count("temperature-like") < 78
    assert none.count("not temperature-like") < 78
    # All but one pair at one time in order, that one without any effect: the hardest case for a yes.
    assert answers([[50, 50], [50, 0]]).count("temperature-like") < 78
    assert answers([[50, 50], [50, -50]], 100).count("not temperature-like") == 100
    assert answers([[50, 50], [50, 50]], 100).count("temperature-like") == 100


def test_a_diverged_replica_leaves_the_verdict_undecided():
    found = made([[50, 50], [50, 50]], 1.0, 5, np.random.default_rng(0))
    found.displacement[1, 2, 2] = np.nan
    assert found.verdict().answer == "undecided"


SLOPE = jaxpt.energy_problem(lambda w: w, lambda key: jax.random.normal(key))


def momentum(h):
    return optax.sgd(h["learning_rate"], momentum=0.5)


def walk(**settings):
    """Energy w, whose gradient is 1, from other first weights in each seed."""
    settings = {"values": [0.5, 0.25], "steps": 6, "every": 2, "seeds": [0, 1], "progress": False, **settings}
    return jaxpt.diffusion(SLOPE, momentum, name="learning_rate", **settings)


def test_it_starts_after_the_burn_in_at_the_first_value_with_its_momentum():
    """The velocity is 2 - 2^-n after n steps of gradient 1: t0 decides where the sum over steps begins."""
    for burn_in in (0, 3):
        found = walk(burn_in=burn_in)
        np.testing.assert_array_equal(found.values, [0.25, 0.5])
        velocity = 2 - 0.5 ** np.arange(burn_in, burn_in + 6)
        expected = np.cumsum(velocity)[1::2, None] * found.values
        np.testing.assert_allclose(found.displacement, np.broadcast_to(expected[:, None], (3, 2, 2)), rtol=1e-5)


def test_the_schedule_counts_the_steps_of_the_burn_in():
    schedule = lambda h, step: {"learning_rate": jnp.where(step < 5, 0.0, h["learning_rate"])}
    for burn_in, rested in ((0, 2), (3, 1)):
        still = (walk(schedule=schedule, burn_in=burn_in).displacement == 0).all((1, 2))
        assert still.tolist() == [True] * rested + [False] * (3 - rested)


@pytest.mark.slow
def test_networks_start_from_common_weights(data):
    """Where the rate is zero nothing moves, W(t0) being the replica's own; batch statistics do not count."""
    found = jaxpt.diffusion(
        conftest.nnx_problem(), conftest.sgd, data.train, name="learning_rate", values=[0.1, 0.0],
        fixed={"dropout_rate": 0.1}, steps=6, every=3, seeds=[0, 1], batch_size=16, burn_in=4, progress=False,
    )  # fmt: skip
    assert found.displacement.shape == (2, 2, 2)
    assert (found.displacement[..., 0] == 0).all()
    assert len(np.unique(found.displacement[..., 1])) == 4


def test_a_value_with_infinite_beta_is_the_coldest():
    ladder = _ladder("dropout_rate", [0.5, 0.1, 0.0], None)
    np.testing.assert_allclose(ladder.values["dropout_rate"], [0, 0.1, 0.5])
    assert _ladder("batch_size", [1.0, 2.0], None).values["batch_size"].tolist() == [2, 1]
    assert _ladder("mine", [1.0, 2.0], None).values["mine"].tolist() == [1, 2]
    assert _ladder("mine", [1.0, 2.0], lambda v: v).values["mine"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5}, "multiple of every"),
        ({"steps": 0}, "multiple of every"),
        ({"burn_in": -1}, "burn_in must be at least 0"),
        ({"values": [0.1, 0.1]}, "different numbers"),
        ({"values": [0.1, 0.3, 0.2]}, "not monotone"),
        ({"own_burn_in": True}, "asks for a burn-in"),
        ({"values": [0.1, -0.1]}, "must lie between"),
    ],
)
def test_each_mistake_has_a_message(settings, message):
    with pytest.raises(ValueError, match=message):
        walk(**settings)


def test_a_verdict_needs_two_values_and_two_times():
    with pytest.raises(ValueError, match="one only"):
        walk(values=[0.1]).verdict()
    found = walk()
    with pytest.raises(ValueError, match="record more often"):
        found.verdict(early=6)
    with pytest.raises(ValueError, match="level must lie"):
        found.verdict(level=95.0)
