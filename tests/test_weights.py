"""The weights of an ensemble: optimality, with the tolerance that the code states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt.results.weights import MAX_ITERATIONS, TOLERANCE, mixture_weights
from tests import conftest
from tests.test_ensemble import PROBLEM

ROUNDING = 1e-5
"""Of factors, means of float32 numbers of order one."""


def factors(energy, weights):
    """mean_i p_ki / sum_j w_j p_ji of each distribution k, and each example's mixed likelihood, in double precision."""
    likelihood = np.exp(energy.astype(np.float64).min(0) - energy)
    mixed = np.asarray(weights, np.float64) @ likelihood
    return (likelihood / mixed).mean(1), np.log(mixed) - energy.min(0)


def check_optimal(energy, weights):
    """The conditions of Karush, Kuhn and Tucker for a maximum on the simplex, and what follows from them."""
    weights = np.asarray(weights, np.float64)
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-5)
    assert (weights >= 0).all()
    factor, mixed = factors(energy, weights)
    assert factor.max() <= 1 + TOLERANCE + ROUNDING
    # The factors' weighted mean is 1 and none is larger than 1 + t, so none is below 1 - t / weight.
    used = weights > 0.01
    assert (np.abs(factor - 1)[used] <= (TOLERANCE + ROUNDING) / weights[used]).all()
    uniform = factors(energy, np.full(len(energy), 1 / len(energy)))[1]
    assert mixed.mean() >= uniform.mean() - ROUNDING, "at least as likely as equal weights"
    assert mixed.mean() >= -energy.astype(np.float64).mean(1).min() - TOLERANCE, "and as every single one"


def made(replicas, examples, spread, seed=0):
    """Energies with a part that all replicas share, one of each example, and one of each replica."""
    rng = np.random.default_rng(seed)
    own = spread * rng.normal(size=(replicas, examples)) + 0.1 * rng.normal(size=(replicas, 1))
    return (rng.exponential(size=examples) + own).astype(np.float32)


@pytest.mark.parametrize(
    ("replicas", "examples", "spread"), [(2, 50, 0.1), (4, 500, 1.0), (8, 1000, 0.3), (8, 2000, 3.0), (6, 300, 100.0)]
)
def test_they_satisfy_the_conditions_of_a_maximum(replicas, examples, spread):
    energy = made(replicas, examples, spread)
    check_optimal(energy, mixture_weights(jnp.asarray(energy)))


def test_a_known_maximum():
    """Each example is possible under one distribution only: the weights are the shares of the examples."""
    energy = np.full((3, 10), 1e4, np.float32)
    for example, replica in enumerate([0] * 5 + [1] * 3 + [2] * 2):
        energy[replica, example] = 0.5
    np.testing.assert_allclose(mixture_weights(jnp.asarray(energy)), [0.5, 0.3, 0.2], rtol=1e-5)


def test_a_replica_that_is_worse_everywhere_gets_nothing():
    energy = made(2, 200, 0.5)
    found = mixture_weights(jnp.asarray(np.concatenate([energy, energy[:1] + 1])))
    assert found[2] < 1e-4
    np.testing.assert_allclose(found[:2], mixture_weights(jnp.asarray(energy)), atol=0.02)


def test_energies_of_any_size_and_their_zero_do_not_matter():
    """Alone, exp(-E) of these would be zero or infinite in single precision."""
    energy = made(3, 100, 1.0)
    usual = mixture_weights(jnp.asarray(energy))
    shift = np.where(np.arange(100) % 2, 2048.0, -2048.0).astype(np.float32)
    np.testing.assert_allclose(mixture_weights(jnp.asarray(energy + shift)), usual, atol=1e-2)
    check_optimal(energy + shift, mixture_weights(jnp.asarray(energy + shift)))


