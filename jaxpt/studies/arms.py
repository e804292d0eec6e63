"""Checks of a comparison before the first step of its first arm, with errors in words."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxpt.core.data import Data
from jaxpt.core.seeds import keys
from jaxpt.devices.fitting import check_seeds
from jaxpt.engine.engine import Engine
from jaxpt.models.scores import is_higher_better
from jaxpt.results.ensemble import EnsembleMetric
from jaxpt.results.ensemble import ensemble as mean_prediction
from jaxpt.saving.files import local_path
from jaxpt.training.stream import is_stream

_OPTIONS = ("prng", "save_every", "save_minutes", "recorders")
"""The further options of `fit` that leave an arm's number of steps and the choice of its replica as they are."""


def checked_engines(engines: Any, baseline: Any) -> dict[str, Engine]:
    """Returns the arms; raises ValueError unless they are named engines, one of which is the baseline."""
    example = 'e.g. {"tempering": engine, "grid": dataclasses.replace(engine, rule=jaxpt.Independent())}'
    if not isinstance(engines, Mapping):
        raise ValueError(f"engines must be a mapping {{name: jaxpt.Engine}}, {example}, but it is of {type(engines)}")
    if not engines:
        raise ValueError(f"engines is empty; give one or more arms, {example}")
    for name, engine in engines.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"the names of engines must be texts that are not empty, but one is {name!r}; {example}")
        if not isinstance(engine, Engine):
            raise ValueError(f"engines[{name!r}] must be a jaxpt.Engine, but it is of {type(engine)}; {example}")
        engine.placed.check_runs()
    if baseline is not None and baseline not in list(engines):
        raise ValueError(f"baseline must be one of the arms, {', '.join(engines)}, but it is {baseline!r}")
    return dict(engines)


def groups_of(engines: Mapping[str, Engine], seeds: Any, at_once: Any) -> list[list[int]]:
    """Returns the seeds of each run of `fit`; raises ValueError if they are not distinct integers."""
    found = list(seeds) if isinstance(seeds, Sequence | np.ndarray) else []
    if not found or not all(isinstance(s, int | np.integer) for s in found) or len(set(found)) < len(found):
        raise ValueError(f"seeds must be one or more different integers, e.g. range(8), but they are {seeds!r}")
    keys(0, found, None)  # raises if two of them are the same for JAX
    if at_once is not None and (not isinstance(at_once, int | np.integer) or at_once < 1):
        raise ValueError(f"at_once must be a number of seeds, at least 1, or None for all, but it is {at_once!r}")
    size = len(found) if at_once is None else int(at_once)
    groups = [[int(seed) for seed in found[start : start + size]] for start in range(0, len(found), size)]
    for engine in engines.values():
        for count in {len(group) for group in groups}:
            check_seeds(engine.placed, count)
    return groups


def check_options(options: Mapping[str, Any], runs: int) -> None:
    """Raises ValueError for options of `fit` that `compare` does not pass on, and for files that runs would replace."""
    if unknown := [name for name in options if name not in _OPTIONS]:
        raise ValueError(
            f"compare takes {', '.join(_OPTIONS)} of fit's options, but not {', '.join(unknown)}: every arm runs all "
            "its steps on all seeds, and replicas are chosen at the end; for other runs call fit for each engine"
        )
    recorders = options.get("recorders", ())
    for one in recorders if isinstance(recorders, Iterable) else [recorders]:
        place = getattr(one, "place", None)  # `fit` refuses what is no recorder
        if place is not None and runs > 1:
            raise ValueError(
                f"each of the {runs} runs would replace what the one before it recorded in {place}; give compare a "
                "directory and the recorder none, so that each run has its own"
            )


