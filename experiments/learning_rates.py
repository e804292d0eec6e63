"""Learning rates as temperatures: what experiments with such a ladder have in common."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from experiments.options import PaperOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningRateOptions(PaperOptions):
    """One learning rate for all replicas until --switch, then a ladder of learning rates; --decay lets all fall."""

    learning_rate: float = 0.1
    """Learning rate of all replicas until --switch."""
    decay: bool = False
    """Let learning rates fall along half a cosine from step 0 to zero at the last, that of --switch too, as one would
    without exchanges; beta stays 1 / the rung's value."""

    def schedule(self, h: Mapping[str, Array], step: Array) -> dict[str, Array]:
        """Returns the hyperparameters of a step, the learning rate in place of the rung's."""
        rate = jnp.where(step < self.switch, self.learning_rate, h["learning_rate"])
        return {**h, "learning_rate": falling(rate, step, self.steps) if self.decay else rate}


def falling(rate: Array, step: Array, steps: int) -> Array:
    """Returns a learning rate that falls from `rate` to zero along half a cosine over so many steps."""
    return rate * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))
