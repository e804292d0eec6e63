"""Chooses how an engine executes its replicas by timing the ways on the run's own devices."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxpt.core import tree
from jaxpt.core.arguments import is_count, is_number
from jaxpt.core.data import Data, refuse_splits
from jaxpt.core.seeds import keys
from jaxpt.core.types import with_frozen
from jaxpt.devices.execution import UNROLL_AT_MOST, ReplicaAxis
from jaxpt.engine.company import depend_on_company, may_depend_on_company
from jaxpt.engine.engine import Engine
from jaxpt.saving.files import local_path
from jaxpt.studies import kept
from jaxpt.studies.bench import Bench, Timed
from jaxpt.studies.race import Lap, fastest, median, race
from jaxpt.studies.timings import Timing, Tuned, from_kept
from jaxpt.training.stream import is_stream

_SHARE = 0.75  # of the time for the execution of the replicas; the rest is for the size of evaluations


def tune(
    engine: Engine,
    data: Data | None = None,
    *more: Any,
    seconds: float = 20.0,
    seeds: int | None = None,
    prng: str | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> Tuned:
    """Times the ways to execute an engine's replicas on its own devices; returns the engine with the fastest.

        >>> tuned = jaxpt.tune(engine, jaxpt.Data(train, valid), seconds=1.0)
        >>> result = jaxpt.fit(tuned.engine, train, valid, steps=50)
        >>> tuned.engine.replica_axis in ("vmap", "unroll", "map")
        True

    The candidates are `replica_axis="vmap"`, "unroll" (up to eight replicas on a device), "map", and "map" with 2, 4,
    ... `replicas_at_once`; then, for the fastest, a quarter, half, twice and four times the engine's
    `evaluation_batch`. They compute the same numbers up to rounding. All else stays: the placement with its number of
    devices; and the convolutions, which belong to the model (on CPUs the engine rewrites them anyway, elsewhere
    `fast_convolutions` is worth a try by hand).

    Each candidate is compiled and warmed up. Then candidates take turns of about 0.4 s, round after round, and those
    that are clearly slower leave. They continue a run of their own from seed 0, in short periods of at most five steps
    with few validation examples; the evaluations of a whole period are timed by themselves, as calls of
    `Engine.evaluate`. So the times are close to those of `fit`, not the same.

    With a `directory` the choice is kept in DIRECTORY/tuned.json, which may be a directory of `fit`. The same call then
    returns it without timing, so that a script that is started again resumes its run with the same programs, to the
    same bits. On another kind or number of devices, with other versions, another problem, or shapes or settings of the
    engine that differ, it is timed anew. Values of hyperparameters and examples may change.

    Args:
        engine: the engine.
        data: the splits, arrays; None for a problem without data. For a run on a stream give some of its minibatches as
            a split.
        *more: nothing; splits given one by one, as `fit` takes them, are refused.
        seconds: time for timing; compiling and warming up, which takes about as long again or longer, are not in it.
            The first round is always run to its end.
        seeds: number of ladders in the run; by default one, without an axis of seeds.
        prng: the random generator of the run, as in `fit`. With "rbg" and "unsafe_rbg" the numbers of a run depend on
            how the replicas are executed, so only `evaluation_batch` is tuned.
        directory: where the choice is kept; by default nowhere.

    Returns:
        The engine and a table of all candidates; see `Tuned`.

    Raises:
        ValueError: an argument is out of range; the data does not fit the engine, or is a stream; there are several
            processes, or the devices only compile.
        MemoryError: no candidate fits on the devices.
        CheckpointError: tuned.json cannot be read or written.
    """
    refuse_splits("tune", more)
    data = _checked(engine, data, seconds, seeds)
    seeds = None if seeds is None else int(seeds)
    folder = None if directory is None else local_path("directory", directory).absolute()
    key = keys(0, None if seeds is None else range(seeds), prng)
    now = {} if folder is None else kept.circumstances(engine, data, key)
    if folder is not None and (found := kept.find(folder, now)) is not None:
        return from_kept(engine, found)
    tuned = _tuned(engine, data, key, seconds)
    if folder is not None:
        kept.keep(folder, now, tuned.as_dict())
    return tuned


def _checked(engine: Any, data: Any, seconds: Any, seeds: Any) -> Data:
    if not isinstance(engine, Engine):
        raise ValueError(
            f"engine must be a jaxpt.Engine, but it is of {type(engine)}; call tune(engine, jaxpt.Data(train, valid))"
        )
    if not is_number(seconds) or not seconds > 0:
        raise ValueError(f"seconds must be positive, the time for timing, but it is {seconds!r}")
    if seeds is not None and not is_count(seeds):
        raise ValueError(f"seeds must be the number of ladders, at least 1, or None, but it is {seeds!r}")
    engine.placed.check_runs()
    if jax.process_count() > 1:
        raise ValueError(
            f"tune times on the devices of one process, but there are {jax.process_count()}, which might choose "
            "differently; tune in a single process on as many replicas as each device gets, and give all processes "
            "Engine(replica_axis=..., replicas_at_once=..., evaluation_batch=...)"
        )
    if isinstance(data, tuple):
        data = Data(*data)
    elif data is None or not is_stream(data):
        data = Data(data)
    if is_stream(data) or is_stream(data.train):
        raise ValueError(
            "data.train is a stream, but tune needs a split that it can draw from again and again; give some of the "
            "stream's minibatches, concatenated, as jaxpt.Data(train, valid)"
        )
    engine.check(data)
    return data


def _tuned(engine: Engine, data: Data, key: jax.Array, seconds: float) -> Tuned:
    engine = dataclasses.replace(engine, problem=with_frozen(engine.problem, engine.placed.put))
    bench = Bench(engine, data, key)
    executions, notes = _executions(engine, data, key)
    rows, refused = _raced(bench, "execution", executions, _SHARE * seconds)
    if not any(row.chosen for row in rows):
        raise MemoryError(f"no way to execute the replicas fits; {refused}")
    best = next(one for one, row in zip(executions, rows, strict=True) if row.chosen)
    sizes, why = _sizes(best, data)
    more, _ = _raced(bench, "evaluation", sizes, (1 - _SHARE) * seconds)
    chosen = next(one for one, row in zip(sizes, more, strict=True) if row.chosen)
    note = "; ".join([*notes, *why]) or None
    return Tuned(chosen, (*rows, *more), kept.where(engine), note=note)


def _executions(engine: Engine, data: Data, key: jax.Array) -> tuple[list[Engine], list[str]]:
    """Returns the engine with each way to execute its replicas, the present one first; and what stays, and why."""
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return [engine], [f"replica_axis stays: numbers of {jax.random.key_impl(key)} keys depend on it"]
    replicas = engine.num_replicas // engine.placed.num_shards
    rows = replicas * (key.shape[0] // engine.placed.num_seed_shards if key.ndim else 1)
    # Without seeds "auto" is one of the others; with seeds it may execute these otherwise than the replicas.
    resolved = engine.replica_axis if key.ndim else engine.execution(data).replica_axis

    def candidates() -> Iterator[tuple[Any, int]]:
        yield resolved, engine.replicas_at_once if resolved in ("map", "auto") else 1
        yield "vmap", 1
        if rows <= UNROLL_AT_MOST:
            yield "unroll", 1
        if rows > 1:
            yield "map", 1
        at_once = 2
        while at_once < replicas:
            yield "map", at_once
            at_once *= 2

    found: dict[tuple[ReplicaAxis, int], None] = dict.fromkeys(candidates())
    return [dataclasses.replace(engine, replica_axis=how, replicas_at_once=count) for how, count in found], []


def _sizes(engine: Engine, data: Data) -> tuple[list[Engine], list[str]]:
    """Returns the engine with several sizes of evaluations, the present one first; and what stays, and why."""
    present, valid = engine.evaluation_batch, data.valid
    if valid is None:
        return [engine], []
    if may_depend_on_company(engine.problem, valid) and (names := depend_on_company(engine.problem, valid)):
        return [engine], [f"evaluation_batch stays: {', '.join(names)} of an example depends on those beside it"]
    counts = [engine.probe or tree.leading(valid)] + ([] if data.test is None else [tree.leading(data.test)])
    # A split is cut in the fewest equal slices, so several sizes may come to the same.
    found: dict[tuple[int, ...], int] = {}
    for size in (present, present // 4, present // 2, 2 * present, 4 * present):
        if size >= 1:
            found.setdefault(tuple(-(-count // size) for count in counts), size)
    return [dataclasses.replace(engine, evaluation_batch=size) for size in found.values()], []


def _raced(bench: Bench, part: str, engines: Sequence[Engine], seconds: float) -> tuple[list[Timing], str | None]:
    """Returns a row for each engine, of which the first is the present one; and why one does not fit."""
    turns: dict[int, Callable[[], Lap]] = {}
    rows = [
        Timing(part, one.replica_axis, one.replicas_at_once, one.evaluation_batch, given=number == 0)
        for number, one in enumerate(engines)
    ]
    for number, one in enumerate(engines):
        try:
            training = bench.training(one) if part == "execution" else Timed(lambda: 0.0, 0.0)
            evaluation = bench.evaluation(one)
        except MemoryError as error:
            rows[number] = dataclasses.replace(rows[number], refusal=str(error))
            continue
        turns[number] = _both(training, evaluation)
        took = training.compile_seconds + evaluation.compile_seconds
        rows[number] = dataclasses.replace(rows[number], compile_seconds=took)
    if not turns:
        return rows, rows[0].refusal
    every = bench.engine.every
    laps = race(turns, every, seconds)
    best = fastest(laps, every)
    for number, found in laps.items():
        middle, periods = median(found), sorted(lap.period(every) for lap in found)
        rows[number] = dataclasses.replace(
            rows[number],
            step=middle.step if part == "execution" else None,
            evaluation=middle.evaluation,
            period=float(np.median(periods)),
            least=periods[0],
            most=periods[-1],
            rounds=len(found),
            chosen=number == best,
        )
    return rows, None


def _both(training: Timed, evaluation: Timed) -> Callable[[], Lap]:
    return lambda: Lap(training.turn(), evaluation.turn())
