"""Flax NNX layers whose strength is a hyperparameter: an array, filled in by name, different in every replica."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from jaxpt.models import noise


class Hyperparameter(nnx.Variable):
    """A number in a model that the engine fills by name before each step; `tag` is the name.

        self.scale = Hyperparameter(jnp.zeros(()), tag="scale")     # then read self.scale[...]

    It is neither trained nor part of a replica's weights, so a swap changes it like any other hyperparameter. It is for
    training: in evaluation, where all rungs are scored by the same function, it is NaN, so do not read it there.
    """


class _Noise(nnx.Module):
    """Applies `apply(key, x, strength)` in training mode and nothing in evaluation mode."""

    def __init__(self, name: str, apply: Callable[[Key[Array, ""], Array, Array], Array], stream: str, rngs: nnx.Rngs):
        if not isinstance(name, str):
            raise ValueError(
                f"name must be a hyperparameter's, {type(self).__name__}('dropout_rate', rngs=rngs) say, but it is "
                f"{name!r}; the number itself goes on a ladder or into Engine(fixed={{name: number}})"
            )
        self.strength = Hyperparameter(jnp.zeros(()), tag=name)
        self.apply = apply
        self.deterministic = False
        self.rngs = rngs[stream].fork()

    def __call__(self, x: Array) -> Array:
        if self.deterministic:
            return x
        return self.apply(self.rngs(), x, self.strength[...])

    def set_view(self, deterministic: bool | None = None) -> None:
        """Lets `nnx.view` switch between training and evaluation."""
        if deterministic is not None:
            self.deterministic = deterministic


class Dropout(_Noise):
    """Dropout whose rate is the hyperparameter `name`, a traced array (`nnx.Dropout` needs a Python number).

    Args:
        name: the hyperparameter that gives the rate, 0 to 1.
        rngs: random streams; the stream `dropout` is used.
    """

    def __init__(self, name: str = "dropout_rate", *, rngs: nnx.Rngs):
        super().__init__(name, noise.dropout, "dropout", rngs)


class GaussianNoise(_Noise):
    """Additive Gaussian noise whose standard deviation is the hyperparameter `name`; first in a model: input noise.

    Args:
        name: the hyperparameter that gives the standard deviation.
        rngs: random streams; the stream `noise` is used.
    """

    def __init__(self, name: str = "input_noise", *, rngs: nnx.Rngs):
        super().__init__(name, noise.gaussian, "noise", rngs)
