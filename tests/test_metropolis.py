import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.rules.exchange import log_acceptance

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("cold", "hot", "expected"),
    [
        (1.0, 3.0, -4.0),  # the colder rung holds the lower energy: giving it up costs C dbeta dE = 2 * 1 * 2
        (3.0, 1.0, 0.0),  # it holds the higher one: swapped surely
        (2.0, 2.0, 0.0),
        (NAN, 1.0, 0.0),  # a broken replica leaves the colder rung surely
        (INF, 1.0, 0.0),
        (1.0, NAN, -INF),  # and never gets there
        (1.0, -INF, -INF),  # whichever way it is broken
        (NAN, INF, -INF),  # two broken ones stay
    ],
)
def test_log_acceptance(cold, hot, expected):
    found = log_acceptance(*(jnp.asarray(v, jnp.float32) for v in (2.0, 1.0, cold, hot)), 2.0)
    assert found == expected


def test_rungs_of_equal_temperature_swap_surely_unless_broken():
    one = jnp.ones(())
    assert log_acceptance(one, one, 5 * one, one) == 0
    assert log_acceptance(one, one, NAN * one, one) == -INF


def test_it_is_symmetric_in_the_two_rungs():
    rng = np.random.default_rng(0)
    beta, energy = jnp.asarray(rng.normal(size=(2, 2, 100)), jnp.float32)
    there = log_acceptance(beta[0], beta[1], energy[0], energy[1], 3.0)
    back = log_acceptance(beta[1], beta[0], energy[1], energy[0], 3.0)
    np.testing.assert_array_equal(there, back)
