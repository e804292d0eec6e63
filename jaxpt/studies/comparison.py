"""Engines on the same seeds: are exchanges, or another rule, worth it on a user's own problem?"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree

from jaxpt.core.data import Data
from jaxpt.core.decimals import shortest
from jaxpt.core.state import Trace
from jaxpt.engine.engine import Engine
from jaxpt.models.scores import Metric, declared_metrics, is_higher_better
from jaxpt.results.comparison import Arm, Comparison
from jaxpt.results.ensemble import EnsembleMetric
from jaxpt.results.ensemble import ensemble as mean_prediction
from jaxpt.results.record import pick
from jaxpt.results.result import Result
from jaxpt.studies.arms import (
    check_metrics,
    check_options,
    checked_engines,
    checked_ensemble,
    checked_scores,
    folders_of,
    groups_of,
)
from jaxpt.training.fit import fit


def compare(
    engines: Mapping[str, Engine],
    train: PyTree = None,
    valid: PyTree = None,
    *,
    steps: int,
    seeds: Sequence[int] = range(5),
    test: PyTree = None,
    on: str = "energy",
    baseline: str | None = None,
    ensemble: Mapping[str, EnsembleMetric | Metric] | None = None,
    directory: str | os.PathLike[str] | None = None,
    at_once: int | None = None,
    keep: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> Comparison:
    """Runs several engines by `fit` on the same seeds and compares their best replicas, paired by seed.

        >>> grid = dataclasses.replace(engine, rule=jaxpt.Independent())
        >>> error = lambda p, batch: jaxpt.zero_one_loss(p, batch["y"])
        >>> found = jaxpt.compare(
        ...     {"tempering": engine, "grid": grid}, train, valid, steps=50, seeds=range(2), baseline="grid",
        ...     ensemble={"error": error},
        ... )
        >>> found.arms["tempering"].valid["energy"].shape, found.equal_compute
        ((2,), True)
        >>> found.differences("tempering", "error", what="ensemble").shape
        (2,)

    In each arm the replica of a seed is the best one on the validation split at the end of the run, as
    `Result.best(on, seed)` chooses it; its scores on the test split are then an honest estimate. Arms with the same
    problem, number of replicas and batch size begin with the same weights and train on the same minibatches, so
    differences paired by seed vary less than scores do. Compare arms of equal compute: the result reports the training
    examples that each used. With several processes all of them make the call.

    Args:
        engines: {name of the arm: engine}. Their problems must have the same scores.
        train: training split, as in `fit`. A stream must be one that can be read anew for each arm, a loader and not an
            iterator.
        valid: validation split.
        steps: optimiser steps of each replica.
        seeds: the seeds; each arm trains a whole ladder for each.
        test: test split; nothing is chosen on it. Without it the scores compared are those on the validation split,
            which are too good.
        on: "energy" or a metric, the score by which the replica is chosen.
        baseline: the arm to which differences are taken; by default the first.
        ensemble: {name: function(predictions [B, ...], batch) -> [B], or a `jaxpt.Metric` of one}, scores of the mean
            prediction of all replicas of a seed, see `jaxpt.ensemble`. A metric with the name of one of the problem's
            (or "energy") is shown beside it. The problems need `predict`.
        directory: the arm NAME is saved in DIRECTORY/NAME, see `fit`. The same call then resumes; finished arms are
            read, not run again.
        at_once: train at most this many seeds in one run, which bounds memory; by default all. A run is then saved in
            DIRECTORY/NAME/seeds-FIRST-LAST, so a call with further seeds reads the groups that are done. The numbers
            are the same up to rounding.
        keep: keep the whole results, with the weights of all replicas of all arms; by default only scores and traces.
        progress: show a progress bar on stderr for each run; by default if stderr is a terminal.
        **options: `prng`, `save_every`, `save_minutes` and `recorders`, as in `fit`.

    Returns:
        The scores of all arms, with a table as their text; see `Comparison`.

    Raises:
        ValueError: engines is not a mapping of names to engines, or is empty; their scores differ; no such baseline or
            score; seeds are not distinct integers; an ensemble of a problem without predictions; two arms whose names
            are the same directory; another option of `fit`. All this is found before the first step of the first arm.
            Otherwise as in `fit`, as are other errors.
    """
    engines = checked_engines(engines, baseline)
    groups = groups_of(engines, seeds, at_once)
    check_options(options, len(engines) * len(groups))
    metrics = checked_ensemble(engines, ensemble)
    folders = folders_of(engines, directory)
    data = Data(train, valid, test)
    on = checked_scores(engines, data, on)
    check_metrics(engines, data, metrics)
    plan = _Plan(data, int(steps) if isinstance(steps, np.integer) else steps, groups, on, metrics, keep)
    options = {"progress": progress, **options}
    arms = {}
    for name, engine in engines.items():
        try:
            arms[name] = _arm(plan, name, engine, folders[name], options)
        except Exception as error:
            error.add_note(f"in the arm {name!r} of the comparison")
            raise
    first = next(iter(engines))
    chosen = tuple(seed for group in groups for seed in group)
    return Comparison(
        arms, baseline or first, chosen, plan.steps, on, _directions(engines[first], arms[first], metrics)
    )


class _Plan(NamedTuple):
    """What all arms share."""

    data: Data
    steps: int
    groups: list[list[int]]
    """The seeds of each run of `fit`."""
    on: str
    metrics: dict[str, EnsembleMetric]
    keep: bool


class _Run(NamedTuple):
    """The numbers of one run of `fit`: those of an `Arm` for some of the seeds."""

    replica: Int[np.ndarray, " S"]
    scores: tuple[dict[str, Float[np.ndarray, " S"]], ...]
    """Those of the best replica on validation and test, then those of the ensemble."""
    trace: Trace
    images: int
    seconds: float
    compile_seconds: float
    result: Result | None


def _arm(plan: _Plan, name: str, engine: Engine, folder: Path | None, options: Mapping[str, Any]) -> Arm:
    """Runs one arm, in as many runs of `fit` as there are groups of seeds."""
    runs = []
    for group in plan.groups:
        place, description = folder, name
        if len(plan.groups) > 1:
            place = None if folder is None else folder / f"seeds-{group[0]}-{group[-1]}"
            description = f"{name}, seeds {group[0]} .. {group[-1]}"
        result = fit(
            engine,
            plan.data.train,
            plan.data.valid,
            steps=plan.steps,
            seeds=group,
            test=plan.data.test,
            directory=place,
            description=description,
            **options,
        )
        runs.append(_numbers(plan, result))
        del result  # the weights of a run go before the next one begins
    seeds = sum(map(len, plan.groups))
    scores = jax.tree.map(lambda *parts: np.concatenate(parts), *(run.scores for run in runs))
    valid, test, mixed_valid, mixed_test = scores
    return Arm(
        np.concatenate([run.replica for run in runs]),
        valid,
        test,
        mixed_valid,
        mixed_test,
        replicas=engine.num_replicas,
        examples=sum(run.images for run in runs) / seeds,
        seconds=sum(run.seconds for run in runs),
        compile_seconds=sum(run.compile_seconds for run in runs),
        trace=_beside([run.trace for run in runs]),
        results=tuple(run.result for run in runs if run.result is not None),
    )


def _numbers(plan: _Plan, result: Result) -> _Run:
    """Returns the numbers of a finished run."""
    seeds = range(result.num_seeds or 1)
    replica = np.array([pick(result, plan.on, seed) for seed in seeds])
    # A diverged replica is the best one only if all of them have diverged.
    healthy = np.isfinite(result.valid["energy"][seeds, replica])
    best = [_known({name: v[seeds, replica] for name, v in s.items()}, healthy) for s in (result.valid, result.test)]
    mixed: list[dict[str, Any]] = [{}, {}]
    if plan.metrics:
        # Replicas that have diverged do not count, also if their predictions are finite.
        weights = np.isfinite(result.valid["energy"]).astype(np.float32)
        weights[~healthy] = 1
        mix = partial(mean_prediction, result.engine, result.state, metrics=plan.metrics, weights=weights)
        splits = (plan.data.valid, plan.data.test)
        mixed = [{} if split is None else _known(mix(split), healthy) for split in splits]
    kept = result if plan.keep else None
    images, times = result.replica_images, (result.seconds, result.compile_seconds)
    return _Run(replica, (*best, *mixed), result.trace, images, *times, kept)


def _known(scores: Mapping[str, Any], healthy: Bool[np.ndarray, " S"]) -> dict[str, Float[np.ndarray, " S"]]:
    """Returns scores as float64 with the decimals that `Result.best` shows; NaN for seeds that have diverged."""
    found = {name: np.array(shortest(values), np.float64) for name, values in scores.items()}
    return {name: np.where(healthy, values, np.nan) for name, values in found.items()}


def _beside(traces: Sequence[Trace]) -> Trace:
    """Returns the traces of several groups of seeds as one; their seeds are the second axis."""
    parts = [trace._replace(step=None, cooldown=None) for trace in traces]  # type: ignore[arg-type]
    joined = jax.tree.map(lambda *rows: np.concatenate(rows, 1), *parts)
    return joined._replace(step=traces[0].step, cooldown=traces[0].cooldown)


def _directions(engine: Engine, arm: Arm, metrics: Mapping[str, EnsembleMetric]) -> dict[str, bool | None]:
    """Returns {score or metric of the ensemble: whether higher is better; None: unknown}."""
    by_own = engine.problem._replace(metrics=(*declared_metrics(metrics), *engine.problem.metrics))
    found: dict[str, bool | None] = {}
    for name in (*arm.valid, *metrics):
        try:
            found[name] = is_higher_better(by_own, name)
        except ValueError:
            found[name] = None
    return found
