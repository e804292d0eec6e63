"""The replicas of a run, its whole state, and its trace."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, Key, PyTree

from jaxpt.core.ladder import Ladder
from jaxpt.core.types import Hyper, Info, ModelState, Params


class Replicas(NamedTuple):
    """The replicas of a run; the leading axis of every leaf is M (with S seeds the leading axes are [S, M]).

    Attributes:
        params: [M, ...] trained weights.
        model_state: [M, ...] the models' other state, such as batch statistics.
        opt_state: [M, ...] the optimiser's state. Like params and model_state it stays with the replica in a swap.
        key: [M] key for each replica's dropout and noise; each step folds in its number.
        hyper: {name: [M]} the only source of truth for hyperparameters, those of the ladders and fixed ones.
        rung: {ladder: [M]} rung of each replica.
    """

    params: Params
    model_state: ModelState
    opt_state: PyTree
    key: Key[Array, " M"]
    hyper: Hyper
    rung: dict[str, Int[Array, " M"]]


class Reported(NamedTuple):
    """A part of an optimiser's state whose numbers the trace records, as means over each period's steps.

    Attributes:
        numbers: {name: number of the last step}.
    """

    numbers: dict[str, Float[Array, ""]]


class Moved(NamedTuple):
    """New weights as such, which a move of a sampler returns in place of updates: a difference would be rounded.

    Attributes:
        params: the weights after the step.
    """

    params: Params


class RunState(NamedTuple):
    """The complete state of a run: the rest of the run is a pure function of it.

    With S seeds every leaf but `step` and `period` has a further leading axis of length S.

    Attributes:
        replicas: leaves [M, ...].
        step: optimiser steps done.
        period: periods done.
        key: the seed's key. Data order, exchanges and probes fold their counters into it; it never changes.
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
    """The record of a run: one row per period, P rows; with S seeds [P, S, M] instead of [P, M].

    Attributes:
        step: optimiser steps done at the period's end.
        loss: mean training loss over the period's steps.
        valid: {"energy": ..., metric: ...} on the validation split (or probe batch) at the period's end.
        test: the same on the test split; empty without one.
        rung: {ladder: rung} during the period, before its exchange.
        hyper: {name: value} during the period, before its exchange; what a schedule and the cooldown make of it is not
            recorded (see `Lineage.scheduled`).
        info: record of the period's exchange; leaves [P, M-1], `ladder` [P] (with seeds [P, S, M-1] and [P, S]).
        cooldown: the cooldown's factor at the period's end, [P], see `Cooldown.fall`; None without a cooldown.
        reported: {name: mean over the period's steps} of numbers that the optimiser reports, such as the "acceptance"
            of `jaxpt.mala`; None if it reports none.
        draws: the results of `Engine.draws` at the period's end, a pytree with leaves [P, M, ...]; None without it.
    """

    step: Int[Array, " P"]
    loss: Float[Array, "P M"]
    valid: dict[str, Float[Array, "P M"]]
    test: dict[str, Float[Array, "P M"]]
    rung: dict[str, Int[Array, "P M"]]
    hyper: dict[str, Float[Array, "P M"]]
    info: Info
    cooldown: Float[Array, " P"] | None = None
    reported: dict[str, Float[Array, "P M"]] | None = None
    draws: PyTree = None
