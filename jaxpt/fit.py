"""The host's loop around `Engine.run`: dispatches of about a second, a progress bar, checkpoints, and the result."""

import contextlib
import dataclasses
import itertools
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxpt import memory, settings, tree
from jaxpt.data import Batches, Data
from jaxpt.divergence import Watch
from jaxpt.engine import Engine, RunState, Trace
from jaxpt.failures import Interrupted
from jaxpt.interruption import Request, requests
from jaxpt.processes import clear_errors, is_first
from jaxpt.progress import counted, drawn, filled, joined, postfix, replica_images
from jaxpt.progress import swaps as swaps_of
from jaxpt.replica_axis import Execution
from jaxpt.result import Result
from jaxpt.stream import is_stream, prefetch

if TYPE_CHECKING:
    from jaxpt.checkpoint import Checkpoints

_NEVER = np.iinfo(np.int32).max
_GENERATORS = ("threefry2x32", "rbg", "unsafe_rbg")
_ROOMS = (64, 1024)  # periods that a dispatch may hold, its trace's rows; few kinds, so that runs share programs
_SECONDS = 1.0  # that a dispatch should take: signals wait for its end, and each costs about a millisecond


def fit(
    engine: Engine,
    train: PyTree | Iterable[PyTree] = None,
    valid: PyTree = None,
    *,
    steps: int,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    test: PyTree = None,
    prng: str | None = None,
    directory: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    save_minutes: float = 10.0,
    progress: bool | None = None,
    description: str = "training",
) -> Result:
    """Trains all replicas for so many steps and shows how far it is.

    Data goes to the device once. Dispatches hold as many periods as take about a second; steps that do not fill a last
    period are done without an exchange. However a run is cut, its bits are the same.

    A training split that does not fit on the device is given as a stream, an iterator of minibatches on the host (a
    Grain loader, say): a thread reads, stacks and copies the next period's while the device trains (`jaxpt.stream`).
    All replicas, and with `seeds` all ladders, share its minibatches. The order of examples being the same, the bits
    are those of a split on the device.

    With a `directory` the run is saved there in the background, and the same call goes on from the latest checkpoint,
    on whatever devices there are then, to the same bits with `replica_axis="map"` and else up to rounding (on the same
    devices always to the same bits); with more `steps` it trains on. SIGTERM and SIGINT then end
    the run after the period at work: it saves itself and raises `Interrupted`, which ends the process with code 75; a
    second signal ends it at once. A stream begins anew in a resumed run, and what was used of it is passed over; its
    examples, unlike those of arrays, are not compared with those of before.

    Args:
        engine: what to run.
        train: training split, leaves [N, ...]; or a stream of minibatches, leaves [batch_size, ...], of which exactly
            `steps` are taken; None for a problem without data.
        valid: validation split.
        steps: optimiser steps of each replica.
        seed: the seed of a run with one ladder.
        seeds: several seeds instead: as many whole ladders in one run, each equal, up to rounding, to a run with that
            seed alone.
        test: test split; recorded each period, nothing depends on it.
        prng: the generator behind all that is random, "threefry2x32", "rbg" or "unsafe_rbg"; by default JAX's own
            (`jax_default_prng_impl`, threefry). The two others are faster at dropout, and what they draw depends on
            `Engine.replica_axis` and on the number of devices.
        directory: where checkpoints go and come from; the latest two and the best are kept.
        save_every: periods between checkpoints, if they are not to go by time alone.
        save_minutes: minutes between them at most; there is always one at the end.
        progress: show a progress bar on stderr; by default if that is a terminal. Of several processes only the first
            does.
        description: what the bar is called.

    Returns:
        The final state, the trace as NumPy arrays, the final scores and how long it took; see `Result`.

    Raises:
        ValueError: steps is not a positive integer, seeds are not distinct integers, prng is unknown, or the data does
            not fit the engine, see `Engine.check`; a stream ends early or changes its shapes, see
            `jaxpt.stream.prefetch`; the directory holds a longer run, or one with other settings.
        MemoryError: the run does not fit on its devices; the message says how many replicas do.
        CheckpointError: a checkpoint cannot be written or read, or another run is using the directory.
        Diverged: a replica's energy is not finite, and the engine says `diverged="stop"`.
        Interrupted: a signal ended a run that has a directory.
        ProcessLost: another process of the run is gone, see `jaxpt.placement.clear_errors`.
    """
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, but it is {steps!r}")
    if save_every is not None and (not isinstance(save_every, int | np.integer) or save_every < 1):
        raise ValueError(f"save_every must be a number of periods, at least 1, but it is {save_every!r}")
    if not isinstance(save_minutes, int | float) or not save_minutes > 0:
        raise ValueError(f"save_minutes must be positive, but it is {save_minutes!r}")
    if not isinstance(directory, str | os.PathLike | None):
        raise ValueError(f"directory must be a path, but it is {directory!r}")
    key = _keys(seed, seeds, prng)
    whole, rest = divmod(int(steps), engine.every)
    early = getattr(engine.rule, "swap_while_tuning", False)
    if engine.rule.exchanges and not early and engine.every * whole <= engine.burn_in:
        warnings.warn(
            f"no exchange will happen: {steps} steps hold no whole period of {engine.every} steps that ends after the "
            f"burn-in of {engine.burn_in}",
            stacklevel=2,
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(clear_errors())
        request = stack.enter_context(requests(directory is not None))
        store = None if directory is None else _opened(stack, directory)
        done = _periods_done(store, engine, whole)
        job = _prepare(engine, train, Data(None, valid, test), whole, rest, done, key, store)
        state, traces, earlier, images = job.begin(store)
        # None: tqdm shows the bar on a terminal only.
        hidden = not is_first() or (None if progress is None else not progress)
        start = engine.every * done
        bar = stack.enter_context(
            tqdm(total=steps, initial=start, desc=description, unit="step", disable=hidden, dynamic_ncols=True)
        )
        watch = Watch(engine)
        batches, (count, _, ended) = job.batches, _agreed(1, False, request.name is not None)
        swaps = sum(map(swaps_of, traces), np.zeros(2, int))
        started = saved = time.perf_counter()
        while done < whole and not ended:
            before = time.perf_counter()
            state, trace = engine.run(state, job.data, periods=count, room=job.room, batches=batches, donate=True)
            traces.append(filled(trace, count))
            done += count
            now = time.perf_counter()
            images += job.images(engine, traces[-1], batches)
            watch.look(traces[-1], _kept(store))
            swaps += swaps_of(traces[-1])
            rate = images / (earlier + now - started)
            bar.set_postfix(postfix(traces[-1], swaps[0], swaps[1], rate), refresh=False)
            bar.update(engine.every * count)
            batches = next(job.feed, None)
            due = done == whole or now - saved > 60 * save_minutes or (save_every and done % save_every == 0)
            count, due, ended = _agreed(_SECONDS * count / (now - before), bool(due), request.name is not None)
            until = save_every - done % save_every if save_every else whole
            count = min(max(1, count), job.room, until, max(1, whole - done))
            if store is not None and (due or ended):
                traces = [joined(traces)]
                store.save(state, traces[0], earlier + now - started, images)
                saved = now
        if ended and store is not None:
            store.wait()
            raise _interrupted(request, description, engine.every * done, steps, directory)
        if rest:
            state, trace = job.short.run(state, job.data, periods=1, batches=batches, donate=True)
            traces.append(filled(trace, 1))
            images += job.images(job.short, traces[-1], batches)
            watch.look(traces[-1], _kept(store))
            bar.update(rest)
        seconds = earlier + time.perf_counter() - started
        if store is not None:
            store.wait()
            if _agreed(0, False, request.name is not None)[2]:
                raise _interrupted(request, description, engine.every * done, steps, directory)
    whole_trace: Any = joined(traces)
    last_valid, last_test = tree.take((whole_trace.valid, whole_trace.test), -1)
    if (parents := whole_trace.info.parents) is not None:  # the last copies carry their scores with them
        last_valid, last_test = jax.tree.map(
            lambda score: np.take_along_axis(score, parents[-1], -1), (last_valid, last_test)
        )
    if engine.probe is not None:
        with clear_errors():
            last_valid = jax.tree.map(np.asarray, engine.evaluate(state, job.data.valid))
    return Result(
        engine,
        state,
        whole_trace,
        valid=last_valid,
        test=last_test,
        seconds=seconds,
        compile_seconds=job.compile_seconds,
        replica_images=images,
        execution=job.execution,
    )


@dataclasses.dataclass(frozen=True)
class _Job:
    """A run that is ready to go: data on its devices, programs compiled."""

    engine: Engine
    short: Engine
    """For the last period, if it is short."""
    key: jax.Array
    data: Data
    batches: Batches | None
    """Of the first period, if they come from a stream, and then of the further ones."""
    feed: Iterator[Batches | None]
    room: int
    """Periods that a dispatch may hold."""
    form: RunState
    """The state as shapes with their places."""
    row: Trace
    """A trace as shapes, of any number of rows."""
    execution: Execution
    compile_seconds: float

    def begin(self, store: "Checkpoints | None") -> tuple[RunState, list[Trace], float, int]:
        """Returns the state to go on from, the rows so far, seconds and images: from a checkpoint, if there is one."""
        if store is None or not store.steps:
            return self.engine.init(self.key), [], 0.0, 0
        state, trace, progress = store.load(self.form, self.row, jax.random.key_impl(self.key))
        return state, [trace], progress.seconds, progress.images

    def images(self, engine: Engine, trace: Trace, batches: Batches | None) -> int:
        """Returns how many training examples these rows stand for."""
        if batches is not None:
            return replica_images(engine, trace, partial(counted, np.asarray(batches.counts)))
        if self.data.train is None:
            return 0
        return replica_images(engine, trace, partial(drawn, engine, trace, tree.leading(self.data.train)))


def _prepare(
    engine: Engine,
    train: Any,
    scored: Data,
    whole: int,
    rest: int,
    done: int,
    key: jax.Array,
    store: "Checkpoints | None",
) -> _Job:
    """Checks the data and brings it to the devices, compiles what is left to run, and sees that it fits."""
    feed: Iterator[Batches | None] = itertools.repeat(None)
    if streaming := is_stream(train):
        lengths = [engine.every] * (whole - done) + [rest] * (rest > 0)
        feed, train = prefetch(train, lengths, engine.batch_size, engine.every * done), None
    batches = next(feed, None)
    host = scored._replace(train=train)
    seen = host if batches is None else host._replace(train=tree.take(batches.examples, (0, 0)))
    engine.check(seen)
    data = engine.placed.put(host)  # once, to every device
    execution = engine.execution(seen)
    form = engine.abstract(key)
    if store is not None:
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), seen.train)
        store.match(settings.describe(engine, form, key, seen._replace(train=shapes) if streaming else host))
    short = dataclasses.replace(engine, every=rest or 1, burn_in=_NEVER)
    room = 1 if streaming else _ROOMS[whole > 40 * _ROOMS[0]]
    started = time.perf_counter()
    row: Any = None
    for part, periods, left in ((engine, room, done < whole), (short, 1, rest > 0)):
        if left or (part is engine and whole):
            given = _shapes(batches, part.every)
            lowered = part.lower(form, data, periods=periods, batches=given, donate=True)
            row = lowered.out_info[1] if row is None else row
            if left:
                most = memory.limit(engine.placed)
                memory.check(lowered.compile(), form.replicas, (data, given), execution, most, engine.placed.num_shards)
    seconds = time.perf_counter() - started
    return _Job(engine, short, key, data, batches, feed, room, form, row, execution, seconds)


