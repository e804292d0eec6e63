"""Log evidence against exact values: of energies drawn exactly, and of runs of the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

import jaxpt
from jaxpt import diagnostics
from tests.diagnostics.test_traces import made_up

METHODS = ("bridge", "stepping_stone", "thermodynamic")


def drawn(temperature, degrees, periods, seeds, seed=0):
    """A trace of harmonic oscillators: on a rung of temperature T the energy is T times a gamma variable."""
    rng = np.random.default_rng(seed)
    rungs = len(temperature)
    trace = made_up([0.5] * (rungs - 1), periods=periods, seeds=seeds)
    on_rung = temperature * rng.gamma(degrees / 2, size=np.shape(trace.rung["x"]))
    beta = np.broadcast_to(1 / temperature, trace.info.beta.shape)
    energy = np.take_along_axis(on_rung, np.asarray(trace.rung["x"]), -1)
    return trace._replace(valid={"energy": energy}, info=trace.info._replace(beta=beta))


@pytest.mark.parametrize("seeds", [None, 8])
def test_free_energies_of_harmonic_oscillators(seeds):
    """Six degrees of freedom at the temperatures 6 to 10: log Z grows by 3 log(7 / 6), 3 log(8 / 7), ..."""
    temperature = np.arange(6.0, 11.0)
    found = diagnostics.log_evidence(drawn(temperature, 6, 4000, seeds))
    np.testing.assert_allclose(
        3 * np.log(temperature[:-1] / temperature[1:]), [-0.4625, -0.4006, -0.3533, -0.3161], atol=1e-4
    )
    exact = 3 * np.log(temperature / temperature[-1])
    for method in METHODS:
        value, error = getattr(found, method), getattr(found, method + "_error")
        assert (np.abs(value - exact)[:-1] < 4 * error[:-1]).all(), method
        assert (error[:-1] < 0.02).all(), method
        assert value[-1] == error[-1] == 0


def test_errors_are_those_of_repeated_runs():
    """The spread of 40 runs, within a factor of 1.6; a wrong factor of the square root of their length is no less."""
    temperature = np.array([1.0, 2.0, 4.0])
    runs = [diagnostics.log_evidence(drawn(temperature, 4, 400, None, seed=k)) for k in range(40)]
    for method in METHODS:
        spread = np.std([getattr(run, method)[0] for run in runs], ddof=1)
        told = np.mean([getattr(run, method + "_error")[0] for run in runs])
        assert 1 / 1.6 < told / spread < 1.6, method


def test_too_short_a_run_is_refused():
    with pytest.raises(ValueError, match="log evidence needs 40 exchanges"):
        diagnostics.log_evidence(drawn(np.array([1.0, 2.0]), 2, 20, None))


def run(energy, prior, init, beta, steps, every=5, seeds=8, **options):
    engine = jaxpt.sampler(
        energy, init, inverse_temperature=beta, prior=prior, step_size=0.1, every=every, burn_in=steps // 4,
        adapt_step_size=True, init_is_prior=True, draws=None, **options,
    )  # fmt: skip
    result = jaxpt.fit(engine, steps=steps, seeds=range(seeds), progress=False)
    return diagnostics.log_evidence(diagnostics.window(result.trace, steps // 4))


@pytest.mark.slow
def test_a_gaussian_in_a_ball():
    """exp(-|x|^2 / 2) over a ball of radius 10 in five dimensions, with the uniform prior: -8.579."""
    dimensions, radius = 5, 10.0
    volume = np.pi ** (dimensions / 2) / special.gamma(dimensions / 2 + 1) * radius**dimensions
    inside = 2 ** (dimensions / 2 - 1) * special.gamma(dimensions / 2) * special.gammainc(dimensions / 2, radius**2 / 2)
    exact = np.log(inside * dimensions * volume / radius**dimensions) - np.log(volume)
    assert exact == pytest.approx(-8.579, abs=1e-3)

    def init(key):
        direction, length = jax.random.split(key)
        x = jax.random.normal(direction, (dimensions,))
        return radius * x / jnp.linalg.norm(x) * jax.random.uniform(length) ** (1 / dimensions)

    prior = lambda x: jnp.where(jnp.sum(x**2) < radius**2, -np.log(volume), -jnp.inf)
    beta = [1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.015, 0.007, 0.0]
    found = run(lambda x: jnp.sum(x**2) / 2, prior, init, beta, steps=8000)
    assert abs(found.bridge[0] - exact) < 4 * found.bridge_error[0] < 0.2
    assert abs(found.stepping_stone[0] - exact) < 4 * found.stepping_stone_error[0] < 0.4
    assert abs(found.thermodynamic[0] - exact) < 4 * found.thermodynamic_error[0] + 0.05


def shells(x):
    """Minus the log likelihood of two Gaussian shells of radius 2 and width 0.1, centred at -3.5 and 3.5."""
    centres = jnp.zeros((2, x.shape[0])).at[:, 0].set(jnp.array([-3.5, 3.5]))
    distance = jnp.linalg.norm(x - centres, axis=-1) - 2.0
    return -jax.nn.logsumexp(-(distance**2) / 0.02 - 0.5 * jnp.log(2 * jnp.pi * 0.01))


@pytest.mark.slow
@pytest.mark.parametrize(("dimensions", "value"), [(2, -1.746), (5, -5.674)])
def test_two_gaussian_shells(dimensions, value):
    """With a uniform prior on [-6, 6] in each dimension. Both shells must be visited."""
    power, surface = dimensions - 1, 2 * np.pi ** (dimensions / 2) / special.gamma(dimensions / 2)
    within = lambda r: r**power * np.exp(-((r - 2) ** 2) / 0.02) / np.sqrt(2 * np.pi * 0.01)
    exact = np.log(2 * surface * integrate.quad(within, 0, 6, points=[2])[0] / 12**dimensions)
    assert exact == pytest.approx(value, abs=2e-3)
    prior = lambda x: jnp.where(jnp.all(jnp.abs(x) < 6), -dimensions * np.log(12.0), -jnp.inf)
    init = lambda key: jax.random.uniform(key, (dimensions,), minval=-6.0, maxval=6.0)
    beta = [*np.geomspace(1.0, 0.001, 10), 0.0]
    found = run(shells, prior, init, beta, steps=8000)
    for method in METHODS[:2]:
        error = getattr(found, method + "_error")[0]
        assert abs(getattr(found, method)[0] - exact) < 4 * error < 0.6, method
