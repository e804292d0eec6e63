"""The picture of a grid search over several hyperparameters."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from jaxpt.core.types import AnyArray
from jaxpt.results.plots.style import COLORS, STYLE, words


def grid_picture(energy: Float[AnyArray, "*S M"], values: Mapping[str, Float[AnyArray, " M"]]) -> Figure:
    """Draws the energy of each point of a grid against each hyperparameter, and the lowest one at each value.

    A point is a dot in each panel; the best point is marked in all of them. Values are at equal distances.

    Args:
        energy: the points' energies at the end; their means over seeds are shown. A point is missing if a replica has
            diverged.
        values: {hyperparameter: its value at each point}.
    """
    mean = np.asarray(energy, np.float64).reshape(-1, np.shape(energy)[-1]).mean(0)
    known = np.where(np.isfinite(mean), mean, np.inf)
    best = int(known.argmin())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(4.0, 3.4 * len(values)), 3.6), dpi=150, layout="constrained")
        panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    for panel, (name, column) in zip(panels, values.items(), strict=True):
        levels, level = np.unique(np.asarray(column), return_inverse=True)
        lowest = np.array([known[level == i].min() for i in range(len(levels))])
        lowest[np.isinf(lowest)] = np.nan
        panel.plot(range(len(levels)), lowest, color=COLORS[0], linewidth=1.6, label="lowest at this value", zorder=2)
        panel.plot(level, mean, "o", color=COLORS[0], alpha=0.6, markersize=5, linestyle="none", zorder=3)
        panel.plot(level[best], mean[best], "o", color=COLORS[1], markersize=8, label="best point", zorder=4)
        every = -(-len(levels) // 8)
        panel.set_xticks(range(0, len(levels), every), [f"{value:.3g}" for value in levels[::every]])
        panel.set_xlim(-0.5, len(levels) - 0.5)
        panel.set_xlabel(words(name))
    panels[0].set_ylabel("validation energy at the end")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure
