"""The parts of a page of HTML: style, tables, pictures."""

import base64
import datetime
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from jaxpt.core.decimals import shortened
from jaxpt.diagnostics.lineage import Lineage
from jaxpt.results import points

_ROWS = 60  # most rows in the lineage's table
_COLUMNS = 8  # most columns in the best replica's table; a wider one is transposed
_WIDE, _HALF = 10.6, 5.4  # inches, 100 pixels each on the page, so that all text has the same size
_CAPTIONS = {
    "paths": "Paths of the replicas over the ladder",
    "acceptance": "Acceptance per pair of rungs",
    "flow": "Flow f over the rungs",
    "energies": "Energy against rung",
    "grid": "Energy at the points of the grid",
    "score": "Course of the run",
    "lineage": "Lineage of the best replica",
}
_STYLE = """
body { font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1c1c1c; background: #fff;
  max-width: 1160px; margin: 0 auto; padding: 28px 32px 56px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 36px 0 10px; padding-bottom: 4px; border-bottom: 1px solid #ddd; }
p { margin: 6px 0; }
.quiet { color: #555; }
table { border-collapse: collapse; margin: 8px 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 18px 4px 0; border-bottom: 1px solid #e6e6e6; vertical-align: top; }
th { font-weight: 600; }
td.number, th.number { text-align: right; }
pre { background: #f6f7f8; padding: 14px 16px; margin: 8px 0; font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 14px 0; break-inside: avoid; }
figcaption { color: #333; font-weight: 600; margin-bottom: 4px; }
img { width: 100%; height: auto; display: block; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 4px 28px; }
summary { cursor: pointer; margin: 8px 0; }
.scroll { overflow-x: auto; }
.columns table { max-width: 100%; }
h1, p, figcaption, .columns td, .named td:first-child { overflow-wrap: anywhere; }
.named td:first-child { min-width: 9em; }
@media (max-width: 600px) { body { padding: 20px 16px 40px; } th, td { padding-right: 12px; }
  pre { white-space: pre; overflow-x: auto; } }
.columns { display: flex; flex-wrap: wrap; gap: 0 64px; align-items: flex-start; }
"""


class Content(NamedTuple):
    """What a page shows of a run.

    Attributes:
        title: its title.
        lines: the main numbers, in words.
        about: where it ran and with what.
        best: the best replica of each seed, see `summary.about_replica`.
        where: which replica that is, in words.
        figures: {name: figure}, see `pictures`.
        several: whether there are several seeds.
        diagnoses: pages of `diagnosis`.
        lineage: the path of the first of the best replicas.
        settings: {heading: {name: value}}.
        place: name of a replica's place on a ladder: "rung", or "point" of a grid.
        points: the points of a grid, see `jaxpt.results.points`; None without one.
    """

    title: str
    lines: Sequence[str]
    about: str
    best: Sequence[Mapping[str, Any]]
    where: str
    figures: Mapping[str, Figure]
    several: bool
    diagnoses: Sequence[str]
    lineage: Lineage
    settings: Mapping[str, Mapping[str, Any]]
    place: str = "rung"
    points: Sequence[Mapping[str, Any]] | None = None


