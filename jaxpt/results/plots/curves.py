"""Curves over a run: scores, and the hyperparameters in one replica's lineage."""

import itertools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from jaxpt.core.types import AnyArray
from jaxpt.diagnostics import interval, running_mean
from jaxpt.diagnostics.lineage import Lineage
from jaxpt.results.plots.style import COLORS, new_axes, new_column, shade_cooldown, words


def error_curves(
    step: Int[AnyArray, " P"],
    curves: Mapping[str, Float[AnyArray, "P S"]],
    *,
    ylabel: str,
    burn_in: int = 0,
    cooldown: int | None = None,
    start: str = "burn-in",
    window: int = 1,
    least_span: float = 1.0,
) -> Figure:
    """Draws one curve per arm: the mean over seeds, with its 95 % interval as a band.

    With a window the running mean is drawn over the raw curve (figure 2, left, of arXiv 1909.04013).

    Args:
        step: steps done at each period's end.
        curves: {arm: one column per seed}.
        ylabel: label of the y axis.
        burn_in: steps of burn-in; a dotted line marks its end, if positive.
        cooldown: the step at which the cooldown begins, which is shaded to the end.
        start: name of the steps of burn-in, "search" if they are one.
        window: periods of the running mean; 1: no smoothing.
        least_span: least range of the y axis, so that noise does not fill it; the default suits percent.
    """
    figure, axes = new_axes(8, 4.2)
    for (name, curve), color in zip(curves.items(), itertools.cycle(COLORS), strict=False):
        if window > 1:
            axes.plot(step, np.mean(curve, -1), color=color, linewidth=0.8, alpha=0.4)
        mean, low, high = interval(running_mean(curve, window))
        axes.plot(step, mean, color=color, linewidth=1.8, label=name)
        axes.fill_between(step, low, high, color=color, alpha=0.18, linewidth=0)
    if burn_in > 0:
        axes.axvline(burn_in, color="#555555", linestyle=":", label=f"end of {start}")
    shade_cooldown(axes, cooldown, int(step[-1]))
    means = np.concatenate([np.mean(curve, -1).ravel() for curve in curves.values()])
    if np.isfinite(means).any():
        top = max(_quantile(np.mean(curve, -1), 0.9) for curve in curves.values())
        lowest = float(np.nanmin(np.where(np.isfinite(means), means, np.nan)))
        # Early training is far off; the axis is scaled for the end of the run.
        span = max(top - lowest, least_span) or 1.0
        most = max(float(np.nanmax(curve)) for curve in curves.values() if np.isfinite(curve).any())
        bottom = max(0.0, lowest - 0.4 * span) if lowest >= 0 else lowest - 0.4 * span
        axes.set_ylim(bottom, min(top + 0.6 * span, most + 0.1 * span))  # no higher than the curves
    axes.set(xlabel="step", ylabel=ylabel, xlim=(0, int(step[-1])))
    axes.legend(frameon=False)
    return figure


def _quantile(values: np.ndarray, share: float) -> float:
    """Returns a quantile of the finite values, minus infinity if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, share)) if len(finite) else -np.inf


def lineage_picture(path: Lineage, *, burn_in: int = 0, cooldown: int | None = None) -> Figure:
    """Draws the hyperparameters in a replica's lineage; only those that changed.

    Args:
        path: the replica's lineage, from `jaxpt.lineage`.
        burn_in: steps of burn-in, shaded if positive.
        cooldown: the step at which the cooldown begins, which is shaded to the end.
    """
    changing = [name for name, values in path.hyper.items() if np.ptp(values) > 0] or list(path.hyper)[:1]
    figure, column = new_column(8, 1.0 + 2.0 * len(changing), len(changing))
    edges = np.concatenate([[0], path.step])
    for name, axes in zip(changing, column, strict=True):
        values = path.hyper[name]
        axes.step(edges, np.concatenate([values, values[-1:]]), where="post", color=COLORS[0], linewidth=1.8)
        moved = path.step[:-1][np.diff(path.replica) != 0]
        if len(moved):
            axes.plot(moved, values[:-1][np.diff(path.replica) != 0], "o", color=COLORS[1], label="weights copied")
            axes.legend(frameon=False)
        if burn_in > 0:
            axes.axvspan(0, min(burn_in, int(path.step[-1])), color="#000000", alpha=0.06, zorder=0)
        shade_cooldown(axes, cooldown, int(path.step[-1]))
        if values.min() > 0 and values.max() > 5 * values.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        if len(rungs := np.unique(values)) <= 10:
            axes.set_yticks(rungs, [f"{value:.3g}" for value in rungs])
        axes.set(ylabel=words(name), xlim=(0, int(path.step[-1])))
    column[-1].set_xlabel("step")
    return figure
