"""What every experiment shares: its options, its arms, its table, summary.json, trace.npz and pictures."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import tyro

import jaxpt
from jaxpt import plots
from jaxpt.data import Data
from jaxpt.diagnostics import acceptance_rate, interval, pair_acceptance, round_trips

RuleName = Literal["tempering", "independent"]
BASELINE = "independent"
T = TypeVar("T", bound="Options")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options that every experiment has."""

    replicas: int = 8
    """Replicas, one per rung of the ladder."""
    steps: int
    """Optimiser steps of each replica."""
    every: int
    """Steps between exchanges, a period."""
    burn_in: int
    """Steps before the first exchange may happen."""
    batch_size: int = 128
    """Examples in a minibatch; all replicas see the same."""
    C: float
    """Factor between energies and inverse temperatures in the acceptance probability min(1, exp(C dbeta dE))."""
    seeds: int
    """How many seeds; each is a whole ladder with initial weights and data order of its own."""
    rule: tuple[RuleName, ...] = ("tempering", "independent")
    """Arms to run: exchanges, grid search."""
    directory: Path
    """Where summary.json, trace.npz and the pictures go."""
    progress: bool = True
    """Show a progress bar, if stderr is a terminal."""
    devices: int | None = None
    """CPU devices that the replicas are spread over; by default as many as there are cores. GPUs do not care."""


def command(main: Callable[[T], Any], options: type[T], arguments: Sequence[str] | None = None) -> None:
    """Runs an experiment from the command line (or from `arguments`).

    On CPUs it lets JAX see every core as a device, so it must come before anything is computed. A mistake in its
    options ends in one line and exit code 2.
    """
    try:
        chosen = tyro.cli(options, args=arguments)
        jaxpt.use_all_cores(chosen.devices)
        main(chosen)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def arms_rules(options: Options) -> dict[str, jaxpt.Rule]:
    """Returns {arm: rule} for the chosen arms, in the order in which they run."""
    rules: dict[str, Callable[[], jaxpt.Rule]] = {
        "tempering": lambda: jaxpt.Tempering(options.C),
        "independent": jaxpt.Independent,
    }
    if not options.rule:
        raise ValueError(f"--rule needs one arm at least: {' '.join(rules)}")
    return {name: rules[name]() for name in dict.fromkeys(options.rule)}


