"""One model trains along a recorded path of hyperparameters."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxpt.core.ladder import Ladder
from jaxpt.devices.placement import single
from jaxpt.diagnostics.lineage import Lineage, along
from jaxpt.engine.engine import Engine
from jaxpt.results.result import Result
from jaxpt.rules import Replay
from jaxpt.training.fit import fit


def replay(
    path: Lineage,
    engine: Engine,
    train: PyTree,
    valid: PyTree = None,
    *,
    steps: int | None = None,
    **options: Any,
) -> Result:
    """Trains one model along a path; its hyperparameters equal the recorded ones, bit for bit.

    The model starts from new weights. The result is that of `fit` with one replica; its trace records the
    hyperparameters again.

    >>> path = jaxpt.lineage(result.trace, result.best().replica)
    >>> alone = jaxpt.replay(path, engine, train, valid, seed=1)
    >>> bool((alone.trace.hyper["learning_rate"][:, 0] == path.hyper["learning_rate"]).all())
    True

    Args:
        path: `lineage(result.trace, result.best().replica)`.
        engine: the engine that produced the path; its problem, optimiser, schedule and periods are used.
        train: as in `fit`.
        valid: as in `fit`.
        steps: number of steps; by default that of the path.
        **options: `seed`, `seeds`, `test` and so on, as in `fit`.

    Raises:
        ValueError: the path lacks hyperparameters of the engine, or its periods have another length; search or
            cooldown of the engine is a share of another number of steps than the path's run had; see also `fit`.
    """
    if not isinstance(path, Lineage) or not isinstance(engine, Engine):
        raise ValueError(
            "replay(path, engine, train, valid) takes what jaxpt.lineage gave, and the engine that made it, but they "
            f"are a {type(path).__name__} and a {type(engine).__name__}"
        )
    wanted = {name for ladder in engine.ladders.values() for name in ladder.values} | set(engine.fixed)
    if missing := sorted(wanted - set(path.hyper)):
        raise ValueError(f"the path has no values of {', '.join(missing)}; it has {', '.join(path.hyper) or 'none'}")
    lengths = np.diff(path.step, prepend=0)
    if (lengths[:-1] != engine.every).any() or lengths[-1] > engine.every:
        raise ValueError(
            f"the path's periods have {', '.join(map(str, dict.fromkeys(lengths.tolist())))} steps, the engine's "
            f"{engine.every}; use the engine that made the path, and the trace of a whole run"
        )
    ladders = [
        Ladder(name=ladder.name, beta=[1.0], **{name: path.hyper[name][:1] for name in ladder.values})
        for ladder in engine.ladders.values()
    ]
    rule = Replay({name: jnp.asarray(path.hyper[name]) for name in sorted(wanted)})
    # The path holds the values that the search led to; what is left of it is the fall of rates in its steps.
    search = engine.beginning and dataclasses.replace(engine.beginning, factor=1.0)
    alone = dataclasses.replace(engine, ladder=ladders, rule=rule, burn_in=0, placement=single(), search=search)
    steps = int(path.step[-1]) if steps is None else steps
    _check_shares(path, engine, steps)
    return fit(alone, train, valid, steps=steps, **options)


def _check_shares(path: Lineage, engine: Engine, steps: int) -> None:
    """Raises ValueError if search or cooldown are shares of a run, and another run than this one made the path."""
    shares = [part for part in (engine.beginning, engine.ending) if part is not None and part.share is not None]
    schedule = engine.over(steps).in_force if shares else None
    if path.scheduled is None or schedule is None:
        return
    found = along(schedule, path.step, path.hyper)
    if any(not np.allclose(found.get(name, np.nan), values, rtol=1e-5) for name, values in path.scheduled.items()):
        raise ValueError(
            f"search or cooldown are shares of a run, and over {steps} steps they are not those of the path's run, "
            "which was planned longer or shorter; give the engine of its result, result.engine, which knows their steps"
        )
