"""The base class of rules, with defaults for everything but the decision itself."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Array, Key

from jaxpt.core.types import Info, Move, Observation


class Rule(abc.ABC):
    """Decides after each period which hyperparameters each replica uses next.

    A rule is a pytree; `jax.tree_util.register_dataclass` turns a frozen dataclass into one. Its leaves are its state,
    which the run carries and saves; its static part selects code.

    >>> @jax.tree_util.register_dataclass
    ... @dataclasses.dataclass(frozen=True)
    ... class Reverse(jaxpt.Rule):
    ...     needs_beta = False
    ...
    ...     def propose(self, key, seen):
    ...         last = len(seen.energy) - 1
    ...         turned = {name: jnp.where(seen.allowed, last - place, place) for name, place in seen.rung.items()}
    ...         moved = {k: v[turned[name]] for name, ladder in seen.ladders.items() for k, v in ladder.values.items()}
    ...         return jaxpt.Move(turned, {**seen.hyper, **moved}), self, jaxpt.Info.none(last + 1)
    >>> turning = dataclasses.replace(engine, rule=Reverse())
    >>> state, trace = turning.run(turning.init(jax.random.key(0)), jaxpt.Data(train, valid), periods=2)
    >>> trace.rung["learning_rate"].tolist()
    [[0, 1, 2, 3], [3, 2, 1, 0]]

    Attributes:
        exchanges: whether replicas receive anything from each other; the rule then needs at least two replicas and a
            validation energy.
        needs_beta: whether `propose` uses inverse temperatures; if false, ladders may lack them.
        moves_values: whether the rule changes a replica's values but not its rung (PBT); the rung then does not tell
            its values.
        noise_corrected: whether `propose` sees the noise of the energies (`Observation.variance`). The engine then
            needs `probe`.
        swap_while_tuning: whether swaps are also offered during burn-in.
    """

    exchanges: ClassVar[bool] = True
    needs_beta: ClassVar[bool] = True
    moves_values: ClassVar[bool] = False
    noise_corrected: bool = False
    swap_while_tuning: bool = False

    def check(self, engine: Any) -> None:  # noqa: B027  any engine fits by default
        """Raises ValueError if the rule does not fit the engine.

        Args:
            engine: has the fields of `jaxpt.Engine`, and `ladders` and `num_replicas`.
        """

    def init(self, ladders: Mapping[str, Any]) -> "Rule":
        """Returns the rule at the start of a run; override it if the shape of the state depends on the ladders.

        Args:
            ladders: {name: Ladder} as arrays. The result must have the same pytree structure as `self`.
        """
        del ladders
        return self

    @abc.abstractmethod
    def propose(self, key: Key[Array, ""], seen: Observation) -> tuple[Move, "Rule", Info]:
        """Returns the move, the rule's next state and the record for the trace.

        Args:
            key: key of this exchange.
            seen: what the rule decides by: energies, rungs, hyperparameters and more.

        The state before the first step is made only if names, shapes and types fit: `Engine.init` traces `propose` once
        and raises ValueError otherwise. That rungs are a permutation, and values those of the rungs, is up to the rule.
        """
