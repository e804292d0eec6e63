import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt import Diffusion
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
    ladder, langevin = jaxpt.Ladder(temperature=temperatures), lambda h: jaxpt.langevin(RATE, h["temperature"])
    engine = jaxpt.Engine(quadratic(2.0, start), langevin, ladder, every=1)
    found = jaxpt.diffusion(engine, steps=100, seeds=range(100), progress=False)
    assert found.displacement.shape == (100, 100, 4)
    np.testing.assert_array_equal(found.steps, np.arange(1, 101))
    np.testing.assert_allclose(found.values, temperatures)
    assert_within_four_standard_errors(found, exact_mean_square(found.steps, 2.0, temperatures, start))
    assert found.verdict().answer == "temperature-like"


def decay_engine(values, **settings):
    optimizer = lambda h: optax.chain(optax.add_decayed_weights(h["weight_decay"]), jaxpt.langevin(RATE, 0.1))
    ladder = jaxpt.Ladder(weight_decay=values)
    return jaxpt.Engine(quadratic(0.0, 1.0), optimizer, ladder, jaxpt.Independent(), every=10, **settings)


@pytest.fixture(scope="module")
def decaying():
    """A flat energy with noise and weight decay, which is then the stiffness. Each element of W(0) is 1; T = 0.1."""
    return jaxpt.diffusion(decay_engine([0.25, 0.5, 1.0]), steps=400, seeds=range(128), progress=False)


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
    engine = decay_engine(decay, burn_in=burn_in)
    found = jaxpt.diffusion(engine, steps=200, own_burn_in=True, seeds=range(128), progress=False)
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


RATES = jaxpt.Ladder(learning_rate=[0.5, 0.25])


def walk(ladder=RATES, steps=6, start=None, own_burn_in=False, **settings):
    """Energy w, whose gradient is 1, from other first weights in each seed."""
    engine = jaxpt.Engine(SLOPE, momentum, ladder, **{"rule": jaxpt.Independent(), "every": 2, **settings})
    return jaxpt.diffusion(engine, steps=steps, start=start, own_burn_in=own_burn_in, seeds=[0, 1], progress=False)


def test_it_starts_after_the_burn_in_with_its_momentum():
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
    engine = jaxpt.Engine(
        conftest.nnx_problem(), conftest.sgd, jaxpt.Ladder(learning_rate=[0.1, 0.0]), jaxpt.Independent(),
        every=3, burn_in=4, batch_size=16, fixed={"dropout_rate": 0.1},
    )  # fmt: skip
    found = jaxpt.diffusion(engine, data.train, steps=6, start=0.1, seeds=[0, 1], progress=False)
    assert found.displacement.shape == (2, 2, 2)
    assert (found.displacement[..., 0] == 0).all()
    assert len(np.unique(found.displacement[..., 1])) == 4


@pytest.mark.parametrize(("start", "value"), [(None, 0.25), (0.5, 0.5), (1.0, 1.0)])
def test_the_common_burn_in_is_at_the_coldest_value_or_at_start(start, value):
    """Energy -w^2 / 2 from w = 1: each step multiplies w by 1 + rate, and the next one adds rate w."""
    problem = jaxpt.energy_problem(lambda w: -0.5 * w**2, lambda key: jnp.ones(()))
    engine = jaxpt.Engine(problem, lambda h: optax.sgd(h["learning_rate"]), RATES, every=1, burn_in=3)
    found = jaxpt.diffusion(engine, steps=1, start=start, seeds=[0], progress=False)
    np.testing.assert_allclose(found.displacement[0, 0], (1 + value) ** 3 * found.values, rtol=1e-6)


