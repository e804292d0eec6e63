"""The best replica of a whole run, with its weights of that time, for early stopping."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxpt.core import tree
from jaxpt.core.state import RunState, Trace
from jaxpt.engine.engine import Engine


class Kept(NamedTuple):
    """One replica at the end of an earlier period; NumPy arrays.

    Attributes:
        step: optimiser steps done at that time.
        replica: its slot.
        weights: (params, model_state) of this replica alone.
        valid: {"energy": ..., metric: ...} at that time, on the validation split or the period's probe.
        test: the same on the test split.
        rung: {ladder: rung} during that period.
        hyper: {name: value} during that period.
    """

    step: np.ndarray
    replica: np.ndarray
    weights: PyTree
    valid: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    rung: dict[str, np.ndarray]
    hyper: dict[str, np.ndarray]


class Keeper:
    """Keeps each seed's replica with the lowest energy over all periods.

    Args:
        engine: the engine of the run.
        seeds: the run's number of seeds; None: one, without an axis of seeds.
        kept: the replicas kept by an earlier part of the run, one for each seed; None: nothing.
    """

    def __init__(self, engine: Engine, seeds: int | None, kept: Sequence[Kept | None] | None = None):
        self._engine = engine
        self._leads: list[tuple[int, ...]] = [()] if seeds is None else [(seed,) for seed in range(seeds)]
        self.kept: list[Kept | None] = list(kept) if kept else [None] * len(self._leads)

    def look(self, state: RunState, row: Trace) -> None:
        """Processes one period: `row` is its row of the trace [1, ...], `state` the state after it.

        Weights with a new lowest energy are copied to the host. If the rule has copied weights at the end of the
        period, they are taken from a replica that received them.
        """
        for place, lead in enumerate(self._leads):
            energy = np.asarray(row.valid["energy"][0][lead])
            replica = int(np.argmin(np.where(np.isfinite(energy), energy, np.inf)))
            before = self.kept[place]
            if not np.isfinite(energy[replica]) or (before is not None and energy[replica] >= before.valid["energy"]):
                continue
            slot = replica
            if row.info.parents is not None:
                heirs = np.flatnonzero(np.asarray(row.info.parents[0][lead]) == replica)
                if not heirs.size:  # overwritten, and no replica received a copy
                    continue
                slot = int(heirs[0])
            found: Any = tree.take((state.replicas.params, state.replicas.model_state), (*lead, slot))
            weights = jax.tree.map(np.array, self._engine.placed.gathered(found))
            index = (0, *lead, replica)
            scores = (
                {name: np.asarray(v[index]) for name, v in part.items()}
                for part in (row.valid, row.test, row.rung, row.hyper)
            )
            self.kept[place] = Kept(np.asarray(row.step[0]), np.asarray(replica), weights, *scores)

    def saved(self) -> dict[str, Kept]:
        """Returns the kept replicas for a checkpoint, {index of the seed: replica}."""
        return {str(place): kept for place, kept in enumerate(self.kept) if kept is not None}


def abstract(state: RunState, trace: Trace, seeds: Collection[str]) -> dict[str, Kept]:
    """Returns the shapes of `Keeper.saved`, given the shapes of the state and of a trace.

    Args:
        state: the shapes of a state.
        trace: the shapes of a trace.
        seeds: the indices of the seeds that it holds: those that have had a finite energy.
    """
    lead = state.key.ndim

    def one(leaf: Any, skip: int) -> np.ndarray:
        return np.zeros(leaf.shape[skip:], leaf.dtype)

    weights = jax.tree.map(lambda leaf: one(leaf, lead + 1), (state.replicas.params, state.replicas.model_state))
    parts = (
        {name: one(leaf, lead + 2) for name, leaf in part.items()}
        for part in (trace.valid, trace.test, trace.rung, trace.hyper)
    )
    shapes = Kept(np.zeros((), trace.step.dtype), np.zeros((), int), weights, *parts)
    return {str(place): shapes for place in range(state.key.shape[0] if lead else 1) if str(place) in seeds}


def lowest_energy(energy: np.ndarray) -> tuple[int, float]:
    """Returns how many seeds have no finite energy, and the mean of the lowest of the others; infinite without others.

    The tuples of two checkpoints compare: fewer lost seeds are better, then a lower energy.

    Args:
        energy: [M] or [S, M].
    """
    rows = np.where(np.isfinite(energy), energy, np.inf).reshape(-1, energy.shape[-1]).min(-1)
    found = rows[np.isfinite(rows)]
    return len(rows) - len(found), float(found.mean(dtype=np.float64)) if len(found) else np.inf


def rank(metrics: Any) -> Any:
    """Returns what orders checkpoints, given what `lowest_energy` said of them; older ones count no lost seeds."""
    return metrics.get("lost_seeds", 0), metrics.get("energy", np.inf)


def in_order(loaded: Mapping[str, Kept], seeds: int) -> list[Kept | None]:
    """Returns the kept replicas as a list, one per seed, from a checkpoint's mapping."""
    return [loaded.get(str(place)) for place in range(seeds)]


def best_kept(kept: Sequence[Kept | None] | None, trace: Trace, lead: tuple[int, ...]) -> Kept:
    """Returns the kept replica of one seed; warns if a lower energy occurred before the run began to keep replicas.

    Args:
        kept: one replica for each seed; None: the run kept none.
        trace: the trace of the whole run.
        lead: the seed's index, () in a run with one seed.

    Raises:
        ValueError: the run kept none, or none of its energies were finite.
    """
    if kept is None:
        raise ValueError("the run has not kept its best replica; give fit(..., keep_best=True), or patience=...")
    found = kept[lead[0] if lead else 0]
    if found is None:
        raise ValueError("no period of the run had a finite energy, so none is the best")
    index: Any = (slice(None), *lead)
    energy = np.asarray(trace.valid["energy"])[index]
    lowest = np.where(np.isfinite(energy), energy, np.inf).min()
    if lowest < found.valid["energy"]:
        warnings.warn(
            f"the lowest energy, {lowest:.4g}, was reached before the run began to keep its best replica; this is the "
            "best since then",
            stacklevel=4,
        )
    return found