def checked_ensemble(engines: Mapping[str, Engine], ensemble: Any) -> dict[str, EnsembleMetric]:
    """Returns the metrics of the ensembles; raises ValueError unless they are functions, and the problems predict."""
    if ensemble is None:
        return {}
    example = '{"error": lambda predictions, batch: jaxpt.zero_one_loss(predictions, batch["y"])}'
    if not isinstance(ensemble, Mapping) or not ensemble:
        raise ValueError(f"ensemble must be metrics of the mean prediction, e.g. {example}, but it is {ensemble!r}")
    for name, metric in ensemble.items():
        if not callable(metric):
            raise ValueError(f"ensemble[{name!r}] must be a function, e.g. {example}, but it is {metric!r}")
    if silent := [name for name, engine in engines.items() if engine.problem.predict is None]:
        raise ValueError(
            f"ensemble is given, but the problem of {', '.join(silent)} has no predictions to average; give "
            "nnx_problem or linen_problem predict=..., or leave ensemble out"
        )
    return dict(ensemble)


def folders_of(engines: Mapping[str, Engine], directory: Any) -> dict[str, Path | None]:
    """Returns each arm's directory; raises ValueError if two are the same."""
    if directory is None:
        return dict.fromkeys(engines)
    parent = local_path("directory", directory)
    names = {name: re.sub(r"[^\w.,=+-]+", "-", name).strip("-.") for name in engines}
    owner: dict[str, str] = {}
    for name, cleaned in names.items():
        if not cleaned:
            raise ValueError(f"the arm {name!r} needs a letter or a digit in its name, for a directory of its own")
        if (other := owner.setdefault(cleaned.casefold(), name)) != name:  # some file systems ignore case
            raise ValueError(
                f"the arms {other!r} and {name!r} would share the directory {parent / cleaned}; rename one of them"
            )
    return {name: parent / cleaned for name, cleaned in names.items()}


def checked_scores(engines: Mapping[str, Engine], data: Data, on: Any) -> str:
    """Returns the score to choose by; raises ValueError unless all arms have it, and the data fit all arms."""
    if data.train is not None and data.valid is None:
        raise ValueError("valid is missing, but the replica of each seed is chosen on it; hold out some examples")
    streams = data.train is not None and is_stream(data.train)
    if streams and isinstance(data.train, Iterator):
        raise ValueError(
            "train is an iterator, which only the first arm could read; give arrays, or a loader that every iter(...) "
            "reads from the beginning"
        )
    names = {}
    for name, engine in engines.items():
        if not streams:
            engine.check(data)
        names[name] = _score_names(engine, data.valid)
    if len({frozenset(found) for found in names.values()}) > 1:
        listed = "; ".join(f"{name}: {', '.join(found)}" for name, found in names.items())
        raise ValueError(f"the engines must have the same scores, but they have {listed}; give all the same metrics")
    known = next(iter(names.values()))
    on = "energy" if on == "validation" and on not in known else on
    if on not in known:
        raise ValueError(f"on must be one of the scores, {', '.join(known)}, but it is {on!r}")
    if len({is_higher_better(engine.problem, on) for engine in engines.values()}) > 1:
        raise ValueError(
            f"on={on!r} is better if higher in some arms, and if lower in others; give all the same metrics"
        )
    return on


def _score_names(engine: Engine, valid: PyTree) -> list[str]:
    """Returns the names of a problem's scores, the energy first; computes nothing."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), jnp.result_type(leaf)), valid)
    problem = engine.problem
    scored = jax.eval_shape(lambda batch: problem.evaluate(*problem.init(jax.random.key(0)), batch), one)
    return sorted(scored, key=lambda name: name != "energy")


def check_metrics(engines: Mapping[str, Engine], data: Data, metrics: dict[str, EnsembleMetric]) -> None:
    """Traces the metrics of the ensembles, so that a mistake in them does not cost a run; computes nothing."""
    if not metrics:
        return
    split = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.result_type(leaf)), data.valid)
    for engine in engines.values():
        state = engine.abstract(keys(0, range(engine.placed.num_seed_shards), None))
        jax.eval_shape(lambda state, split, by=engine: mean_prediction(by, state, split, metrics), state, split)
