"""Arms side by side: each seed's value, the mean, its 95 % interval, and the same for differences paired by seed."""

from collections.abc import Mapping
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxpt.diagnostics import interval
from jaxpt.results.plots.style import COLORS, STYLE


def comparison_picture(
    values: Mapping[str, Mapping[str, np.ndarray]],
    baseline: str,
    *,
    what: str = "score",
    better: Literal["lower", "higher"] | None = None,
    unit: str = "",
    title: str = "",
) -> Figure:
    """Draws values on the left, and on the right their differences to the baseline's, paired by seed.

    Dots are seeds, diamonds their means, lines the means' 95 % intervals.

    Args:
        values: {what is scored: {arm: [S], one per seed}}; NaN where an arm diverged.
        baseline: the arm that differences are taken to; without it there is no right half.
        what: name of the numbers, for the axis.
        better: which numbers are better, for the axis.
        unit: unit of the differences, for the axis.
        title: above the picture.

    Raises:
        ValueError: arms have different numbers of seeds, so they cannot be paired.
    """
    for scored, scores in values.items():
        if len({len(found) for found in scores.values()}) > 1:
            counts = ", ".join(f"{arm} {len(found)}" for arm, found in scores.items())
            raise ValueError(f"every arm needs the same seeds, but of {scored} they have: {counts}")
    arms = list(dict.fromkeys(name for scores in values.values() for name in scores))
    halves = 2 if any(baseline in scores and len(scores) > 1 for scores in values.values()) else 1
    longest = max(len(scored) + len(arm) for scored, scores in values.items() for arm in scores)
    width = 4.5 * halves + 0.08 * max(0, longest - 24)  # inches; the names of rows stand beside the left half
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 1.3 + 0.34 * len(arms) * len(values)), dpi=150, layout="constrained")
        left, *right = figure.subplots(1, halves, sharey=True, squeeze=False)[0]
    labels = []
    for group, (scored, scores) in enumerate(values.items()):
        for place, (arm, found) in enumerate(scores.items()):
            y = group * (len(arms) + 0.8) + place
            color = COLORS[arms.index(arm) % len(COLORS)]
            labels.append((y, f"{scored}: {arm}" if len(values) > 1 else arm))
            _draw(left, found, y, color)
            if arm != baseline and baseline in scores:
                _draw(right[0], found - scores[baseline], y, color)
    left.set_yticks(*map(list, zip(*labels, strict=True)))
    left.invert_yaxis()
    left.set(xlabel=what if better is None else f"{what}, {better} is better")
    for axes in right:
        axes.axvline(0, color="#555555", linestyle=":")
        axes.set(xlabel=f"minus {baseline},\npaired by seed" + (unit and f", {unit}"))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _draw(axes: Axes, values: np.ndarray, y: float, color: str) -> None:
    """Draws one row: the seeds as faint dots, the mean and its interval on top."""
    axes.plot(values, np.full(len(values), y), "o", color=color, alpha=0.35, markersize=4)
    mean, low, high = interval(values)
    axes.plot(mean, y, "D", color=color, markersize=6)
    if np.isfinite(low):
        axes.plot([low, high], [y, y], color=color, linewidth=2)
