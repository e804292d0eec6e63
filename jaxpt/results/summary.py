"""A run's main numbers, as text and for JSON; and the device that it ran on."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxpt.core import tree
from jaxpt.core.cooldown import Cooldown
from jaxpt.core.decimals import shortest
from jaxpt.core.extras import extra, versions
from jaxpt.core.grid import is_grid
from jaxpt.diagnostics import acceptance, acceptance_rate, exchanges, round_trips
from jaxpt.results.points import cells, points, titles
from jaxpt.results.record import Best, Record, pick, replicas_of

_POINTS = 12
"""Most points of a grid in the text."""
_SEEDS = 4
"""Most seeds of which the text has each ladder, where they differ."""


class Summary(dict[str, Any]):
    """The numbers, ready for JSON (None for numbers that are not finite); `str` is a short text with the main ones.

    Values of a ladder are [M]; [S, M] where search or tuning has given each of S seeds a ladder of its own.
    """

    def __str__(self) -> str:
        seeds = "" if self["seeds"] is None else f", {self['seeds']} seed{'s' * (self['seeds'] > 1)}"
        ended = f", ended by {self['stopped']}" if self["stopped"] else ""
        rate = f", {self['replica_images_per_second']:,.0f} examples/s" if self["replica_images"] else ""
        lines = [
            f"{self['replicas']} replicas{seeds}, {self['steps']:,} steps{ended}, in {duration(self['seconds'])}"
            f" (compiled in {duration(self['compile_seconds'])}){rate}; {self['execution']}"
        ]
        for name, ladder in self["ladders"].items():
            ends = ", ".join(_ends(key, v, ladder["grid"]) for key, v in ladder["values"].items())
            ends = f"a grid of {self['replicas']} points, {ends}" if ladder["grid"] else ends
            swaps = "no exchanges"
            if ladder["exchanges"]:
                swaps = f"{ladder['exchanges']} exchanges, {_share(ladder['accepted'])} of the swaps accepted"
                swaps += f", {ladder['round_trips']} round trip{'s' * (ladder['round_trips'] != 1)}"
            named = "" if list(ladder["values"]) == [name] else f"{name}: "
            lines.append(f"{self['rule']} over {named}{ends}: {swaps}")
        if self["search"] is not None:
            until = self["search"]["steps"]
            then = "are as contracted after it" if self["steps"] >= until else "have not contracted yet"
            lines.append(f"search until step {until:,}: the ladders above {then}")
        if self["cooldown"] is not None:
            cooled = self["cooldown"]
            names = ", ".join(name.replace("_", " ") for name in cooled["names"])
            end = f"{cooled['floor']:g} of its value" if cooled["floor"] else "zero"
            lines.append(f"cooldown from step {cooled['start']:,}: {names} falls to {end}")
        if self["diverged"]:
            lines.append(lost(self["diverged"], self["replicas"], self["seeds"]))
        if self["copies"] is not None:
            lines.append(f"weights copied {self['copies']:,} times")
        grid = any(ladder["grid"] for ladder in self["ladders"].values())
        lines += [in_a_line(best, not self["moves_values"], "point" if grid else "rung") for best in self["best"]]
        if rows := self["points"]:
            numbers = [[_cell(cell) for cell in row] for row in cells(rows[:_POINTS])]
            lines += ["", *columns([titles(rows), *numbers])]
            lines += [f"and {len(rows) - _POINTS} more points"] if len(rows) > _POINTS else []
        return "\n".join(lines)

    __repr__ = __str__


def summary(result: Record) -> Summary:
    """Returns `Result.summary()`."""
    trace, engine = result.trace, result.engine
    seeds = [None] if result.num_seeds is None else range(result.num_seeds)
    ladders = {}
    for name, ladder in sorted(engine.placed.to_host(result.state.ladders).items()):
        made = exchanges(trace, name)
        ladders[name] = {
            "values": _common({key: np.asarray(v) for key, v in ladder.values.items()}),
            "grid": is_grid(engine.ladders[name]),
            "exchanges": len(made.step),
            "accepted": acceptance_rate(made.info.attempted, made.info.accepted),
            "acceptance": acceptance(trace, name) if len(made.step) else [],
            "round_trips": int(round_trips(trace.rung[name]).sum()),
        }
    chosen = [replicas_of(result, [pick(result, "energy", seed)], seed, models=False)[0] for seed in seeds]
    parents = trace.info.parents
    copies = None if parents is None else int((parents != np.arange(engine.num_replicas)).sum())
    found = {
        "replicas": engine.num_replicas,
        "seeds": result.num_seeds,
        "steps": int(result.state.step),
        "stopped": result.stopped,
        "diverged": int((~np.isfinite(result.valid["energy"])).sum()),
        "rule": type(engine.rule).__name__,
        "moves_values": engine.rule.moves_values,
        "C": None if trace.info.C is None else trace.info.C[-1],
        "search": None
        if engine.beginning is None
        else {"steps": engine.beginning.end, "factor": engine.beginning.factor},
        "cooldown": None if engine.ending is None else _about(engine.ending),
        "copies": copies,
        "ladders": ladders,
        "points": points(result),
        "best": [about_replica(best) for best in chosen],
        "seconds": result.seconds,
        "compile_seconds": result.compile_seconds,
        "replica_images": result.replica_images,
        "replica_images_per_second": result.replica_images / result.seconds,
        "execution": str(result.execution),
        "device": device(),
        "versions": versions(),
    }
    return Summary(plain(found))


def _common(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a ladder's values: [M] if all seeds have the same, else [S, M] (search and tuning move them by seed)."""
    differ = any(np.ndim(v) > 1 and (v != v[0]).any() for v in values.values())
    return {key: v if differ or np.ndim(v) < 2 else v[0] for key, v in values.items()}


