"""Pictures of the diffusion of weights at each value of a hyperparameter."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxpt.core.types import AnyArray
from jaxpt.diagnostics import interval
from jaxpt.diagnostics.displacement import Diffusion
from jaxpt.results.plots.style import COLORS, STYLE, new_axes, words


def diffusion_picture(
    step: Int[AnyArray, " P"],
    displacement: Float[AnyArray, "P S M"],
    values: Float[AnyArray, " M"],
    *,
    name: str = "value",
) -> Figure:
    """Draws the weights' displacement, one curve per value: the mean over seeds, with its 95 % interval as a band.

    Figure 1 of arXiv 1909.04013, from a `Diffusion`.

    Args:
        step: steps since t0.
        displacement: |W(t) - W(t0)|.
        values: the hyperparameter's values, coldest first.
        name: the hyperparameter's name, for the legend.
    """
    figure, axes = new_axes(8, 4.2)
    _draw_diffusion(axes, step, displacement, values)
    # Hottest on top, the order of the curves if the hyperparameter acts like a temperature.
    figure.legend(title=words(name), loc="outside right upper", frameon=False, reverse=True)
    return figure


def diffusion_panels(found: Sequence[Diffusion]) -> Figure:
    """Draws one panel per hyperparameter, as `diffusion_picture` does, with its verdict (figure 1 of arXiv 1909.04013).

    Args:
        found: one or more results of `jaxpt.diffusion`.
    """
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * columns + 0.4, 3.6 * rows), dpi=150, layout="constrained")
        for place, one in enumerate(found, 1):
            axes = figure.add_subplot(rows, columns, place)
            _draw_diffusion(axes, one.steps, one.displacement, one.values)
            axes.set_title(f"{words(one.name)}: {one.verdict().answer}", fontsize=10)
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
