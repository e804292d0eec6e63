"""Flax Linen layers whose strength is a hyperparameter: an array, filled in by name, different in every replica."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from jaxpt.models import noise

COLLECTION = "hyperparameters"
"""The variable collection whose entries the engine fills by name before each step."""


def _check_name(hyperparameter: Any) -> None:
    if not isinstance(hyperparameter, str):
        raise ValueError(
            f"hyperparameter must be a name, 'dropout_rate' say, but it is {hyperparameter!r}; the number itself goes "
            "on a ladder or into Engine(fixed={name: number})"
        )


class Dropout(nn.Module):
    """Dropout whose rate is the hyperparameter `hyperparameter`, a traced array.

    Attributes:
        hyperparameter: name of the hyperparameter that gives the rate, 0 to 1.
    """

    hyperparameter: str = "dropout_rate"

    def __post_init__(self) -> None:
        _check_name(self.hyperparameter)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool) -> Array:
        """Returns x with dropout, or x itself if `deterministic`."""
        if deterministic and not self.is_initializing():
            return x  # so that a trained model's variables will do without the collection
        rate = self.variable(COLLECTION, self.hyperparameter, jnp.zeros, ())
        return x if deterministic else noise.dropout(self.make_rng("dropout"), x, rate.value)


class GaussianNoise(nn.Module):
    """Additive Gaussian noise whose standard deviation is the hyperparameter `hyperparameter`.

    Attributes:
        hyperparameter: name of the hyperparameter that gives the standard deviation.
    """

    hyperparameter: str = "input_noise"

    def __post_init__(self) -> None:
        _check_name(self.hyperparameter)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool) -> Array:
        """Returns x with noise, or x itself if `deterministic`."""
        if deterministic and not self.is_initializing():
            return x
        std = self.variable(COLLECTION, self.hyperparameter, jnp.zeros, ())
        return x if deterministic else noise.gaussian(self.make_rng("noise"), x, std.value)
