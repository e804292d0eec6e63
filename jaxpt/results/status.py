"""A run's directory in words, for JSON and as a page: what `python -m jaxpt DIRECTORY` writes."""

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpt.core.decimals import shortened
from jaxpt.core.extras import extra
from jaxpt.core.state import Trace
from jaxpt.core.types import Info
from jaxpt.diagnostics import diagnosis, exchanges
from jaxpt.diagnostics.lineage import lineage
from jaxpt.results.directory import RunDirectory, energies, lines, replica, runs_below, seed_of
from jaxpt.results.summary import duration, in_a_line, lost, plain
from jaxpt.saving import files

_WIDTH = 80
_COPIES = ("PBT", "CopyBest")  # rules that change the values, so that a rung does not tell them


def as_dict(run: RunDirectory) -> dict[str, Any]:
    """Returns what is known of a run, ready for JSON."""
    return plain(
        {
            "directory": str(run.path),
            "run": run.is_run,
            "runs": None if run.is_run else runs_below(run.path),
            "state": run.state if run.is_run else None,
            "step": run.step,
            "steps": run.steps,
            "periods": run.periods,
            "seconds": run.seconds,
            "ended_by": run.ended_by,
            "seconds_left": run.seconds_left if run.state in ("running", "stopped") else None,
            "best": best_now(run),
            "diverged": None if run.last is None else int(np.isinf(energies(run.last)).sum()),
            "lowest": [replica(line, seed, number) for line, seed, number in run.lowest],
            "checkpoints": run.checkpoints,
            "lock": run.holder,
            "settings": run.settings,
            "troubles": run.troubles,
        }
    )


def as_text(run: RunDirectory) -> str:
    """Returns what is known of a run as text, at most 80 columns wide."""
    if not run.is_run:
        troubles = [one for one in run.troubles if one.startswith("settings.json") and not one.endswith("is missing")]
        why = "it has no settings.json" if any(run.path.iterdir()) else "it is empty"
        below = runs_below(run.path)
        there = f"; there are runs in it: {', '.join(below)}" if below else ""
        return _wrapped(f"{run.path} holds no run: {troubles[0] if troubles else why}{there}")
    return "\n".join(_wrapped(line) for line in _sentences(run))


def best_now(run: RunDirectory) -> list[dict[str, Any]]:
    """Returns the replica with the lowest energy in the last period, one for each seed."""
    if run.last is None:
        return []
    rows = energies(run.last)
    return [replica(run.last, seed_of(run.last, place), int(row.argmin())) for place, row in enumerate(rows)]


def write_report(run: RunDirectory, path: Path, title: str) -> None:
    """Writes a page of HTML as `Result.report` does, from the directory's files alone.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: no period is recorded.
    """
    if run.last is None:
        raise ValueError(f"{run.path} has no period yet, so there is nothing to report")
    extra("matplotlib", "plots", "--report")
    from jaxpt.results.page import Content, page
    from jaxpt.results.pictures import draw

    trace, best = read_trace(run), best_now(run)
    first, seed = best[0]["replica"], best[0]["seed"]
    led = lineage(trace, first, seed)
    held = run.settings or {}
    versions = held.get("versions", {})
    content = Content(
        title,
        [line for line in _sentences(run) if not line.startswith("best")],
        f"from {run.path}; jaxpt {versions.get('jaxpt', 'of an unknown version')}",
        best,
        "The lowest energy on validation (or the probe batch) in the last period, and its place during that period. "
        "Acceptances below are shares of accepted swaps.",
        draw(_drawn(run, trace, seed), first, seed, led),
        seed is not None,
        [str(diagnosis(trace, name)) for name in trace.rung if len(exchanges(trace, name).step)],
        led,
        {name: _shown(held[name]) for name in _SHOWN if held.get(name)},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, "\n".join(page(content)) + "\n")


_SHOWN = ("engine", "rule", "search", "cooldown", "fixed", "ladders", "seeds", "versions")


