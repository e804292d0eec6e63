"""Grid search: every replica keeps its hyperparameters."""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Key

from jaxpt.core import tree
from jaxpt.core.types import Info, Move, Observation
from jaxpt.rules.rule import Rule


@tree.register(data=())
@dataclasses.dataclass(frozen=True)
class Independent(Rule):
    """No replica ever moves: M separate runs with the values of the M rungs. The baseline for comparisons."""

    exchanges: ClassVar[bool] = False
    needs_beta: ClassVar[bool] = False

    def propose(self, key: Key[Array, ""], seen: Observation) -> tuple[Move, "Independent", Info]:
        """Returns a move that changes nothing (see `jaxpt.Rule`)."""
        del key
        return Move(seen.rung, seen.hyper), self, Info.none(seen.energy.shape[0])
