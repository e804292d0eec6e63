"""What every experiment does: run all arms on the same seeds, then write summary.json, trace.npz and pictures."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxpt
from experiments import classification, report
from experiments.options import BaseOptions
from jaxpt.core.data import Data
from jaxpt.saving import files


class Work(NamedTuple):
    """What an experiment is about."""

    experiment: str
    """Its name."""
    engine: jaxpt.Engine
    """With whatever rule; each arm puts in its own. Its problem has a metric "error", and predicts."""
    data: Data
    """All three splits."""
    dataset: str
    """What the data is, for the summary."""


def run(work: Work, options: BaseOptions) -> dict[str, Any]:
    """Runs all arms on the same seeds, prints a table, writes everything and returns the summary.

    The replica of each seed is the one with the lowest error on validation at the end (ties: the lower energy).

    Args:
        work: what is to be run.
        options: what the user chose.

    Raises:
        ValueError: an option is out of range, or the directory cannot be written.
    """
    experiment, engine, data, dataset = placed(work, options)
    engines = {name: dataclasses.replace(engine, rule=rule) for name, rule in arms_rules(options).items()}
    directory = make_directory(options.directory)
    if not options.resume:
        _begin(directory, list(engines))
    if jaxpt.placement.is_first():
        (directory / "summary.json").unlink(missing_ok=True)  # until this run is finished, too
    try:
        results = {name: fit(arm, data, options, name) for name, arm in engines.items()}
    except jaxpt.Interrupted:
        if jaxpt.placement.is_first():
            print("the same command with --resume goes on", file=sys.stderr)
        raise
    mixtures = {name: mixture_errors(result, data, options) for name, result in results.items()}
    summary = report.summary(experiment, results, mixtures, options, dataset)
    pictures = report.pictures(results, options, len(_drawn(data.test, options.curve)["label"]))
    for name, result in results.items():
        result.report(directory / f"report-{name}.html", title=f"{experiment}: {name}")
    if not jaxpt.placement.is_first():  # until here all processes work together
        return summary
    np.savez_compressed(directory / "trace.npz", **flat_traces(results))  # type: ignore[arg-type]
    for file, figure in pictures.items():
        figure.savefig(directory / file)
    # Last: it says that the run is finished.
    files.write(directory / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    print(f"{experiment} on {dataset}\n\n{report.table(summary)}")
    reports = [f"report-{name}.html" for name in results]
    print(f"\nwritten to {directory}: {', '.join(['summary.json', 'trace.npz', *pictures, *reports])}")
    return summary


def placed(work: Work, options: BaseOptions) -> Work:
    """Returns the work with the engine where the options want it, and the samples that they want to score on."""
    _, engine, data, dataset = work
    if options.sample is not None:
        data = data._replace(valid=_drawn(data.valid, options.sample), test=_drawn(data.test, options.sample))
        dataset += f"; scores on at most {options.sample:,} examples"
    if options.probe is not None and options.probe >= len(data.valid["label"]):
        engine = dataclasses.replace(engine, probe=None)  # it covers the whole split
    return work._replace(engine=dataclasses.replace(engine, placement=options.placed()), data=data, dataset=dataset)


def arms_rules(options: BaseOptions) -> dict[str, jaxpt.Rule]:
    """Returns {arm: rule} for the chosen arms, in the order in which they run."""
    window = min(32, options.burn_in // options.every // 4)  # four adaptations at least, if burn-in has four periods
    rules: dict[str, Callable[[], jaxpt.Rule]] = {
        "tempering": lambda: jaxpt.Tempering(options.C),
        "deo": lambda: jaxpt.Tempering(options.C, "deo"),
        "auto": lambda: jaxpt.Tempering("auto", "deo", adapt_ladder=window > 0, window=max(window, 1)),
        "pbt": jaxpt.PBT,
        "independent": jaxpt.Independent,
    }
    if not options.rule:
        raise ValueError(f"--rule needs one arm at least: {' '.join(rules)}")
    return {name: rules[name]() for name in dict.fromkeys(options.rule)}


def make_directory(directory: Path) -> Path:
    """Makes a directory, if need be, and makes sure that it can be written; of several processes only the first does.

    Returns:
        The directory, `~` expanded.

    Raises:
        ValueError: it cannot be written, or is a URL.
    """
    directory = files.local_path("--directory", directory)
    if not jaxpt.placement.is_first():
        return directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--directory {directory} cannot be written: {error.strerror}; give another one") from error
    return directory


def _begin(directory: Path, arms: Sequence[str]) -> None:
    """Clears a finished run away; raises ValueError if it is not finished. Of several processes the first clears."""
    summary = directory / "summary.json"
    if not summary.exists() and (begun := [arm for arm in arms if list(directory.glob(f"{arm}/checksums/*.json"))]):
        raise ValueError(
            f"--directory {directory} holds an unfinished run ({', '.join(begun)}): add --resume to go on with it, or "
            "give another directory"
        )
    if jaxpt.placement.is_first():
        for arm in arms:
            if (directory / arm / "settings.json").exists():
                shutil.rmtree(directory / arm)


def flat_traces(results: dict[str, jaxpt.Result]) -> dict[str, np.ndarray]:
    """Returns {"arm/field/...": array}; arrays are [periods, seeds, replicas] or as `jaxpt.Trace` says."""
    return {
        f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}": np.asarray(leaf)
        for name, result in results.items()
        for path, leaf in jax.tree.leaves_with_path(result.trace)
    }


def _drawn(examples: dict[str, np.ndarray], count: int | None) -> dict[str, np.ndarray]:
    """Returns so many of the examples at random, always the same: a file may be sorted by class."""
    total = len(examples["label"])
    if count is None or count >= total:
        return examples
    rows = np.sort(np.random.default_rng(0).choice(total, count, replace=False))
    return {name: leaf[rows] for name, leaf in examples.items()}


def fit(
    engine: jaxpt.Engine, data: Data, options: BaseOptions, name: str, seeds: Sequence[int] | None = None
) -> jaxpt.Result:
    """Returns what one arm came to; its test scores at the end are those on the whole test split.

    Args:
        engine: with the arm's rule.
        data: all three splits.
        options: what the user chose.
        name: of the arm, and of its folder in the directory.
        seeds: those of the options, if not given.
    """
    result = jaxpt.fit(
        engine,
        data.train,
        data.valid,
        test=_drawn(data.test, options.curve),
        steps=options.steps,
        seeds=options.all_seeds() if seeds is None else seeds,
        directory=options.directory / name,
        save_minutes=options.save_minutes,
        progress=None if options.progress else False,
        description=name,
    )
    if options.curve is None:
        return result
    whole = engine.evaluate(result.state, data.test)
    return dataclasses.replace(result, test={name: np.asarray(score) for name, score in whole.items()})


def mixture_errors(result: jaxpt.Result, data: Data, options: BaseOptions) -> report.Mixtures:
    """Returns {which replicas: {split: error of their mean prediction, per seed}}."""
    metrics = {"error": classification.mixture_error}
    ladder, replicas = next(iter(result.engine.ladders)), result.engine.num_replicas
    counts = {"all": replicas, f"coldest {min(options.coldest_k, replicas)}": min(options.coldest_k, replicas)}
    healthy = np.isfinite(result.valid["energy"]).any(-1)
    found: report.Mixtures = {which: {} for which in counts}
    for split, examples in (("validation", data.valid), ("test", data.test)):
        mixed = jaxpt.ensemble(
            result.engine, result.state, examples, metrics, coldest=list(counts.values()), ladder=ladder
        )
        for which, error in zip(counts, np.asarray(mixed["error"]), strict=True):
            found[which][split] = np.where(healthy, error, np.nan)
    return found
