"""What a run goes on from, and what it records."""

from typing import Any, NamedTuple

from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from jaxpt.core.ladder import Ladder
from jaxpt.core.types import Info
from jaxpt.devices.placement import AXIS, SEED
from jaxpt.engine.replica import Replicas


class RunState(NamedTuple):
    """All there is to a run: what follows is a pure function of it.

    With S seeds every leaf but `step` and `period` has a further leading axis of length S.

    Attributes:
        replicas: leaves [M, ...].
        step: optimiser steps done.
        period: periods done.
        key: the seed. Data order, exchanges and probes fold their counters into it; it never changes.
        ladders: {name: ladder} the ladders in force.
        rule: the rule; its leaves are its state.
    """

    replicas: Replicas
    step: Int[Array, ""]
    period: Int[Array, ""]
    key: Key[Array, ""]
    ladders: dict[str, Ladder]
    rule: Any


class Trace(NamedTuple):
    """What a run records: one row per period, P of them; with S seeds [P, S, M] instead of [P, M].

    Attributes:
        step: optimiser steps done at the period's end.
        loss: mean training loss over the period's steps.
        valid: {"energy": ..., metric: ...} on the validation split (or probe batch) at the period's end.
        test: the same on the test split; empty without one.
        rung: {ladder: rung} during the period, before its exchange.
        hyper: {name: value} during the period, before its exchange; what a schedule makes of it is not recorded.
        info: what the period's exchange did; leaves [P, M-1], `ladder` [P] (with seeds [P, S, M-1] and [P, S]).
    """

    step: Int[Array, " P"]
    loss: Float[Array, "P M"]
    valid: dict[str, Float[Array, "P M"]]
    test: dict[str, Float[Array, "P M"]]
    rung: dict[str, Int[Array, "P M"]]
    hyper: dict[str, Float[Array, "P M"]]
    info: Info


def state_axes(seeds: int) -> Any:
    """Returns which axes of a `RunState`'s leaves count seeds and replicas; as `Placement` wants it.

    Args:
        seeds: 1 if the run has an axis of seeds, else 0.
    """
    make: Any = RunState
    lead = (SEED,) * seeds
    return make(replicas=P(*lead, AXIS), step=P(), period=P(), key=P(*lead), ladders=P(*lead), rule=P(*lead))


def trace_axes(seeds: int) -> Any:
    """Returns the same for a `Trace`, whose leaves lead with the periods."""
    make: Any = Trace
    lead = None, *(SEED,) * seeds
    row = P(*lead, AXIS)
    return make(step=P(), loss=row, valid=row, test=row, rung=row, hyper=row, info=P(*lead))