def page(run: Content) -> Iterator[str]:
    """Yields the page's parts from top to bottom."""
    shown = {name: figure for name, figure in run.figures.items() if name != "lineage"}
    wide = [name for name in shown if name.startswith(("paths", "grid"))]
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{_text(run.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>"
    yield f"<h1>{_text(run.title)}</h1>"
    yield from (f"<p>{_text(line)}</p>" for line in run.lines)
    yield f'<p class="quiet">{_text(run.about)}, {now}</p>'
    yield "<h2>Best replica</h2>"
    yield f'<p class="quiet">{_text(run.where)}</p>'
    yield _best(run.best, run.place)
    if run.points:
        yield "<h2>Points of the grid</h2>"
        yield '<p class="quiet">At the end, the lowest validation energy first; means over the seeds.</p>'
        yield _table(points.titles(run.points), points.cells(run.points))
    yield "<h2>Pictures</h2>"
    yield from (_picture(name, shown[name], run.several) for name in wide)
    yield '<div class="pairs">'
    yield from (_picture(name, figure, run.several) for name, figure in shown.items() if name not in wide)
    yield "</div>"
    yield "<h2>Diagnosis</h2>"
    yield "\n".join(f"<pre>{_text(one)}</pre>" for one in run.diagnoses) or "<p>No swap was offered.</p>"
    yield "<h2>Lineage of the best replica</h2>"
    best = run.best[0]
    of = "" if best["seed"] is None else f" of seed {best['seed']}"
    yield f"<p>Under these hyperparameters the weights of replica {best['replica']}{of} came to be.</p>"
    yield _picture("lineage", run.figures["lineage"], run.several)
    yield _path(run.lineage)
    yield "<h2>Settings</h2>"
    yield '<div class="columns">'
    yield from (_pairs(name, values) for name, values in run.settings.items())
    yield "</div>\n</body>\n</html>"


def _picture(name: str, figure: Figure, several: bool) -> str:
    kind, _, rest = name.partition("-")
    caption = _CAPTIONS[kind] + (f": {rest.replace('_', ' ')}" if rest else "")
    if kind in ("paths", "lineage") and several:
        caption += " (seed 0)"
    held = io.BytesIO()
    if kind in ("paths", "lineage", "grid"):
        figure.set_size_inches(_WIDE, 1.1 * figure.get_figheight())
    else:
        figure.set_size_inches(_HALF, 3.4)
    figure.savefig(held, format="png")
    data = base64.b64encode(held.getvalue()).decode("ascii")
    image = f'<img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>\n<figcaption>{_text(caption)}</figcaption>\n{image}\n</figure>"


def _best(rows: Sequence[Mapping[str, Any]], place: str) -> str:
    """The best replica of each seed, one row each."""
    one = rows[0]
    titles = [*(["seed"] if one["seed"] is not None else []), "replica"]
    titles += [place if len(one["rung"]) == 1 else f"{place} of {name}" for name in one["rung"]]
    titles += [
        *one["hyper"],
        *(f"validation {name}" for name in one["valid"]),
        *(f"test {name}" for name in one["test"]),
    ]
    cells = [
        [
            *([row["seed"]] if row["seed"] is not None else []),
            row["replica"],
            *(value for key in ("rung", "hyper", "valid", "test") for value in row[key].values()),
        ]
        for row in rows
    ]
    titles = [title.replace("_", " ") for title in titles]
    return _table(titles, cells) if len(titles) <= _COLUMNS else _on_its_side(titles, cells)


def _path(lineage: Lineage) -> str:
    """A lineage as a table, one row for each stretch of constant hyperparameters."""
    names = list(lineage.hyper)
    held = np.stack([*lineage.hyper.values(), lineage.replica.astype(np.float64)], -1)
    starts = np.flatnonzero(np.r_[True, (np.diff(held, axis=0) != 0).any(-1)])
    ends = np.r_[starts[1:], len(held)] - 1
    before = np.r_[0, lineage.step[:-1]]
    cells = [
        [int(before[a]), int(lineage.step[b]), int(lineage.replica[a]), *(float(lineage.hyper[n][a]) for n in names)]
        for a, b in zip(starts, ends, strict=True)
    ]
    left_out = max(0, len(cells) - _ROWS)
    titles = ["from step", "to step", "replica", *(name.replace("_", " ") for name in names)]
    note = f'<p class="quiet">The first {left_out} stretches are left out.</p>' if left_out else ""
    count = f"{len(cells)} stretch" + "es" * (len(cells) > 1)
    return f"<details>\n<summary>{count}</summary>\n{note}{_table(titles, cells[left_out:])}\n</details>"


def _pairs(heading: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{_text(str(name).replace('_', ' '))}</td><td>{_text(number(value))}</td></tr>\n"
        for name, value in values.items()
    )
    return f'<table>\n<tr><th colspan="2">{_text(heading.replace("_", " "))}</th></tr>\n{rows}</table>'


def _table(titles: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    head = "".join(f'<th class="number">{_text(title)}</th>' for title in titles)
    rows = ("".join(f'<td class="number">{_text(number(cell))}</td>' for cell in row) for row in cells)
    return _scrolling(f"<table>\n<tr>{head}</tr>\n" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "\n</table>")


def _on_its_side(titles: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """A transposed table, one row per title: names are long, and a page has more height than width."""
    rows = (
        f"<tr><td>{_text(title)}</td>" + "".join(f'<td class="number">{_text(number(row[k]))}</td>' for row in cells)
        for k, title in enumerate(titles)
    )
    return _scrolling('<table class="named">\n' + "\n".join(f"{row}</tr>" for row in rows) + "\n</table>")


def _scrolling(table: str) -> str:
    """The table in a box of the page's width; a wider table scrolls inside it."""
    return f'<div class="scroll">\n{table}\n</div>'


def number(value: Any) -> str:
    """Returns a value as it is shown, numbers with four digits."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(number, value))
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return "none" if value is None else shortened(str(value))


def _text(value: Any) -> str:
    return html.escape(str(value))
