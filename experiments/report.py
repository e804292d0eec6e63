"""What a run comes to, for people: the summary, its table and the pictures."""

import dataclasses
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

import jaxpt
from experiments.options import BaseOptions
from jaxpt.core.extras import versions
from jaxpt.diagnostics import acceptance_rate, interval, pair_acceptance, round_trips
from jaxpt.results import plots
from jaxpt.results.result import Best
from jaxpt.results.summary import device

BASELINE = "independent"
Mixtures = dict[str, dict[str, np.ndarray]]
"""{"all" or "coldest k": {"validation" or "test": error of each seed, 0 to 1}}."""


def summary(
    experiment: str,
    results: dict[str, jaxpt.Result],
    mixtures: dict[str, Mixtures],
    options: BaseOptions,
    dataset: str,
) -> dict[str, Any]:
    """Returns what summary.json says; {arm: ...} for results and mixtures."""
    arms = {name: _arm(result, mixtures[name], options) for name, result in results.items()}
    return {
        "experiment": experiment,
        "dataset": dataset,
        **provenance(),
        "seeds": list(options.all_seeds()),
        "settings": _settings(options, next(iter(results.values())).engine),
        "arms": arms,
        "differences": _differences(arms),
    }


def provenance() -> dict[str, Any]:
    """Returns the command (folders by their last name), date, device and versions that a result came from."""
    program, *arguments = sys.argv
    shown = [_by_last_name(argument) for argument in arguments]
    folder, name = Path(program).parts[-2:] if len(Path(program).parts) > 1 else ("", program)
    command = ["-m", f"{folder}.{Path(name).stem}"] if folder == "experiments" else [f"{folder}/{name}".lstrip("/")]
    return {"command": shlex.join([*command, *shown]), "date": datetime.date.today().isoformat(), **environment()}


def _by_last_name(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return option + equals + (Path(value).name if Path(value).is_absolute() else value)


def environment() -> dict[str, Any]:
    """Returns the device and the versions that a result came from."""
    return {"device": device(), "versions": versions()}


def chosen_options(options: Any) -> dict[str, Any]:
    """Returns the options that matter for the numbers, ready for JSON."""
    where = ("devices", "placement", "coordinator", "processes", "process", "distributed")
    leave_out = ("directory", "progress", "data_dir", "resume", "save_minutes", *where)
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in leave_out}


