"""Pictures of a trace. Needs matplotlib: `pip install "jaxpt[plots]"`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from jaxpt.diagnostics import interval, running_mean
from jaxpt.diffusion import Diffusion
from jaxpt.types import AnyArray

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D4A9C", "#000000")
"""Okabe and Ito's palette, which the colour-blind can tell apart, and one violet."""

_STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
}


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        return figure, figure.add_subplot()


def exchange_picture(
    step: Int[AnyArray, " P"],
    rung: Int[AnyArray, "P M"],
    values: Float[AnyArray, " M"],
    best: int | None = None,
    *,
    name: str = "value",
    burn_in: int = 0,
) -> Figure:
    """Draws each replica's path over the ladder (figure 2, right, of arXiv 1909.04013).

    Args:
        step: steps done at each period's end, `trace.step`.
        rung: the index process of one ladder, `trace.rung[ladder]`.
        values: what the rungs stand for, coldest first: one hyperparameter of the ladder.
        best: the replica whose path is highlighted; the others are drawn thin.
        name: the hyperparameter's name, for the axis.
        burn_in: marked by a shaded stretch, if positive.
    """
    figure, axes = _axes(8, max(3.2, 1.6 + 0.4 * len(values)))
    # A period's rung holds from the end of the period before to its own.
    edges = np.concatenate([[0], step])
    for replica in range(rung.shape[1]):
        path = np.concatenate([rung[:, replica], rung[-1:, replica]])
        chosen = replica == best
        line = axes.step(
            edges,
            path,
            where="post",
            color=COLORS[replica % len(COLORS)],
            linewidth=2.4 if chosen else 1.3,
            alpha=1 if chosen or best is None else 0.55,
            zorder=3 if chosen else 2,
            label=f"replica {replica}" + (" (best)" if chosen else ""),
        )[0]
        if chosen:
            line.set_path_effects([Stroke(linewidth=7, foreground="#bbbbbb"), Normal()])
    if burn_in > 0:
        axes.axvspan(0, min(burn_in, int(step[-1])), color="#000000", alpha=0.06, zorder=0, label="burn-in")
    axes.set_yticks(range(len(values)), [f"{v:.3g}" for v in values])
    axes.set_ylim(-0.5, len(values) - 0.5)
    axes.set_xlim(0, int(step[-1]))
    axes.set(xlabel="step", ylabel=f"{name.replace('_', ' ')} (coldest rung at the bottom)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def error_curves(
    step: Int[AnyArray, " P"],
    curves: Mapping[str, Float[AnyArray, "P S"]],
    *,
    ylabel: str,
    burn_in: int = 0,
    window: int = 1,
) -> Figure:
    """Draws one curve per arm: the mean over seeds, with its 95 % interval as a band.

    With a window the running mean lies over the raw curve (figure 2, left, of arXiv 1909.04013).

    Args:
        step: steps done at each period's end.
        curves: {arm: one column per seed}.
        ylabel: what the curves are.
        burn_in: marked by a dotted line, if positive.
        window: periods of the running mean; 1: no smoothing.
    """
    figure, axes = _axes(8, 4.2)
    for (name, curve), color in zip(curves.items(), COLORS, strict=False):
        if window > 1:
            axes.plot(step, np.mean(curve, -1), color=color, linewidth=0.8, alpha=0.4)
        mean, low, high = interval(running_mean(curve, window))
        axes.plot(step, mean, color=color, linewidth=1.8, label=name)
        axes.fill_between(step, low, high, color=color, alpha=0.18, linewidth=0)
    if burn_in > 0:
        axes.axvline(burn_in, color="#555555", linestyle=":", label="end of burn-in")
    top = max(float(np.nanquantile(np.nanmean(c, -1), 0.9)) for c in curves.values())
    lowest = min(float(np.nanmin(np.nanmean(c, -1))) for c in curves.values())
    # Early training is far off: the end is what the picture is about.
    span = max(top - lowest, 1.0)
    axes.set_ylim(max(0.0, lowest - 0.4 * span), top + 0.6 * span)
    axes.set(xlabel="step", ylabel=ylabel, xlim=(0, int(step[-1])))
    axes.legend(frameon=False)
    return figure


def diffusion_picture(
    step: Int[AnyArray, " P"],
    displacement: Float[AnyArray, "P S M"],
    values: Float[AnyArray, " M"],
    *,
    name: str = "value",
) -> Figure:
    """Draws how far the weights get, one curve per value: the mean over seeds, with its 95 % interval as a band.

    Figure 1 of arXiv 1909.04013, from a `Diffusion`.

    Args:
        step: steps since t0.
        displacement: |W(t) - W(t0)|.
        values: the hyperparameter's values, coldest first.
        name: the hyperparameter's name, for the legend.
    """
    figure, axes = _axes(8, 4.2)
    _draw_diffusion(axes, step, displacement, values)
    # Hottest on top, as the curves are if the hyperparameter is like a temperature.
    figure.legend(title=name.replace("_", " "), loc="outside right upper", frameon=False, reverse=True)
    return figure


def diffusion_panels(found: Sequence[Diffusion]) -> Figure:
    """Draws one panel per hyperparameter, as `diffusion_picture` does, with its verdict (figure 1 of arXiv 1909.04013).

    Args:
        found: one or more results of `jaxpt.diffusion`.
    """
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2 * columns + 0.4, 3.6 * rows), dpi=150, layout="constrained")
        for place, one in enumerate(found, 1):
            axes = figure.add_subplot(rows, columns, place)
            _draw_diffusion(axes, one.steps, one.displacement, one.values)
            axes.set_title(f"{one.name.replace('_', ' ')}: {one.verdict().answer}", fontsize=10)
            axes.legend(frameon=False, reverse=True, fontsize=8)
    return figure


def _draw_diffusion(
    axes: Axes,
    step: Int[AnyArray, " P"],
    displacement: Float[AnyArray, "P S M"],
    values: Float[AnyArray, " M"],
) -> None:
    # All start at W(t0), which is not recorded.
    step, moved = np.concatenate([[0], step]), np.pad(displacement, ((1, 0), (0, 0), (0, 0)))
    for rung, value in enumerate(values):
        mean, low, high = interval(moved[..., rung])
        color = COLORS[rung % len(COLORS)]
        axes.plot(step, mean, color=color, linewidth=1.8, label=f"{value:.3g}")
        axes.fill_between(step, low, high, color=color, alpha=0.18, linewidth=0)
    axes.set(xlabel="steps since t0", ylabel="|W(t) - W(t0)|", xlim=(0, int(step[-1])))
    axes.set_ylim(bottom=0)
