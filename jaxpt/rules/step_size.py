"""Step sizes of a sampler's moves, adapted rung by rung during burn-in."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxpt.core import tree
from jaxpt.core.ladder import Ladder
from jaxpt.core.types import AnyArray, Info, Move, Observation
from jaxpt.rules.exchange import replicas_on
from jaxpt.rules.rule import Rule


@tree.register(data=("rule", "target", "frozen"), meta=("name",))
@dataclasses.dataclass(frozen=True, eq=False)
class AdaptedStepSize(Rule):
    """Another rule, and before each of its decisions in burn-in a better step size on each rung.

    After period n of burn-in the logarithm of a rung's step size grows by (acceptance - target) / sqrt(n), where the
    acceptance is the mean over the period's steps that the optimiser reports (Robbins and Monro 1951). At the end of
    burn-in step sizes are frozen, so from then on each rung's moves are those of one fixed kernel.

    Args:
        rule: the rule that decides everything else.
        target: the wanted acceptance of moves.
        name: the hyperparameter on the ladder that is the step size (static).

    Attributes:
        frozen: whether burn-in is over.
    """

    rule: Rule
    target: Float[AnyArray, ""] | float
    name: str = "step_size"
    frozen: Bool[AnyArray, ""] | bool = dataclasses.field(init=False, repr=False, default=False)

    @property
    def exchanges(self) -> bool:  # type: ignore[override]
        """As the other rule."""
        return self.rule.exchanges

    @property
    def needs_beta(self) -> bool:  # type: ignore[override]
        """As the other rule."""
        return self.rule.needs_beta

    @property
    def swap_while_tuning(self) -> bool:  # type: ignore[override]
        """As the other rule."""
        return self.rule.swap_while_tuning

    def check(self, engine: Any) -> None:
        """Raises ValueError if the other rule does not fit, or there is no burn-in to adapt in."""
        if engine.burn_in < engine.every:
            raise ValueError(
                f"the step size is adapted once a period of burn-in, but burn_in={engine.burn_in} holds no period of "
                f"every={engine.every} steps; give burn_in={100 * engine.every}, say"
            )
        self.rule.check(engine)

    def init(self, ladders: Mapping[str, Ladder]) -> "AdaptedStepSize":
        """Returns the rule at the start of a run over these ladders."""
        return self._replaced(self.rule.init(ladders), jnp.asarray(False))

    def propose(self, key: Key[Array, ""], seen: Observation) -> tuple[Move, "AdaptedStepSize", Info]:
        """Adapts the step sizes and lets the other rule decide (see `jaxpt.Rule`)."""
        ladders, frozen = dict(seen.ladders), self.frozen | seen.allowed
        mine = next(name for name, ladder in ladders.items() if self.name in ladder.values)
        if seen.reported is None:
            raise ValueError("the optimiser reports no acceptance of its moves, which the step size is adapted to")
        accepted = seen.reported["acceptance"][replicas_on(seen.rung[mine])]
        old = ladders[mine].values[self.name]
        grown = old * jnp.exp((accepted - self.target) / jnp.sqrt(1.0 + seen.turn))
        fixed = frozen | jnp.isnan(accepted)  # NaN: a kernel that does not tell
        ladders[mine] = _with_value(ladders[mine], self.name, jnp.where(fixed, old, grown))
        move, rule, info = self.rule.propose(key, seen._replace(ladders=ladders))
        after = dict(move.ladders or ladders)
        hyper = {**move.hyper, self.name: after[mine].values[self.name][move.rung[mine]]}
        return move._replace(hyper=hyper, ladders=after), self._replaced(rule, frozen), info

    def _replaced(self, rule: Rule, frozen: Any) -> "AdaptedStepSize":
        changed = copy.copy(self)
        object.__setattr__(changed, "rule", rule)
        object.__setattr__(changed, "frozen", frozen)
        return changed


def _with_value(ladder: Ladder, name: str, value: Float[Array, " M"]) -> Ladder:
    changed = copy.copy(ladder)
    object.__setattr__(changed, "values", {**ladder.values, name: value})
    return changed