def read_trace(run: RunDirectory) -> Trace:
    """Returns the periods of a directory as a trace.

    Probabilities of acceptance are not in the file; in their place are the swaps that were accepted. Inverse
    temperatures are not there either, except that those of scaled energies are always M .. 1.
    """
    rows = list(lines(run.path / "periods.jsonl", []))

    def column(*place: str) -> np.ndarray:
        found = rows
        for name in place:
            found = [row[name] for row in found]
        return np.array(found, np.float64)

    def columns(part: str) -> dict[str, np.ndarray]:
        return {name: column(part, name) for name in rows[0][part]}

    names = sorted(rows[0]["rung"])
    attempted, accepted = (column(name).astype(bool) for name in ("attempted", "accepted"))
    turn = np.array([names.index(row["ladder"]) for row in rows])
    replicas = attempted.shape[-1] + 1
    scaled = (run.settings or {}).get("rule", {}).get("C") == "scaled"
    beta = np.broadcast_to(np.arange(replicas, 0.0, -1.0), (*attempted.shape[:-1], replicas))
    make_info: Any = Info
    info = make_info(
        turn if attempted.ndim == 2 else np.repeat(turn[:, None], attempted.shape[1], 1),
        attempted,
        accepted,
        accepted.astype(np.float64),
        beta=beta if scaled else None,
        C=column("C") if "C" in rows[0] else None,
        parents=column("parents").astype(int) if "parents" in rows[0] else None,
    )
    make: Any = Trace
    return make(
        column("step").astype(int),
        column("loss"),
        columns("valid"),
        columns("test"),
        {name: values.astype(int) for name, values in columns("rung").items()},
        columns("hyper"),
        info,
        column("cooldown") if "cooldown" in rows[0] else None,
    )


def _drawn(run: RunDirectory, trace: Trace, seed: int | None) -> Any:
    """Returns what the pictures show. Rungs have the values of the last period, as they may have moved."""
    from jaxpt.results.pictures import Drawn, by_rung

    held = run.settings or {}
    ladders = {}
    for name in sorted(trace.rung):
        known = [one for one in held.get("ladders", {}).get(name, {}) if one in trace.hyper]
        label = known[0] if known else next(iter(trace.hyper))
        values = by_rung(trace, name, trace.hyper[label][-1])
        ladders[name] = label, values if seed is None else values[seed]
    searched = int(held.get("search", {}).get("steps", 0))
    burn_in = int(held.get("engine", {}).get("burn_in", 0))
    return Drawn(
        trace,
        ladders,
        {name: by_rung(trace, name, trace.valid["energy"][-1]) for name in ladders},
        held.get("rule", {}).get("kind") in _COPIES or trace.info.parents is not None,
        max(burn_in, searched),
        "search" if searched > burn_in else "burn-in",
        int(held["cooldown"]["start"]) if "cooldown" in held else None,
    )


def _sentences(run: RunDirectory) -> Iterator[str]:
    """Yields the lines of the text."""
    yield f"{run.path}: {_state(run)}"
    yield _course(run)
    if run.settings is not None:
        yield from _about(run.settings)
    copies = (run.settings or {}).get("rule", {}).get("kind") in _COPIES
    for best in best_now(run):
        yield in_a_line(plain(best), not copies).replace("best replica", "best now: replica", 1)
    now = np.zeros((1, 0)) if run.last is None else energies(run.last)
    if gone := int(np.isinf(now).sum()):
        yield lost(gone, now.shape[1], None if len(now) == 1 else len(now))
    for line, seed, number in run.lowest:
        found = in_a_line(plain(replica(line, seed, number)), not copies)
        yield found.replace("best replica", f"lowest so far, at step {line['step']:,}: replica", 1)
    kept = [f"{one['step']:,}{_in_brackets(one)}" for one in run.checkpoints]
    yield "checkpoints at step " + ", ".join(kept) if kept else "no checkpoint yet"
    yield from (f"trouble: {one}" for one in run.troubles)


