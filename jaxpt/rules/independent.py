"""Grid search: every replica keeps its hyperparameters."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxpt.core import tree
from jaxpt.core.ladder import Ladder
from jaxpt.core.types import Info, Move


@tree.register(data=())
@dataclasses.dataclass(frozen=True)
class Independent:
    """Nobody ever moves: M runs with the M rungs' values, the baseline of every comparison."""

    exchanges: ClassVar[bool] = False
    needs_beta: ClassVar[bool] = False

    def propose(
        self,
        key: Key[Array, ""],
        turn: Int[Array, ""],
        energy: Float[Array, " M"],
        rung: dict[str, Int[Array, " M"]],
        hyper: dict[str, Float[Array, " M"]],
        ladders: Mapping[str, Ladder],
        allowed: Bool[Array, ""],
    ) -> tuple[Move, "Independent", Info]:
        """Returns a move that leaves everything as it is (see `jaxpt.Rule`)."""
        none = jnp.zeros(energy.shape[0] - 1, bool)
        info = Info(jnp.zeros((), jnp.int32), none, none, jnp.zeros(none.shape, jnp.float32))
        return Move(rung, hyper), self, info