def _about(cooldown: Cooldown) -> dict[str, Any]:
    """Returns the fields of a cooldown, ready for JSON."""
    return {
        "start": cooldown.begin,
        "steps": cooldown.steps,
        "names": cooldown.names,
        "shape": cooldown.shape,
        "floor": cooldown.floor,
    }


def frame(result: Record) -> Any:
    """Returns `Result.frame()`."""
    pandas = extra("pandas", "pandas", "result.frame()")
    trace = result.trace
    shape = (len(trace.step), result.num_seeds or 1, result.engine.num_replicas)
    period, seed, replica = (index.ravel() for index in np.indices(shape))
    columns = {"period": period, "step": np.asarray(trace.step)[period], "seed": seed, "replica": replica}
    scores = {"loss": trace.loss, "valid": trace.valid, "test": trace.test, "rung": trace.rung, "hyper": trace.hyper}
    if trace.info.parents is not None:
        scores["parent"] = trace.info.parents
    if trace.reported is not None:
        scores["reported"] = trace.reported
    if trace.cooldown is not None:
        columns["cooldown"] = np.asarray(trace.cooldown)[period]
    columns |= {tree.name(path): np.asarray(leaf).ravel() for path, leaf in jax.tree.leaves_with_path(scores)}
    return pandas.DataFrame(columns)


def about_replica(best: Best) -> dict[str, Any]:
    """Returns a replica's fields other than its model, ready for JSON."""
    names = ("replica", "seed", "rung", "hyper", "valid", "test")
    return plain({name: getattr(best, name) for name in names})


def device(first: jax.Device | None = None) -> str:
    """Returns the kind of a device, by default JAX's first; for CPUs also the number of cores for this process."""
    first = jax.devices()[0] if first is None else first
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return first.device_kind + (f", {cores} cores" if first.platform == "cpu" else "")


def plain(value: Any) -> Any:
    """Returns numbers and arrays in dicts and lists, converted for JSON; None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray | jax.Array | np.generic):
        return plain(shortest(value))
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows as lines with columns of one width."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip() for row in rows]


def _ends(name: str, values: Sequence[Any], grid: bool) -> str:
    """A hyperparameter with the ends of its ladder, or with its range in a grid; where seeds differ, of each seed."""
    if not isinstance(values[0], Sequence):
        first, last = (min(values), max(values)) if grid else (values[0], values[-1])
        return f"{name} {first:.4g} to {last:.4g}"
    if len(values) <= _SEEDS:
        return f"{name} " + ", ".join(f"{one[0]:.4g} to {one[-1]:.4g} (seed {seed})" for seed, one in enumerate(values))
    ends = ([one[0] for one in values], [one[-1] for one in values])
    return f"{name} " + " to ".join(f"{min(end):.4g} .. {max(end):.4g}" for end in ends) + " (seeds differ)"


def _cell(value: Any) -> str:
    return str(value) if isinstance(value, int) else _number(value)


def lost(diverged: int, replicas: int, seeds: int | None) -> str:
    """Returns how many replicas have diverged, in words."""
    among = f"{replicas} replicas" if seeds is None else f"{seeds} x {replicas} replicas"
    return f"{diverged} of {among} ha{'s' if diverged == 1 else 've'} diverged"


def in_a_line(best: Mapping[str, Any], on_rungs: bool, place: str = "rung") -> str:
    """Returns one replica in one line, with its rungs if they determine its hyperparameters."""
    of = "" if best["seed"] is None else f" of seed {best['seed']}"
    scores = "; ".join(
        f"{split} " + ", ".join(f"{name} {_number(value)}" for name, value in best[key].items())
        for split, key in (("validation", "valid"), ("test", "test"))
        if best[key]
    )
    rungs = ", ".join(
        f"{place} {rung}" + (f" of {name}" if len(best["rung"]) > 1 else "") for name, rung in best["rung"].items()
    )
    hyper = ", ".join(f"{name} {_number(value)}" for name, value in best["hyper"].items())
    where = f"{'at' if place == 'point' else 'on'} {rungs} ({hyper})" if on_rungs else f"with {hyper}"
    return f"best replica {best['replica']}{of}, {where}: {scores}"


def _number(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


def duration(seconds: float) -> str:
    """Returns a time in words, such as "12.3 s" or "5 h 7 min"."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