def table(summary: dict[str, Any]) -> str:
    """Returns the summary's arms as a table in Markdown."""
    mixtures = list(next(iter(summary["arms"].values()))["mixture"])
    title = [
        "arm",
        "test error %",
        "95 % interval",
        "validation error %",
        *(f"mixture of {which} %" for which in mixtures),
    ]
    rows = [(*title, "accepted", "round trips", "replica-images/s")]
    for name, arm in summary["arms"].items():
        rate = arm["acceptance_rate"]
        rows.append(
            (
                name,
                _show(arm["test_error"]["mean"]),
                _range(arm["test_error"]),
                _show(arm["validation_error"]["mean"]),
                *(_show(arm["mixture"][which]["test_error"]["mean"]) for which in mixtures),
                "-" if rate is None else f"{rate:.1%}",
                str(arm["round_trips"]),
                f"{arm['replica_images_per_second']:,.0f}",
            )
        )
    lines = markdown(rows)
    for name, difference in summary["differences"].items():
        mean, ends = _show(difference["mean"], "+.2f"), _range(difference)
        lines.append(f"\n{name}: {mean} points of test error, paired by seed, 95 % {ends}")
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table whose first row is its title."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def pictures(results: dict[str, jaxpt.Result], options: BaseOptions, curve: int) -> dict[str, Figure]:
    """Returns {file name: the error curves of all arms, and of each arm that exchanges the first seed's exchanges}.

    Args:
        results: {arm: what it came to}.
        options: of the run.
        curve: how many test images the curves stand on.
    """
    step = next(iter(results.values())).trace.step
    figures = {
        "errors.png": plots.error_curves(
            step,
            {name: chosen_curve(result) for name, result in results.items()},
            ylabel=f"error % on {curve:,} test images, best on validation",
            burn_in=options.burn_in,
            window=max(1, len(step) // 20),
        )
    }
    for name, result in results.items():
        if isinstance(result.engine.rule, jaxpt.Tempering):
            for ladder in result.engine.placed.to_host(result.state.ladders).values():  # after tuning, [S, M]
                label, values = next(iter(ladder.values.items()))
                file = f"exchanges-{name}.png" if len(result.engine.ladders) == 1 else f"exchanges-{name}-{label}.png"
                figures[file] = plots.exchange_picture(
                    step,
                    result.trace.rung[ladder.name][:, 0],
                    values[0],
                    result.best("error", seed=0).replica,
                    name=label,
                    burn_in=options.burn_in,
                )
    return figures


def chosen_curve(result: jaxpt.Result) -> Float[np.ndarray, "P S"]:
    """Returns, at each period, the test error in percent of the replica then best on validation."""
    valid = np.where(np.isfinite(result.trace.valid["energy"]), result.trace.valid["error"], np.inf)
    order = np.lexsort((result.trace.valid["energy"], valid), axis=-1)[..., :1]
    return 100 * np.take_along_axis(np.asarray(result.trace.test["error"]), order, -1)[..., 0]


def _arm(result: jaxpt.Result, mixtures: Mixtures, options: BaseOptions) -> dict[str, Any]:
    """Returns one arm's entry of the summary."""
    best = [result.best("error", seed=seed) for seed in range(options.seeds)]
    info = result.trace.info
    rate = acceptance_rate(info.attempted, info.accepted)
    pairs = pair_acceptance(np.concatenate(info.attempted), np.concatenate(info.accepted))  # seeds pooled
    return {
        "test_error": over_seeds([percent(b, b.test) for b in best]),
        "validation_error": over_seeds([percent(b, b.valid) for b in best]),
        "best_replica": [b.replica for b in best],
        "mixture": {
            which: {f"{split}_error": over_seeds(100 * error) for split, error in errors.items()}
            for which, errors in mixtures.items()
        },
        "C": None if info.C is None else [number(C) for C in info.C[-1]],
        "acceptance_rate": number(rate),
        "acceptance_per_pair": [number(p) for p in pairs],
        "round_trips": int(sum(round_trips(rung).sum() for rung in result.trace.rung.values())),
        "steps": options.steps,
        "execution": str(result.execution),
        "wall_seconds": result.seconds,
        "compile_seconds": result.compile_seconds,
        "replica_images": result.replica_images,
        "replica_images_per_second": result.replica_images / result.seconds,
    }


def percent(best: Best, scores: dict[str, float]) -> float:
    """Returns the error in percent; NaN if even the best replica has diverged, whatever it then predicts."""
    return 100 * scores["error"] if np.isfinite(best.valid["energy"]) else float("nan")


def _differences(arms: dict[str, Any]) -> dict[str, Any]:
    """Returns each arm's test error minus the baseline's, paired by seed."""
    if BASELINE not in arms:
        return {}
    base = np.asarray(arms[BASELINE]["test_error"]["per_seed"], np.float64)
    return {
        f"{name}-{BASELINE}": over_seeds(np.asarray(arm["test_error"]["per_seed"], np.float64) - base)
        for name, arm in arms.items()
        if name != BASELINE
    }


def over_seeds(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Returns each seed's value, their mean and its 95 % interval; None where there is no number."""
    mean, low, high = interval(np.asarray(values))
    return {"per_seed": [number(v) for v in values], "mean": number(mean), "ci95": [number(low), number(high)]}


def number(value: float | np.floating | np.ndarray) -> float | None:
    """A float, or None where there is no number: JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def _show(value: float | None, form: str = ".2f") -> str:
    return "diverged" if value is None else format(value, form)


def _range(score: dict[str, Any]) -> str:
    low, high = score["ci95"]
    if len(score["per_seed"]) < 2:
        return "one seed only"
    return "diverged" if low is None else f"[{low:.2f}, {high:.2f}]"


def _settings(options: BaseOptions, engine: jaxpt.Engine) -> dict[str, Any]:
    """Returns the options, and the ladders and fixed values that they led to."""
    ladders = {
        name: {"beta": ladder.beta.tolist(), **{k: v.tolist() for k, v in ladder.values.items()}}
        for name, ladder in engine.ladders.items()
    }
    return {**chosen_options(options), "ladders": ladders, "fixed": dict(engine.fixed)}
