"""What experiments with a ladder of learning rates have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cifar10_learning_rate, emnist_learning_rate, resnet
from tests.experiments.test_paper import chosen

EXPERIMENTS = (emnist_learning_rate, cifar10_learning_rate, resnet)


def rates(options, step):
    """What a schedule makes of the options' own ladder at a step."""
    h = {"learning_rate": jnp.asarray(options.rungs(), jnp.float32), "dropout_rate": jnp.float32(0.3)}
    found = jax.jit(options.schedule)(h, jnp.int32(step))
    assert found["dropout_rate"] == jnp.float32(0.3), "what is no learning rate stays as it is"
    return np.broadcast_to(found["learning_rate"], options.replicas)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_one_rate_until_the_switch_then_the_ladder(experiment):
    options = chosen(experiment, "--steps", 100, "--switch", 40, "--learning-rate", 0.2)
    np.testing.assert_array_equal(rates(options, 39), np.float32(0.2))
    np.testing.assert_array_equal(rates(options, 40), options.rungs().astype(np.float32))
    np.testing.assert_array_equal(rates(options, 99), options.rungs().astype(np.float32))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_decay_is_half_a_cosine_over_all_steps(experiment):
    options = chosen(experiment, "--steps", 100, "--switch", 0, "--decay")
    rungs = options.rungs()
    for step, factor in {0: 1.0, 25: 0.5 + np.sqrt(0.125), 50: 0.5, 100: 0.0}.items():
        np.testing.assert_allclose(rates(options, step), rungs * factor, rtol=1e-5, atol=1e-9)
    options = chosen(experiment, "--steps", 100, "--switch", 40, "--decay")
    np.testing.assert_allclose(rates(options, 25), options.learning_rate * (0.5 + np.sqrt(0.125)), rtol=1e-5)


def test_rungs_have_equal_differences_or_equal_ratios():
    given = ("--coldest", 0.01, "--hottest", 0.16, "--replicas", 5)
    np.testing.assert_allclose(np.diff(chosen(resnet, *given).rungs()), 0.0375)
    found = chosen(resnet, *given, "--spacing", "geometric").rungs()
    np.testing.assert_allclose(found, [0.01, 0.02, 0.04, 0.08, 0.16])
