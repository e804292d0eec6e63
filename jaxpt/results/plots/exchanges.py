"""Pictures of the replicas' rungs, and of how well replicas travel along a ladder."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import PercentFormatter

from jaxpt.core.types import AnyArray
from jaxpt.diagnostics import interval
from jaxpt.results.plots.style import COLORS, new_axes, shade_cooldown, words


def exchange_picture(
    step: Int[AnyArray, " P"],
    rung: Int[AnyArray, "P M"],
    values: Float[AnyArray, " M"],
    best: int | None = None,
    *,
    name: str = "value",
    burn_in: int = 0,
    cooldown: int | None = None,
    start: str = "burn-in",
) -> Figure:
    """Draws each replica's path along the ladder (figure 2, right, of arXiv 1909.04013).

    Args:
        step: steps done at each period's end, `trace.step`.
        rung: the index process of one ladder, `trace.rung[ladder]`.
        values: one hyperparameter's value on each rung, coldest first.
        best: the replica whose path is highlighted; the others are drawn thin, and without a legend if there are many.
        name: the hyperparameter's name, for the axis.
        burn_in: steps of burn-in, shaded if positive.
        cooldown: the step at which the cooldown begins, which is shaded to the end.
        start: name of the steps of burn-in, "search" if they are one.
    """
    figure, axes = new_axes(8, min(8.0, max(3.2, 1.6 + 0.4 * len(values))))
    few = best is None or rung.shape[1] <= len(COLORS)  # only then do colours identify replicas
    # A period's rung holds from the end of the previous period to the end of this one.
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
            label=f"replica {replica}" + (" (best)" if chosen else "") if chosen or few else None,
        )[0]
        if chosen:
            line.set_path_effects([Stroke(linewidth=7, foreground="#bbbbbb"), Normal()])
    if burn_in > 0:
        axes.axvspan(0, min(burn_in, int(step[-1])), color="#000000", alpha=0.06, zorder=0, label=start)
    shade_cooldown(axes, cooldown, int(step[-1]))
    every = -(-len(values) // 20)
    axes.set_yticks(range(0, len(values), every), [f"{v:.3g}" for v in values[::every]])
    axes.set_ylim(-0.5, len(values) - 0.5)
    axes.set_xlim(0, int(step[-1]))
    axes.set(xlabel="step", ylabel=f"{words(name)}\n(coldest rung at the bottom)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def acceptance_picture(
    acceptance: Float[AnyArray, "*S pairs"], values: Float[AnyArray, " M"], *, name: str = "value"
) -> Figure:
    """Draws the acceptance of each pair of neighbouring rungs: the mean over seeds, with its 95 % interval.

    Args:
        acceptance: mean acceptance probability of each pair, from `diagnostics.acceptance`; NaN without offers.
        values: the hyperparameter's value on each rung, coldest first.
        name: the hyperparameter's name, for the axis.
    """
    figure, axes = new_axes(6.4, 3.6)
    mean, low, high = np.clip(over_seeds(acceptance), 0, 1)
    pairs = np.arange(len(mean))
    axes.bar(pairs, mean, width=0.7, color=COLORS[0], alpha=0.85, zorder=2)
    _whiskers(axes, pairs, mean, low, high)
    for pair in pairs[np.isnan(mean)]:
        axes.text(pair, 0.02, "no offer", rotation=90, ha="center", va="bottom", color="#555555", fontsize=9)
    axes.axhline(0.5, color="#555555", linestyle=":", zorder=3)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _label_rungs(axes, [f"{a:.3g}\n{b:.3g}" for a, b in itertools.pairwise(np.asarray(values).tolist())])
    axes.grid(visible=False, axis="x")
    axes.set(xlabel=f"pair of rungs: {words(name)} (coldest on the left)", ylabel="acceptance of a swap")
    return figure


def flow_picture(flow: Float[AnyArray, "*S M"], values: Float[AnyArray, " M"], *, name: str = "value") -> Figure:
    """Draws the share of each rung's visitors that come from the coldest end, and the straight line of a good ladder.

    Args:
        flow: from `diagnostics.flow`; NaN for rungs without visitors.
        values: the hyperparameter's value on each rung, coldest first.
        name: the hyperparameter's name, for the axis.
    """
    figure, axes = _per_rung(np.clip(over_seeds(flow), 0, 1), values, name)
    rungs = len(values)
    axes.plot([0, rungs - 1], [1, 0], color="#555555", linestyle="--", linewidth=1.2, label="a good ladder", zorder=1)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("flow f: share of visitors\nfrom the coldest rung")
    axes.legend(frameon=False)
    return figure


def energy_picture(energy: Float[AnyArray, "*S M"], values: Float[AnyArray, " M"], *, name: str = "value") -> Figure:
    """Draws the energy on each rung: the mean over seeds, with its 95 % interval.

    Args:
        energy: from `diagnostics.energy_by_rung`; NaN where none is known.
        values: the hyperparameter's value on each rung, coldest first.
        name: the hyperparameter's name, for the axis.
    """
    figure, axes = _per_rung(over_seeds(energy), values, name)
    axes.set_ylabel("mean energy on the rung")
    return figure


def over_seeds(
    numbers: Float[AnyArray, "*S K"],
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Returns each column's mean and 95 % interval over the seeds with a finite number there; NaN if none has one."""
    columns = np.asarray(numbers, np.float64).reshape(-1, np.shape(numbers)[-1]).T
    known = [column[np.isfinite(column)] for column in columns]
    found = np.array([interval(column) if len(column) else [np.nan] * 3 for column in known])
    return found[:, 0], found[:, 1], found[:, 2]


def _per_rung(
    numbers: Sequence[Float[np.ndarray, " M"]], values: Float[AnyArray, " M"], name: str
) -> tuple[Figure, Axes]:
    figure, axes = new_axes(6.4, 3.6)
    mean, low, high = numbers
    rungs = np.arange(len(mean))
    axes.plot(rungs, mean, "o-", color=COLORS[0], linewidth=1.8, markersize=5, zorder=3)
    _whiskers(axes, rungs, mean, low, high)
    _label_rungs(axes, [f"{value:.3g}" for value in np.asarray(values).tolist()])
    axes.set_xlabel(f"{words(name)} (coldest rung on the left)")
    return figure, axes


def _whiskers(axes: Axes, at: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    known = np.isfinite(low)
    if known.any():
        ends = np.stack([mean - low, high - mean])[:, known]
        axes.errorbar(at[known], mean[known], ends, fmt="none", ecolor="#222222", elinewidth=1.2, capsize=3, zorder=4)


def _label_rungs(axes: Axes, labels: Sequence[str]) -> None:
    """Labels as many rungs as fit, at equal distances."""
    longest = max(len(line) for label in labels for line in label.splitlines())
    every = -(-len(labels) * (longest + 1) // 60)
    axes.set_xticks(range(0, len(labels), every), labels[::every])
    axes.set_xlim(-0.6, len(labels) - 0.4)
