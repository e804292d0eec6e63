"""The sampler's moves: one gradient a step, priors, preconditioners, other libraries' kernels; all leave their law."""

import dataclasses

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt.rules.step_size import AdaptedStepSize
from tests.test_double_well import energy as wells
from tests.test_sampling import LADDERS, METRICS, TEMPERATURES, deviations


def test_a_step_costs_one_gradient():
    """The products of weights and matrix in a traced step: one for the value, one for the gradient, of the proposal."""
    matrix = np.eye(3, dtype=np.float32)
    move = jaxpt.mala(lambda w: jnp.tanh(matrix @ w).sum(), 0.1, 1.0)
    state, weights = move.init(jnp.zeros(3)), jnp.zeros(3)
    program = jax.make_jaxpr(lambda key: move.update(weights, state, weights, key=key))(jax.random.key(0))
    assert str(program).count("dot_general") == 2


def test_the_gradients_kept_are_those_of_the_current_weights():
    """After accepted and refused proposals."""
    function = lambda w: jnp.sum(w**4)
    move = jaxpt.mala(function, 0.1, 1.0, prior=lambda w: -jnp.sum(w**2))
    weights = jnp.ones(2)
    state, seen = move.init(weights), set()
    update = jax.jit(move.update)
    for number in range(30):
        change, after = update(weights, state, weights, key=jax.random.key(number))
        seen.add(int(after.accepted - state.accepted))
        weights, state = weights + change, after
        np.testing.assert_allclose(state.energy.gradient, jax.grad(function)(weights), rtol=1e-5)
        np.testing.assert_allclose(state.prior.value, jnp.sum(weights**2), rtol=1e-5)
    assert seen == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("C", [1.0, 0.7])
def test_adapted_steps_leave_every_rung_exact_and_a_wrong_acceptance_does_not(C):
    """Within 3.5 standard errors of nine means; beyond 6 with C = 0.7. Steps adapt for 50 periods, of 100 left out."""
    engine = jaxpt.sampler(
        wells, lambda key: jnp.ones(()), temperature=TEMPERATURES, step_size=0.001, every=10, burn_in=500,
        metrics=METRICS, adapt_step_size=True,
    )  # fmt: skip
    wrong = dataclasses.replace(engine, rule=AdaptedStepSize(jaxpt.Tempering(C, "deo"), 0.574))
    largest = max(np.abs(d).max() for d in deviations(wrong).values())
    assert largest < 3.5 if C == 1 else largest > 6


PRIOR, CENTRE = 1.5, 2.0  # standard deviation of the prior, and the place where the likelihood is highest


def exact(beta):
    """Mean and variance of a rung: a Gaussian prior and a Gaussian likelihood to the power beta."""
    precision = 1 / PRIOR**2 + 2 * beta
    return 2 * beta * CENTRE / precision, 1 / precision


def worst(periods=500, dropped=100, **options):
    """The largest distance of a rung's mean and mean square from the exact ones, in standard errors over 64 ladders."""
    beta = np.array([1.0, 0.3, 0.0])
    engine = jaxpt.sampler(
        lambda w: jnp.sum((w["a"] - CENTRE) ** 2),
        lambda key: {"a": PRIOR * jax.random.normal(key, (1,))},
        inverse_temperature=beta,
        prior=lambda w: -jnp.sum(w["a"] ** 2) / (2 * PRIOR**2),
        every=2,
        **options,
    )
    state = engine.init(jax.random.split(jax.random.key(3), LADDERS))
    _, trace = engine.run(state, periods=periods)
    rung = np.argsort(trace.rung["inverse_temperature"], -1)
    draws = np.take_along_axis(np.asarray(trace.draws["a"], np.float64)[..., 0], rung, -1)[dropped:]
    mean, variance = exact(beta)
    found = []
    for values, right in ((draws, mean), (draws**2, variance + mean**2)):
        means = values.mean(0)
        found.append((means.mean(0) - right) / (means.std(0, ddof=1) / np.sqrt(LADDERS)))
    return np.abs(found).max()


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [True, False])
def test_a_prior_and_a_likelihood_to_the_power_beta(fresh):
    """Down to beta = 0, by moves and by new draws of the prior; with a preconditioner."""
    assert worst(step_size=0.4, init_is_prior=fresh, scale={"a": np.full(1, 1.3)}) < 3.7