def _in_brackets(checkpoint: Mapping[str, Any]) -> str:
    """Returns the energy of a checkpoint, in brackets, as far as it is known."""
    energy, lost = checkpoint["energy"], checkpoint["lost_seeds"]
    if energy is None:
        return " (diverged)" if lost else ""
    return f" (energy {energy:.4g}" + (f"; {lost} of the seeds diverged)" if lost else ")")


def _state(run: RunDirectory) -> str:
    if run.holder is not None:
        who = "process {process} on {host} since {since}".format(**run.holder) if run.holder else "some process"
        return f"running; locked by {who}"
    if run.state == "begun":
        return "begun, but no process is running it"
    if run.state == "finished":
        return "finished"
    if run.ended_by is not None:
        by = "its patience" if run.ended_by == "patience" else "a callback"
        return f"ended early by {by}"
    again = "" if not run.checkpoints else f"; the same call resumes it at step {run.checkpoints[-1]['step']:,}"
    return f"not running{again}"


def _course(run: RunDirectory) -> str:
    """The line about steps and time."""
    if run.last is None:
        return f"step 0 of {_count(run.steps)}: no period is recorded yet" + " (compiling?)" * (run.holder is not None)
    share = f" ({run.step / run.steps:.0%})" if run.steps else ""
    times = "" if run.seconds is None else f", {duration(run.seconds)} of training"
    if run.seconds_left and run.state in ("running", "stopped"):
        times += f", about {duration(run.seconds_left)} left"
    return f"step {run.step:,} of {_count(run.steps)}{share}, {run.periods:,} periods{times}"


def _count(steps: int | None) -> str:
    return "an unknown number" if steps is None else f"{steps:,}"


def _about(held: Mapping[str, Any]) -> Iterator[str]:
    """Yields lines about the settings."""
    ladders, engine, rule = (held.get(name) or {} for name in ("ladders", "engine", "rule"))
    counts = [len(_read(values)) for ladder in ladders.values() for name, values in ladder.items() if name != "beta"]
    keys = (held.get("seeds") or {}).get("keys")
    seeds = f", {len(keys)} seeds" if isinstance(keys, list) and keys and isinstance(keys[0], list) else ""
    arguments = ", ".join(f"{name}={_brief(value)}" for name, value in rule.items() if name != "kind")
    pace = f"every {engine.get('every')} steps, batches of {engine.get('batch_size')}"
    yield f"{counts[0] if counts else '?'} replicas{seeds}, {pace}"
    yield f"rule {rule.get('kind')}({arguments})"
    for name, ladder in ladders.items():
        ends = ", ".join(f"{key} {_ends(values)}" for key, values in ladder.items() if key != "beta")
        yield f"ladder {name}: {ends}" if list(ladder) != ["beta", name] else f"ladder {ends}"
    for part in ("search", "cooldown"):
        if part in held:
            words = ", ".join(
                f"{key} {_brief(value)}" for key, value in held[part].items() if key not in ("kind", "share")
            )
            yield f"{part}: {words}"
    if held.get("fixed"):
        yield "fixed: " + ", ".join(f"{name} {_brief(value)}" for name, value in held["fixed"].items())
    yield "made with " + ", ".join(f"{name} {version}" for name, version in (held.get("versions") or {}).items())


def _ends(values: Any) -> str:
    found = _read(values)
    return f"{found[0]:.4g} to {found[-1]:.4g}" if found else "?"


def _read(values: Any) -> list[float]:
    """Returns the numbers in a settings file's text; none if it holds others."""
    try:
        found = ast.literal_eval(values)
        return [float(value) for value in found]
    except (ValueError, SyntaxError, TypeError):
        return []


def _brief(value: Any) -> str:
    return shortened(str(value))


def _shown(values: Any) -> dict[str, Any]:
    """Returns settings in one level, without what is no more than a digest."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{name}: {inner}": _brief(one) for inner, one in value.items()}
        else:
            found[name] = _brief(value)
    return found


def _wrapped(line: str) -> str:
    """Returns a line in at most 80 columns; its continuation is indented."""
    line = re.sub(r"\s+", " ", line)
    return textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