def run(experiment: str, engine: jaxpt.Engine, data: Data, options: Options) -> dict[str, Any]:
    """Runs all arms on the same seeds, prints a table, writes everything and returns the summary.

    The replica of each seed is the one with the lowest error on validation at the end (ties: the lower energy).

    Args:
        experiment: its name.
        engine: with whatever rule; each arm puts in its own. Its problem records a metric "error", 0 to 1.
        data: all three splits.
        options: what the user chose.

    Raises:
        ValueError: an option is out of range, or the directory cannot be written.
    """
    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, but it is {options.seeds}")
    engines = {name: dataclasses.replace(engine, rule=rule) for name, rule in arms_rules(options).items()}
    directory = _make_directory(options.directory)
    results = {
        name: jaxpt.fit(
            arm,
            data.train,
            data.valid,
            test=data.test,
            steps=options.steps,
            seeds=range(options.seeds),
            progress=None if options.progress else False,
            description=name,
        )
        for name, arm in engines.items()
    }
    arms = {name: _arm(result, options) for name, result in results.items()}
    summary = {
        "experiment": experiment,
        "device": _device(),
        "versions": _versions(),
        "settings": _settings(options, engine),
        "arms": arms,
        "differences": _differences(arms),
    }
    _write(directory / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    np.savez_compressed(directory / "trace.npz", **_flat_traces(results))  # type: ignore[arg-type]
    pictures = _draw(results, directory, options)
    print(table(summary))
    print(f"\nwritten to {directory}: summary.json, trace.npz, {', '.join(pictures)}")
    return summary


def table(summary: dict[str, Any]) -> str:
    """Returns the summary's arms as a table in Markdown."""
    rows = [
        (
            "arm",
            "test error %",
            "95 % interval",
            "validation error %",
            "accepted",
            "round trips",
            "replica-images/s",
        )
    ]
    for name, arm in summary["arms"].items():
        rate = arm["acceptance_rate"]
        rows.append(
            (
                name,
                _show(arm["test_error"]["mean"]),
                _range(arm["test_error"]["ci95"]),
                _show(arm["validation_error"]["mean"]),
                "-" if rate is None else f"{rate:.1%}",
                str(arm["round_trips"]),
                f"{arm['replica_images_per_second']:,.0f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    for name, difference in summary["differences"].items():
        mean, ends = _show(difference["mean"], "+.2f"), _range(difference["ci95"])
        lines.append(f"\n{name}: {mean} points of test error, paired by seed, 95 % {ends}")
    return "\n".join(lines)


def _arm(result: jaxpt.Result, options: Options) -> dict[str, Any]:
    """Returns one arm's entry of the summary."""
    best = [result.best("error", seed=seed) for seed in range(options.seeds)]
    info = result.trace.info
    rate = acceptance_rate(info.attempted, info.accepted)
    pairs = pair_acceptance(np.concatenate(info.attempted), np.concatenate(info.accepted))  # seeds pooled
    return {
        "test_error": _over_seeds([100 * b.test["error"] for b in best]),
        "validation_error": _over_seeds([100 * b.valid["error"] for b in best]),
        "best_replica": [b.replica for b in best],
        "acceptance_rate": _number(rate),
        "acceptance_per_pair": [_number(p) for p in pairs],
        "round_trips": int(sum(round_trips(rung).sum() for rung in result.trace.rung.values())),
        "steps": options.steps,
        "wall_seconds": result.seconds,
        "compile_seconds": result.compile_seconds,
        "execution": str(result.execution),
        "replica_images_per_second": result.replica_images / result.seconds,
    }


def _differences(arms: dict[str, Any]) -> dict[str, Any]:
    """Returns each arm's test error minus the baseline's, paired by seed."""
    if BASELINE not in arms:
        return {}
    base = np.asarray(arms[BASELINE]["test_error"]["per_seed"], np.float64)
    return {
        f"{name}-{BASELINE}": _over_seeds(list(np.asarray(arm["test_error"]["per_seed"], np.float64) - base))
        for name, arm in arms.items()
        if name != BASELINE
    }


def _over_seeds(values: list[float]) -> dict[str, Any]:
    """Returns each seed's value, their mean and its 95 % interval; None where there is no number."""
    mean, low, high = interval(np.asarray(values))
    return {"per_seed": [_number(v) for v in values], "mean": _number(mean), "ci95": [_number(low), _number(high)]}


def _number(value: float | np.floating | np.ndarray) -> float | None:
    """A float, or None where there is no number: JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def _show(value: float | None, form: str = ".2f") -> str:
    return "diverged" if value is None else format(value, form)


def _range(ends: list[float | None]) -> str:
    return "one seed only" if None in ends else f"[{ends[0]:.2f}, {ends[1]:.2f}]"


def _device() -> str:
    device = jax.devices()[0]
    return (
        f"{device.device_kind}, {len(os.sched_getaffinity(0))} cores"
        if device.platform == "cpu"
        else device.device_kind
    )


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    own = {"python": platform.python_version(), "jaxpt": jaxpt.__version__}
    return own | {name: importlib.metadata.version(name) for name in packages}


def _settings(options: Options, engine: jaxpt.Engine) -> dict[str, Any]:
    """Returns the options that matter for the numbers, and the ladders and fixed values they led to."""
    chosen = {k: v for k, v in dataclasses.asdict(options).items() if k not in ("directory", "progress", "devices")}
    ladders = {
        name: {"beta": ladder.beta.tolist(), **{k: v.tolist() for k, v in ladder.values.items()}}
        for name, ladder in engine.ladders.items()
    }
    return {**chosen, "ladders": ladders, "fixed": dict(engine.fixed)}


def _flat_traces(results: dict[str, jaxpt.Result]) -> dict[str, np.ndarray]:
    """Returns {"arm/field/...": array}; arrays are [periods, seeds, replicas] or as `jaxpt.Trace` says."""
    return {
        f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}": np.asarray(leaf)
        for name, result in results.items()
        for path, leaf in jax.tree.leaves_with_path(result.trace)
    }


def _draw(results: dict[str, jaxpt.Result], directory: Path, options: Options) -> list[str]:
    """Draws the error curves of all arms and, per arm that exchanges, the first seed's exchange picture."""
    step = next(iter(results.values())).trace.step
    figures = {
        "errors.png": plots.error_curves(
            step,
            {name: _chosen_curve(result) for name, result in results.items()},
            ylabel="test error % of the replica that is best on validation",
            burn_in=options.burn_in,
        )
    }
    for name, result in results.items():
        if result.engine.rule.exchanges:
            for ladder in result.engine.ladders.values():
                label, values = next(iter(ladder.values.items()))
                file = f"exchanges-{name}.png" if len(result.engine.ladders) == 1 else f"exchanges-{name}-{label}.png"
                figures[file] = plots.exchange_picture(
                    step,
                    result.trace.rung[ladder.name][:, 0],
                    np.asarray(values),
                    result.best("error", seed=0).replica,
                    name=label,
                    burn_in=options.burn_in,
                )
    for file, figure in figures.items():
        figure.savefig(directory / file)
    return list(figures)


def _chosen_curve(result: jaxpt.Result) -> np.ndarray:
    """Returns [P, S]: at each period, the test error in percent of the replica then best on validation."""
    valid = np.where(np.isfinite(result.trace.valid["energy"]), result.trace.valid["error"], np.inf)
    order = np.lexsort((result.trace.valid["energy"], valid), axis=-1)[..., :1]
    return 100 * np.take_along_axis(np.asarray(result.trace.test["error"]), order, -1)[..., 0]


def _make_directory(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--directory {directory} cannot be written: {error.strerror}; give another one") from error
    return directory


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)
