"""Grid search: every replica keeps its hyperparameters."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Array, Bool, Float, Int, Key

from jaxpt.core import tree
from jaxpt.core.ladder import Ladder
from jaxpt.core.types import Info, Move
from jaxpt.rules.rule import Rule


@tree.register(data=())
@dataclasses.dataclass(frozen=True)
class Independent(Rule):
    """No replica ever moves: M separate runs with the values of the M rungs. The baseline for comparisons."""

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
        """Returns a move that changes nothing (see `jaxpt.Rule`)."""
        del key, turn, ladders, allowed
        return Move(rung, hyper), self, Info.none(energy.shape[0])