def _opened(stack: contextlib.ExitStack, directory: str | os.PathLike[str]) -> "Checkpoints":
    from jaxpt.checkpoint import Checkpoints  # Orbax takes a second to import, so only who saves imports it

    store = Checkpoints(directory)
    stack.callback(store.close)
    return store


def _periods_done(store: "Checkpoints | None", engine: Engine, whole: int) -> int:
    begun = store.steps[-1] if store is not None and store.steps else 0
    if store is not None and begun > engine.every * whole:
        raise ValueError(
            f"{store.directory} holds a run of {begun} steps already, which are more than {engine.every * whole}; ask "
            "for more steps, or give another directory"
        )
    return begun // engine.every


def _agreed(count: float, due: bool, ended: bool) -> tuple[int, bool, bool]:
    """Returns the first process's numbers, and whether any process was asked to end: all must do the same."""
    found = np.array([min(count, _NEVER), due, ended], np.int64)
    if jax.process_count() > 1:
        each = multihost_utils.process_allgather(found)
        found = np.array([*each[0, :2], each[:, 2].max()])
    return int(found[0]), bool(found[1]), bool(found[2])


def _interrupted(
    request: Request, description: str, step: int, steps: int, directory: str | os.PathLike[str] | None
) -> Interrupted:
    request.answered = True
    what = (
        f"{description} was interrupted by {request.name or 'a signal to another process'} after step {step} of {steps}"
    )
    kept = f"it is saved in {directory}" if step else "nothing is trained yet"
    message = f"{what}; {kept}, and the same call goes on from there"
    if is_first():
        print(message, file=sys.stderr)
    return Interrupted(message)