def test_what_exchanges_probes_and_treats_diverged_replicas_is_left_out():
    """A run with all of it equals one without, though a replica diverges once its weight is above 5."""
    blow_up = jaxpt.energy_problem(lambda w: -w + 0 * jnp.sqrt(5 - w), lambda key: jnp.zeros(()))
    engine = jaxpt.Engine(blow_up, momentum, jaxpt.Ladder(learning_rate=[0.1, 9.0]), every=2)
    other = dataclasses.replace(engine, rule=jaxpt.PBT(), probe=8, rescale_momentum="learning_rate", diverged="respawn")
    plain, same = (jaxpt.diffusion(e, steps=6, seeds=[0, 1], progress=False) for e in (engine, other))
    assert np.isnan(plain.displacement[-1]).any(0).tolist() == [False, True]
    np.testing.assert_array_equal(plain.displacement, same.displacement)


@pytest.mark.parametrize(
    ("ladder", "coldest_first"),
    [
        ({"dropout_rate": [0.5, 0.25, 0.0]}, [0, 0.25, 0.5]),
        ({"batch_size": [1, 2]}, [2, 1]),
        ({"mine": [2, 1]}, [1, 2]),
        ({"mine": [1, 2], "beta": lambda v: v}, [2, 1]),
        ({"mine": [1, 2], "beta": [1, 2]}, [2, 1]),
    ],
)
def test_unknown_and_infinite_beta_have_an_order(ladder, coldest_first):
    made = jaxpt.Ladder(**ladder)
    (name,) = made.values
    sgd = lambda h: optax.sgd(0.1 * h[name])
    engine = jaxpt.Engine(SLOPE, sgd, made, jaxpt.Independent(), every=1)
    found = jaxpt.diffusion(engine, steps=1, seeds=[0], progress=False)
    assert (found.name, found.values.tolist()) == (name, coldest_first)
    np.testing.assert_allclose(found.displacement[0, 0], 0.1 * found.values, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5}, "multiple of the engine's every, but steps=5 and every=2"),
        ({"steps": 0}, "multiple of the engine's every"),
        ({"ladder": jaxpt.Ladder(learning_rate=[0.1, 0.1])}, "different values with different beta"),
        ({"ladder": jaxpt.Ladder(learning_rate=[0.1, 0.2], beta=[1, 1])}, "different values with different beta"),
        ({"ladder": jaxpt.Ladder(learning_rate=[0.1, 0.1], beta=[2, 1])}, "different values with different beta"),
        ({"ladder": jaxpt.Ladder(learning_rate=[0.1, 0.3, 0.2])}, "not monotone"),
        ({"own_burn_in": True}, "asks for a burn-in"),
        ({"start": 0.1}, r"start=0.1 is the value of the burn-in, but there is none"),
        ({"start": 0.1, "burn_in": 2, "own_burn_in": True}, "no common burn-in for start=0.1"),
        ({"start": -0.1, "burn_in": 2}, "must lie between"),
    ],
)
def test_each_mistake_has_a_message(settings, message):
    with pytest.raises(ValueError, match=message):
        walk(**settings)


def test_it_takes_one_hyperparameter_and_a_training_split():
    both = {"learning_rate": [0.1, 0.2], "momentum": [0.1, 0.2]}
    optimizer = lambda h: optax.sgd(h["learning_rate"], momentum=h["momentum"])
    for ladder in (jaxpt.Ladder(**both), [jaxpt.Ladder(**{name: values}) for name, values in both.items()]):
        engine = jaxpt.Engine(SLOPE, optimizer, ladder, jaxpt.Independent(), every=2)
        with pytest.raises(ValueError, match="one hyperparameter, but the engine's ladders have learning_rate, mom"):
            jaxpt.diffusion(engine, steps=6)
    with pytest.raises(ValueError, match=r"train must be the training split, but it is a jaxpt\.Data"):
        jaxpt.diffusion(jaxpt.Engine(SLOPE, momentum, RATES, every=2), jaxpt.Data({"x": np.ones(4)}), steps=6)


def test_a_verdict_needs_two_values_and_two_times():
    with pytest.raises(ValueError, match="one only"):
        walk(jaxpt.Ladder(learning_rate=[0.1])).verdict()
    found = walk()
    with pytest.raises(ValueError, match="record more often"):
        found.verdict(early=6)
    with pytest.raises(ValueError, match="level must lie"):
        found.verdict(level=95.0)
