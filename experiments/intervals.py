"""Arms side by side: each seed's value, the mean, its 95 % interval, and the same for differences paired by seed."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxpt import plots
from jaxpt.diagnostics import interval


def picture(
    errors: Mapping[str, Mapping[str, np.ndarray]], baseline: str, *, what: str = "test error", title: str = ""
) -> Figure:
    """Draws errors on the left, and on the right their differences to the baseline's, paired by seed.

    Args:
        errors: {what is scored: {arm: [S] in percent, one per seed}}; NaN where an arm diverged.
        baseline: the arm that differences are taken to; without it there are none.
        what: what the numbers are.
        title: above the picture.
    """
    arms = list(dict.fromkeys(name for scores in errors.values() for name in scores))
    with mpl.rc_context({"axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 1.3 + 0.34 * len(arms) * len(errors)), dpi=150, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
    labels = []
    for group, (scored, scores) in enumerate(errors.items()):
        for place, (arm, values) in enumerate(scores.items()):
            y = group * (len(arms) + 0.8) + place
            color = plots.COLORS[arms.index(arm) % len(plots.COLORS)]
            labels.append((y, f"{scored}: {arm}" if len(errors) > 1 else arm))
            _draw(left, values, y, color)
            if arm != baseline and baseline in scores:
                _draw(right, values - scores[baseline], y, color)
    left.set_yticks(*map(list, zip(*labels, strict=True)))
    left.invert_yaxis()
    left.set(xlabel=f"{what} %, lower is better")
    right.axvline(0, color="#555555", linestyle=":")
    right.set(xlabel=f"minus {baseline}, paired by seed, points")
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