@pytest.mark.slow
def test_and_it_fails_with_a_prior_of_another_width(monkeypatch):
    monkeypatch.setattr(
        "tests.test_moves.exact", lambda beta: (2 * beta * CENTRE / (0.3 + 2 * beta), 1 / (0.3 + 2 * beta))
    )
    assert worst(step_size=0.4) > 6


@pytest.mark.slow
def test_draws_of_a_wide_prior_are_exact():
    """Log-uniform over nine decades: no draw is rounded to the scale of the state before, or leaves the support."""
    low, high = np.log(1e-3), np.log(1e6)
    engine = jaxpt.sampler(
        lambda x: (jnp.log(x) + 4.6) ** 2 / 2,
        lambda key: jnp.exp(jax.random.uniform(key, minval=low, maxval=high)),
        inverse_temperature=[1.0, 0.0],
        prior=lambda x: jnp.where((x > 0.999e-3) & (x < 1.001e6), -jnp.log(x), -jnp.inf),
        init_is_prior=True,
        step_size=1e-6,
        every=1,
    )
    _, trace = engine.run(engine.init(jax.random.split(jax.random.key(0), 20)), periods=1000)
    drawn = np.asarray(trace.draws)[np.asarray(trace.rung["inverse_temperature"]) == 1]
    assert drawn.shape == (20_000,)
    assert ((drawn > 0.999e-3) & (drawn < 1.001e6)).all()
    share = np.log(3) / (high - low)
    assert abs((drawn < 0.003).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(drawn))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hmc", "nuts"])
def test_a_kernel_of_blackjax_is_a_move(name):
    kernels = {
        "hmc": lambda density, step_size: blackjax.hmc(density, step_size, np.ones(1), num_integration_steps=3),
        "nuts": lambda density, step_size: blackjax.nuts(density, step_size, np.ones(1), max_num_doublings=3),
    }
    assert worst(step_size=0.5, move=kernels[name], periods=300) < 3.7


def test_a_preconditioner_is_a_change_of_variables():
    """Two weights of widths 1 and 100 move as two of width 1 do."""
    width = np.array([1.0, 100.0], np.float32)
    scaled = jaxpt.mala(lambda w: jnp.sum((w / width) ** 2) / 2, 0.3, 1.0, scale=width)
    plain = jaxpt.mala(lambda w: jnp.sum(w**2) / 2, 0.3, 1.0)
    begin, key = jnp.array([0.3, -0.8]), jax.random.key(0)
    wide, state = scaled.update(None, scaled.init(begin * width), begin * width, key=key)
    narrow, other = plain.update(None, plain.init(begin), begin, key=key)
    np.testing.assert_allclose(wide / width, narrow, rtol=1e-5)
    np.testing.assert_allclose(*(s.reported.numbers["acceptance"] for s in (state, other)), rtol=1e-5)


@pytest.mark.parametrize("swap", [True, False])
def test_swaps_are_offered_while_the_ladder_adapts_unless_turned_off(swap):
    options = {} if swap else {"swap_while_tuning": False}
    engine = jaxpt.sampler(
        wells, jax.random.normal, temperature=[0.1, 0.2, 1.0], step_size=0.01, every=1, burn_in=8, adapt_ladder=True,
        window=4, **options,
    )  # fmt: skip
    _, trace = engine.run(engine.init(jax.random.key(0)), periods=12)
    assert trace.info.attempted[:8].any(-1).tolist() == [swap] * 8
    assert trace.info.attempted[8:].any(-1).all()
    assert len(np.unique(trace.info.beta[:, 1])) == 3, "the first ladder and two adaptations"
