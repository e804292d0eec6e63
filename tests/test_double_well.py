"""The whole engine as a sampler: Langevin replicas on a double well, all started in the higher well."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt

pytestmark = pytest.mark.users_compiler  # programs run for longer than they compile

TEMPERATURES = np.array([0.1, 0.2, 0.4, 0.7, 1.0])
RATE, EVERY, PERIODS, DROPPED, LADDERS = 0.002, 40, 2000, 500, 64


def energy(x):
    return (x**2 - 1) ** 2 + 0.1 * x


OBSERVABLES = {"right": lambda x: (x > 0) * 1.0, "square": lambda x: x**2, "energy": energy}


def sample(rule):
    """Means over time of each observable on each rung, [ladders, rungs]."""
    problem = jaxpt.energy_problem(
        energy, lambda key: jnp.ones(()), metrics={k: v for k, v in OBSERVABLES.items() if k != "energy"}
    )
    engine = jaxpt.Engine(
        problem,
        lambda h: jaxpt.langevin(RATE, h["temperature"]),
        jaxpt.Ladder(temperature=TEMPERATURES),
        rule,
        every=EVERY,
    )
    keys = jax.random.split(jax.random.key(0), LADDERS)
    _, trace = engine.run(engine.init(keys), periods=PERIODS)
    on_rung = np.argsort(trace.rung["temperature"], axis=-1)
    return {
        name: np.take_along_axis(np.asarray(trace.valid[name]), on_rung, -1)[DROPPED:].mean(0) for name in OBSERVABLES
    }


def deviations(rule):
    """Distance of each mean from numerical integration of exp(-E / T), in standard errors over ladders."""
    x = np.linspace(-4, 4, 200_001)
    found = {}
    for name, means in sample(rule).items():
        weight = np.exp(-energy(x)[None] / TEMPERATURES[:, None])
        exact = (OBSERVABLES[name](x) * weight).sum(-1) / weight.sum(-1)
        found[name] = (means.mean(0) - exact) / (means.std(0, ddof=1) / np.sqrt(LADDERS) + 1e-12)
    return found


@pytest.mark.slow
def test_every_rung_has_the_right_marginal_with_exchanges():
    """Within 3 standard errors; the step's own error, of order RATE, is well below one."""
    for name, deviation in deviations(jaxpt.Tempering(1.0)).items():
        assert np.abs(deviation).max() < 3, (name, deviation)


@pytest.mark.slow
def test_and_it_fails_without_them():
    cold = {name: deviation[0] for name, deviation in deviations(jaxpt.Independent()).items()}
    assert abs(cold["right"]) > 10, "the coldest rung never leaves the well that it started in"


@pytest.mark.slow
@pytest.mark.parametrize("C", [-1.0, 0.3])
def test_and_it_fails_with_a_wrong_acceptance(C):
    """The sign flipped, or another C than the 1 that samples exp(-E / T)."""
    rule = jax.tree.map(lambda _: C, jaxpt.Tempering(1.0))  # past the constructor, which refuses C < 0
    assert max(np.abs(d).max() for d in deviations(rule).values()) > 6
