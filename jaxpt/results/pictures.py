"""All pictures for which a result has numbers."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from jaxpt.core.grid import is_grid
from jaxpt.core.state import Trace
from jaxpt.diagnostics import acceptance, energy_by_rung, exchanges, flow
from jaxpt.results import plots
from jaxpt.results.record import Record, pick


def pictures(result: Record, seed: int | None = None) -> dict[str, Figure]:
    """Returns {name: figure}, see `Result.plot`; with several ladders, names end in the ladder's name."""
    trace, engine = result.trace, result.engine
    shown = 0 if seed is None and result.num_seeds else seed
    best = pick(result, "energy", shown)
    ladders = engine.placed.to_host(result.state.ladders)
    cooldown = None if engine.ending is None else engine.ending.begin
    searched = 0 if engine.beginning is None else engine.beginning.end
    burn_in, start = max(int(engine.burn_in), searched), "search" if searched > engine.burn_in else "burn-in"
    found: dict[str, Figure] = {}
    for name, ladder in sorted(ladders.items()):
        last = "" if len(ladders) == 1 else f"-{name}"
        label = ladder.source or next(iter(ladder.values))
        grid = ladder.values[label]
        values = grid if shown is None else grid[shown]
        path = trace.rung[name] if shown is None else trace.rung[name][:, shown]
        moves = bool(len(exchanges(trace, name).step))
        if moves:
            found[f"paths{last}"] = plots.exchange_picture(
                trace.step, path, values, best, name=label, burn_in=burn_in, cooldown=cooldown, start=start
            )
            found[f"acceptance{last}"] = plots.acceptance_picture(acceptance(trace, name), values, name=label)
            found[f"flow{last}"] = plots.flow_picture(flow(trace, name), values, name=label)
        if not engine.rule.moves_values:  # otherwise a rung does not tell a replica's values
            energies = energy_by_rung(trace, name) if moves else _last_by_rung(result, name)
            if is_grid(engine.ladders[name]) and not moves:
                found[f"grid{last}"] = plots.grid_picture(energies, engine.ladders[name].values)
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
            burn_in=burn_in,
            cooldown=cooldown,
            start=start,
            window=max(1, len(trace.step) // 20),
            least_span=0.0,
        )
    led = result.lineage(best, shown)
    found["lineage"] = plots.lineage_picture(led, burn_in=burn_in, cooldown=cooldown)
    return found


def best_curve(trace: Trace, scores: Any) -> Float[np.ndarray, "P S"]:
    """Returns for each period the score of the replica with the lowest validation energy in that period."""
    energy = np.asarray(trace.valid["energy"])
    order = np.where(np.isfinite(energy), energy, np.inf).argmin(-1)[..., None]
    return np.take_along_axis(np.asarray(scores, np.float64), order, -1).reshape(len(energy), -1)


def _last_by_rung(result: Record, ladder: str) -> np.ndarray:
    """Returns the final energies on the whole validation split, coldest rung first."""
    on_rung = np.argsort(result.trace.rung[ladder][-1], -1)
    return np.take_along_axis(np.asarray(result.valid["energy"], np.float64), on_rung, -1)
