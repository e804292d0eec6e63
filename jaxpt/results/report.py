"""A report on a run as a single HTML file, without scripts or network: pictures, best replica, diagnosis, settings."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpt.devices.processes import is_first
from jaxpt.diagnostics import diagnosis, exchanges
from jaxpt.results.page import Content, number, page
from jaxpt.results.pictures import pictures
from jaxpt.results.record import Record
from jaxpt.results.summary import Summary
from jaxpt.results.summary import summary as summary_of
from jaxpt.saving import files
from jaxpt.saving.settings import rule_in_words


def write(result: Record, path: Path, title: str) -> None:
    """Writes the page, see `Result.report`. All processes must call it; the first one writes."""
    summary, trace = summary_of(result), result.trace
    best = summary["best"][0]
    first, *more = str(summary).partition("\n\n")[0].splitlines()  # a grid has a table of its own
    grid = any(ladder["grid"] for ladder in summary["ladders"].values())
    content = Content(
        title,
        [first, *(line for line in more if not line.startswith("best replica"))],
        f"{summary['device']}; jaxpt {summary['versions']['jaxpt']}",
        summary["best"],
        "The lowest energy on validation at the end; where it stands after the last exchange.",
        pictures(result),
        bool(result.num_seeds),
        [str(diagnosis(trace, name)) for name in trace.rung if len(exchanges(trace, name).step)],
        result.lineage(best["replica"], best["seed"]),
        _settings(result, summary),
        "point" if grid else "rung",
        summary["points"],
    )
    text = "\n".join(page(content))
    if is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, text + "\n")


def _settings(result: Record, summary: Summary) -> dict[str, dict[str, Any]]:
    """Returns {heading: {name: value}}."""
    engine = result.engine
    simple = {f.name: getattr(engine, f.name) for f in dataclasses.fields(engine)}
    simple["schedule"] = engine.schedule and getattr(engine.schedule, "__name__", "given")
    simple = {name: value for name, value in simple.items() if isinstance(value, int | float | str | None)}
    simple |= {"burn_in": int(engine.burn_in), **{f"fixed {name}": value for name, value in engine.fixed.items()}}
    ladders = {f"ladder {name}": _values(ladder["values"]) for name, ladder in summary["ladders"].items()}
    return {
        "engine": dict(sorted(simple.items())),
        "rule": {**rule_in_words(engine.rule), "C at the end": summary["C"]},
        **({} if engine.beginning is None else {"search": rule_in_words(engine.beginning)}),
        **({} if engine.ending is None else {"cooldown": rule_in_words(engine.ending)}),
        **ladders,
        "versions": {**summary["versions"], "device": summary["device"]},
    }


def _values(ladder: Mapping[str, list[Any]]) -> dict[str, str]:
    """Returns {name: its values in words}; where seeds differ, a line for each seed."""
    rows: dict[str, list[Any]] = {}
    for name, values in ladder.items():
        several = isinstance(values[0], list)
        rows |= {f"{name}, seed {seed}": one for seed, one in enumerate(values)} if several else {name: values}
    return {name: ", ".join(map(number, values)) for name, values in rows.items()}