def test_the_iterations_end():
    """The bound after T iterations, log(M) / T, holds where they end early as well."""
    energy = made(16, 400, 0.02, seed=3)
    weights = np.asarray(mixture_weights(jnp.asarray(energy)))
    assert factors(energy, weights)[0].max() - 1 <= max(TOLERANCE, 16 * np.log(16) / MAX_ITERATIONS) + ROUNDING


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_diverged_replica_has_weight_zero(value):
    energy = made(4, 100, 1.0)
    energy[2, 7] = value
    found = np.asarray(mixture_weights(jnp.asarray(energy)))
    assert found[2] == 0
    rest = [0, 1, 3]
    np.testing.assert_array_equal(found[rest], mixture_weights(jnp.asarray(energy[rest])))
    assert np.isnan(mixture_weights(jnp.full((2, 3), value))).all(), "there is nothing to weigh"


@pytest.fixture(scope="module")
def run(data):
    """Two seeds of four replicas, and their energies of 50 examples from the models themselves."""
    engine = conftest.make_engine(PROBLEM, rule=jaxpt.Tempering(1e-9), evaluation_batch=16)
    state, _ = engine.run(engine.init(jax.vmap(jax.random.key)(jnp.array([3, 11]))), data, periods=3)

    def energy(seed, slot):
        weights = jax.tree.map(lambda leaf: leaf[seed, slot], (state.replicas.params, state.replicas.model_state))
        return conftest.loss(engine.problem.model(*weights), data.valid)

    return engine, state, np.array([[energy(seed, slot) for slot in range(4)] for seed in (0, 1)])


@pytest.mark.slow
def test_each_seed_has_its_own_optimal_weights(run, data):
    engine, state, energy = run
    found = jaxpt.ensemble_weights(engine, state, data.valid)
    assert found.shape == (2, 4)
    assert not np.allclose(found[0], found[1], atol=0.01)
    for seed in (0, 1):
        check_optimal(energy[seed], found[seed])
        # EM from energies of another program: the maximum is flat, so weights agree less well than likelihoods.
        np.testing.assert_allclose(found[seed], mixture_weights(jnp.asarray(energy[seed])), atol=1e-2)


def test_the_likelihood_of_the_mixture_is_that_of_the_mean_prediction(run, data):
    """For cross-entropies exactly; so the mean prediction is at least as good as with equal weights or of one alone."""
    engine, state, energy = run
    weights = np.asarray(jaxpt.ensemble_weights(engine, state, data.valid))
    nll = {"nll": lambda p, batch: jaxpt.negative_log_likelihood(p, batch["y"])}
    rows = [weights, np.ones((2, 4)), *(np.eye(4)[[k, k]] for k in range(4))]
    found = jaxpt.ensemble(engine, state, data.valid, nll, weights=np.stack(rows))["nll"]
    for seed in (0, 1):
        np.testing.assert_allclose(found[0, seed], -factors(energy[seed], weights[seed])[1].mean(), rtol=1e-5)
        assert (found[0, seed] <= found[1:, seed] + ROUNDING).all()


def test_one_seed_is_a_run_of_its_own(run, data):
    engine, state, _ = run
    one = jax.tree.map(lambda leaf: leaf[1], state.replicas)
    alone = engine.init(jax.random.key(0))._replace(replicas=one)
    found = jaxpt.ensemble_weights(engine, alone, data.valid)
    assert found.shape == (4,)
    np.testing.assert_allclose(found, jaxpt.ensemble_weights(engine, state, data.valid)[1], atol=1e-4)


def test_a_problem_without_predictions_has_weights_too(run, data):
    """Only energies are needed."""
    engine, state, _ = run
    plain = conftest.make_engine(conftest.nnx_problem(), evaluation_batch=50)
    found = jaxpt.ensemble_weights(plain, state, data.valid)
    np.testing.assert_allclose(found, jaxpt.ensemble_weights(engine, state, data.valid), atol=1e-4)


def test_mistakes(run, data):
    engine, state, _ = run
    with pytest.raises(ValueError, match="examples holds no arrays"):
        jaxpt.ensemble_weights(engine, state, None)
    mean = jaxpt.nnx_problem(conftest.NnxNet, conftest.loss, energy=lambda m, b: conftest.loss(m, b).mean())
    with pytest.raises(ValueError, match="energy must give one number per example"):
        jaxpt.ensemble_weights(conftest.make_engine(mean), state, data.valid)
