"""All pictures for which a result has numbers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from jaxpt.core.grid import is_grid
from jaxpt.core.state import Trace
from jaxpt.diagnostics import acceptance, energy_by_rung, exchanges, flow
from jaxpt.diagnostics.lineage import Lineage
from jaxpt.results import plots
from jaxpt.results.record import Record, pick


def pictures(result: Record, seed: int | None = None) -> dict[str, Figure]:
    """Returns {name: figure}, see `Result.plot`; with several ladders, names end in the ladder's name."""
    trace, engine = result.trace, result.engine
    shown = 0 if seed is None and result.num_seeds else seed
    best = pick(result, "energy", shown)
    searched = 0 if engine.beginning is None else engine.beginning.end
    ladders = {}
    for name, ladder in sorted(engine.placed.to_host(result.state.ladders).items()):
        label = ladder.source or next(iter(ladder.values))
        ladders[name] = label, ladder.values[label] if shown is None else ladder.values[label][shown]
    return draw(
        Drawn(
            trace,
            ladders,
            {name: by_rung(trace, name, result.valid["energy"]) for name in ladders},
            engine.rule.moves_values,
            max(int(engine.burn_in), searched),
            "search" if searched > engine.burn_in else "burn-in",
            None if engine.ending is None else engine.ending.begin,
            {name: ladder.values for name, ladder in engine.ladders.items() if is_grid(ladder)},
        ),
        best,
        shown,
        result.lineage(best, shown),
    )


class Drawn(NamedTuple):
    """What the pictures of a run show.

    Attributes:
        trace: its rows.
        ladders: {ladder: (hyperparameter on the axis, its value on each rung [M])}.
        last: {ladder: the energies at the end, coldest rung first}, for ladders without exchanges.
        moves_values: whether a rung does not tell a replica's values.
        burn_in: steps before the first exchange.
        start: name of that part of the run.
        cooldown: the step at which the cooldown begins; None without one.
        grids: {ladder: {hyperparameter: its value at each point [M]}}, for those that are grids.
    """

    trace: Trace
    ladders: Mapping[str, tuple[str, Any]]
    last: Mapping[str, np.ndarray]
    moves_values: bool
    burn_in: int
    start: str
    cooldown: int | None
    grids: Mapping[str, Mapping[str, Any]] = {}


def draw(run: Drawn, best: int, seed: int | None, led: Lineage) -> dict[str, Figure]:
    """Returns {name: figure}.

    Args:
        run: what they show.
        best: the replica whose path is marked.
        seed: the seed whose paths are shown; None in a run with one.
        led: the best replica's lineage.
    """
    trace = run.trace
    part: dict[str, Any] = {"burn_in": run.burn_in, "cooldown": run.cooldown, "start": run.start}
    found: dict[str, Figure] = {}
    for name, (label, values) in run.ladders.items():
        last = "" if len(run.ladders) == 1 else f"-{name}"
        path = trace.rung[name] if seed is None else trace.rung[name][:, seed]
        moves = bool(len(exchanges(trace, name).step))
        if moves:
            found[f"paths{last}"] = plots.exchange_picture(trace.step, path, values, best, name=label, **part)
            found[f"acceptance{last}"] = plots.acceptance_picture(acceptance(trace, name), values, name=label)
            found[f"flow{last}"] = plots.flow_picture(flow(trace, name), values, name=label)
        if not run.moves_values:
            energies = energy_by_rung(trace, name) if moves else run.last[name]
            if name in run.grids and not moves:
                found[f"grid{last}"] = plots.grid_picture(energies, run.grids[name])
                continue
            found[f"energies{last}"] = plots.energy_picture(energies, values, name=label)
    for score in trace.valid:
        curves = {"validation": best_curve(trace, trace.valid[score])}
        if score in trace.test:
            curves["test"] = best_curve(trace, trace.test[score])
        found[f"score-{score}"] = plots.error_curves(
            trace.step,
            curves,
            ylabel=f"{score.replace('_', ' ')} of the replica\nthen best on validation",
            **part,
            window=max(1, len(trace.step) // 20),
            least_span=0.0,
        )
    found["lineage"] = plots.lineage_picture(led, burn_in=run.burn_in, cooldown=run.cooldown)
    return found


def best_curve(trace: Trace, scores: Any) -> Float[np.ndarray, "P S"]:
    """Returns for each period the score of the replica with the lowest validation energy in that period."""
    energy = np.asarray(trace.valid["energy"])
    order = np.where(np.isfinite(energy), energy, np.inf).argmin(-1)[..., None]
    return np.take_along_axis(np.asarray(scores, np.float64), order, -1).reshape(len(energy), -1)


def by_rung(trace: Trace, ladder: str, values: Any) -> np.ndarray:
    """Returns numbers of each replica at the end, [*S, M], in the order of the rungs of the last period."""
    return np.take_along_axis(np.asarray(values, np.float64), np.argsort(trace.rung[ladder][-1], -1), -1)
