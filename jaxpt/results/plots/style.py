"""The common style of all pictures."""

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D4A9C", "#000000")
"""Okabe and Ito's palette, safe for colour-blind readers, and one violet."""

STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
}


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Returns a figure, width and height in inches, with one pair of axes."""
    figure, axes = new_column(width, height, 1)
    return figure, axes[0]


def new_column(width: float, height: float, rows: int) -> tuple[Figure, list[Axes]]:
    """Returns a figure with `rows` axes, one below the other, that share their x axis."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        return figure, list(figure.subplots(rows, sharex=True, squeeze=False)[:, 0])


def shade_cooldown(axes: Axes, start: int | None, end: int) -> None:
    """Shades the cooldown from its first step to the run's last; nothing if there is none."""
    if start is not None and start < end:
        axes.axvspan(start, end, color=COLORS[5], alpha=0.12, zorder=0, label="cooldown")


def words(name: str) -> str:
    """Returns a hyperparameter's name as a label of an axis."""
    return name.replace("_", " ")