def _kept(store: "Checkpoints | None") -> str:
    """What there is to go back to, for an error message."""
    return f"; {store.directory} keeps step {store.steps[-1]}" if store is not None and store.steps else ""


def _keys(seed: int, seeds: Sequence[int] | None, prng: str | None) -> jax.Array:
    """Returns the key of one seed, or those of several."""
    if prng not in (None, *_GENERATORS):
        raise ValueError(f"prng must be one of {', '.join(_GENERATORS)}, or None for JAX's own, but it is {prng!r}")
    wanted = [seed] if seeds is None else list(seeds) if isinstance(seeds, Sequence | np.ndarray) else None
    if not wanted or not all(isinstance(s, int | np.integer) for s in wanted) or len(set(wanted)) < len(wanted):
        raise ValueError(
            "seed must be an integer, and seeds a sequence of one or more different integers, e.g. range(5), but they "
            f"are seed={seed!r}, seeds={seeds!r}"
        )
    if seeds is not None and seed != 0:
        raise ValueError(f"give seed={seed!r} or seeds={seeds!r}, not both")
    make = partial(jax.random.key, impl=prng)
    return make(seed) if seeds is None else jax.vmap(make)(jnp.asarray(wanted))


def _shapes(batches: Batches | None, every: int) -> PyTree:
    """Returns one period's minibatches as shapes, for a period of so many steps."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, every, *leaf.shape[2:]), leaf.dtype), batches)
