"""Reads a run's directory: the state and the trace of any checkpoint in it."""

import dataclasses
import os
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core import tree
from jaxpt.core.state import Trace
from jaxpt.core.types import Info
from jaxpt.devices.execution import Execution
from jaxpt.engine.engine import Engine
from jaxpt.results.directory import runs_below
from jaxpt.results.record import last_scores
from jaxpt.results.result import Result
from jaxpt.saving import settings
from jaxpt.saving.files import local_path
from jaxpt.saving.keeping import in_order, lowest_energy


def load_run(
    engine: Engine, directory: str | os.PathLike[str], *, step: int | Literal["latest", "best"] = "latest"
) -> Result:
    """Returns the result of a run at a checkpoint in its directory; the latest two and the best are kept there.

    No data is needed. The scores of the result are those of the checkpoint's last period.

    Args:
        engine: the one that ran, or one with the same problem, optimizer, ladders and rule.
        directory: the `directory` of `fit`; no run may be using it.
        step: the number of steps of the checkpoint; or "latest"; or "best", the checkpoint with the lowest energy in
            its last period (with several seeds, averaged over those that have a finite one; a checkpoint with more of
            them comes first).

    Raises:
        ValueError: there is no such checkpoint; the engine has replicas of other shapes.
        CheckpointError: a checkpoint is damaged, or a run is using the directory.
    """
    from jaxpt.saving.checkpoint import Checkpoints  # Orbax takes a second to import

    place = local_path("directory", directory)
    if not (place / "settings.json").exists():
        below = runs_below(place)
        there = f", or one of the runs in it: {', '.join(below)}" if below else ""
        raise ValueError(f"{place} holds no run; give the directory that was given to fit{there}")
    store = Checkpoints(place)
    try:
        kept_steps = store.steps
        if step not in ("latest", "best") and step not in kept_steps:
            raise ValueError(f"{place} keeps no checkpoint of step {step!r}; it keeps {kept_steps}, or none yet")
        if not kept_steps:
            raise ValueError(f"{place} keeps no checkpoint yet")
        if step == "best":
            step = min((lowest_energy(store.rows(kept)["valid/energy"][-1]), kept) for kept in kept_steps)[1]
        chosen = int(kept_steps[-1] if step == "latest" else step)
        key = _key(store.settings()["seeds"])
        form = engine.abstract(key)
        row = _trace(store.rows(chosen), engine, form.replicas.params, key.ndim + 1)
        _check_engine(engine, settings.shapes(engine, form), store.settings(), place)
        engine = _timed(engine, store.settings())
        state, trace, progress, kept = store.load(form, row, jax.random.key_impl(key), chosen)
    finally:
        store.close()
    valid, test = last_scores(trace)
    placed = engine.placed
    execution = Execution(
        str(engine.replica_axis), placed.platform, engine.num_replicas // placed.num_shards, placed.num_devices
    )
    return Result(
        engine,
        state,
        trace,
        valid=valid,
        test=test,
        seconds=progress.seconds,
        compile_seconds=0.0,
        replica_images=progress.images,
        execution=execution,
        kept=tuple(in_order(kept, key.shape[0] if key.ndim else 1)) if kept else None,
    )


_OF_PAIRS = {"attempted": bool, "accepted": bool, "probability": np.float32}
"""{field of `Info` that has a column for each pair of rungs: its type}."""


def _timed(engine: Engine, then: dict[str, Any]) -> Engine:
    """Returns the engine with the steps of the run's search and cooldown, where its own are shares of a run."""
    engine, shares = engine.over(None), engine
    for name, fields in {"search": ("steps",), "cooldown": ("start", "steps")}.items():
        part, held = getattr(shares, name), then.get(name)
        if part is not None and part.share is not None and held is not None:
            timed = dataclasses.replace(part, share=None, **{field: int(held[field]) for field in fields})
            engine = dataclasses.replace(engine, **{name: timed})
    return engine


def _check_engine(engine: Engine, now: dict[str, Any], then: dict[str, Any], place: Any) -> None:
    """Raises ValueError if the engine's rule and replicas are not those of the run."""
    same: Any = [
        {"rule": side["rule"]["kind"], "replicas": side["replicas"], "given": side.get("given")}  # C may differ
        for side in (then, now)
    ]
    if changed := settings.differences(*same):
        raise ValueError(
            f"the engine is not the one of the run in {place} (then -> now): {'; '.join(changed)}; load_run takes the "
            "same problem, optimizer, ladders and rule"
        )


def _key(seeds: dict[str, Any]) -> jax.Array:
    """Returns the run's key, or its keys, from the seeds recorded in the directory."""
    return jax.random.wrap_key_data(jnp.asarray(seeds["keys"], jnp.uint32), impl=re.sub(r"\W", "", seeds["prng"]))


def _trace(rows: dict[str, np.ndarray], engine: Engine, params: Any, lead: int) -> Trace:
    """Returns a trace, given {name: array}.

    Args:
        rows: the arrays of a checkpoint's trace.
        engine: its `draws` gives the draws their structure.
        params: the replicas' weights as shapes.
        lead: the number of their leading axes, those of seeds and replicas.
    """
    parts: dict[str, dict[str, np.ndarray]] = {
        name: {} for name in ("valid", "test", "rung", "hyper", "info", "reported", "draws")
    }
    for name, array in rows.items():
        room, _, inner = name.partition("/")
        if inner or room == "draws":
            parts[room][inner] = array
    for name, dtype in _OF_PAIRS.items():  # a ladder of one rung has no pairs, and empty arrays are not saved
        parts["info"].setdefault(name, np.zeros((*rows["loss"].shape[:-1], 0), dtype))
    draws: Any = parts["draws"] or None
    if draws and engine.draws is not None:
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[lead:], leaf.dtype), params)
        form = jax.eval_shape(engine.draws, one)
        draws = jax.tree_util.tree_map_with_path(lambda path, _: draws[tree.name(path)], form)
    trace: Any = Trace
    info: Any = Info
    splits = (parts[name] for name in ("valid", "test", "rung", "hyper"))
    last = rows.get("cooldown"), parts["reported"] or None, draws
    return trace(rows["step"], rows["loss"], *splits, info(**parts["info"]), *last)
