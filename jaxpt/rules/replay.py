"""The rule that makes a model follow a recorded path of hyperparameters."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxpt.core import tree
from jaxpt.core.types import Info, Move, Observation
from jaxpt.rules.rule import Rule


@tree.register(data=("path",))
@dataclasses.dataclass(frozen=True, eq=False)
class Replay(Rule):
    """After period t every replica takes the path's values of period t + 1; the last values stay forever.

    Args:
        path: {hyperparameter: one value per period}.
    """

    path: Mapping[str, Float[Array, " P"]]
    exchanges: ClassVar[bool] = False
    needs_beta: ClassVar[bool] = False

    def propose(self, key: Key[Array, ""], seen: Observation) -> tuple[Move, "Replay", Info]:
        """Returns a move to the next period's values (see `jaxpt.Rule`)."""
        del key
        replicas = seen.energy.shape[0]
        following = {
            name: jnp.broadcast_to(values[jnp.minimum(seen.turn + 1, values.shape[0] - 1)], (replicas,))
            for name, values in self.path.items()
        }
        return Move(seen.rung, {**seen.hyper, **following}), self, Info.none(replicas)
