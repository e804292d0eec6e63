"""The host's loop around `Engine.run`: dispatches of a second to ten, a progress bar, checkpoints, and the result."""

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxpt.core import tree
from jaxpt.core.data import Data
from jaxpt.core.extras import extra
from jaxpt.core.seeds import keys
from jaxpt.core.state import RunState, Trace
from jaxpt.devices.processes import clear_errors, is_first
from jaxpt.engine.engine import Engine
from jaxpt.results.result import Result
from jaxpt.saving.files import local_path
from jaxpt.saving.keeping import Keeper
from jaxpt.training.divergence import Watch
from jaxpt.training.monitor import Callback, Monitor, Recorder
from jaxpt.training.prepare import NEVER, prepare
from jaxpt.training.recorders import Lines, Scalars
from jaxpt.training.rows import BAR, filled, joined
from jaxpt.training.signals import interrupted, requests
from jaxpt.training.stream import Prefetch
from jaxpt.training.waiting import Wait

if TYPE_CHECKING:
    from jaxpt.saving.checkpoint import Checkpoints

# Seconds that a dispatch should take: signals and the bar wait for its end, but each costs some twenty milliseconds, on
# the device and on the host. So they grow with the run.
_SHORTEST, _LONGEST, _SHARE = 1.0, 10.0, 0.25


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
    callbacks: Sequence[Callback] = (),
    patience: int | None = None,
    keep_best: bool | None = None,
    tensorboard: bool = False,
    progress: bool | None = None,
    description: str = "training",
) -> Result:
    """Trains all replicas for so many steps and shows how far it is.

        >>> found = jaxpt.fit(engine, train, valid, steps=100, seeds=range(2))
        >>> found.trace.valid["energy"].shape  # [periods, seeds, replicas]
        (10, 2, 4)
        >>> best = found.best(seed=0)
        >>> best.model(valid["x"]).shape  # ready to call
        (80, 2)

    Data goes to the device once. Dispatches hold as many periods as take about a second, in long runs ten seconds, and
    1024 at most; steps that do not fill a last period are done without an exchange. However a run is cut, its bits are
    the same.

    A training split that does not fit on the device is given as a stream, an iterator of minibatches on the host (a
    Grain loader, say): a thread reads, stacks and copies the next period's while the device trains (`training.stream`).
    All replicas, and with `seeds` all ladders, share its minibatches. The order of examples being the same, the bits
    are those of a split on the device.

    With a `directory` the run is saved there in the background, and the same call goes on from the latest checkpoint,
    on whatever devices there are then, to the same bits with `replica_axis="map"` and else up to rounding (on the same
    devices always to the same bits); with more `steps` it trains on. SIGTERM and SIGINT then end
    the run after the period at work: it saves itself and raises `Interrupted`, which ends the process with code 75; a
    second signal ends it at once. A stream begins anew in a resumed run, and what was used of it is passed over; its
    examples, unlike those of arrays, are not compared with those of before. Callbacks, patience and checkpoints do not
    wait for a stream's next minibatches, and a signal ends that wait. If a stream raises, the steps done are saved
    first. DIRECTORY/periods.jsonl has a line for
    each period of the trace (`jaxpt.training.recorders.Lines`), also while the run goes on.

    A run can end before its last step: when a callback asks for it, or when the energies do not get better any more
    (`patience`). `result.best(ever=True)` is the best replica of all periods, with its weights then; everything else
    of the result is of the last step. It is saved in the directory if there is one, and steps that do not fill a period
    are left out. The same call goes on from there, unless its patience has come to an end already.

    Args:
        engine: what to run.
        train: training split, leaves [N, ...]; or a stream of minibatches, leaves [batch_size, ...], of which exactly
            `steps` are taken, or up to `every` more than were used if the run ends early; None for a problem without
            data.
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
        callbacks: functions that are called with a `Status` after every dispatch, that is after every second or so, in
            long runs every ten, and if a period takes longer than that, after every period. One that returns true ends
            the run. In several processes all of them call theirs, and one is enough to end the run.
        patience: end the run after so many whole periods without an energy, on the validation split (or probe batches),
            lower than all before; with seeds, once this holds for each of them. However a run is cut, it ends at the
            same period.
        keep_best: keep the weights of the best replica of all periods, for `result.best(ever=True)`; by default with a
            patience. Each period is then a dispatch of its own, which costs some milliseconds; better weights are
            copied to the host, and to the checkpoints.
        tensorboard: write scalars of the periods to DIRECTORY/tensorboard (`jaxpt.training.recorders.Scalars`); needs
            tensorboardX, `pip install "jaxpt[tensorboard]"`.
        progress: show a progress bar on stderr; by default if that is a terminal. Of several processes only the first
            does.
        description: what the bar is called.

    Returns:
        The final state, the trace as NumPy arrays, the final scores and how long it took; see `Result`.

    Raises:
        ValueError: steps is not a positive integer, seeds are not distinct integers, prng is unknown, or the data does
            not fit the engine, see `Engine.check`; a stream ends early or changes its shapes, see
            `jaxpt.prefetch`; the directory holds a longer run, or one with other settings; it is a URL; an
            option is out of range.
        ModuleNotFoundError: tensorboardX is asked for and not installed.
        MemoryError: the run does not fit on its devices; the message says how many replicas do.
        CheckpointError: a checkpoint cannot be written or read, or another run is using the directory.
        Diverged: a replica's energy is not finite, and the engine says `diverged="stop"`.
        Interrupted: a signal ended a run that has a directory.
        ProcessLost: another process of the run is gone, see `jaxpt.placement.clear_errors`.
    """
    if not isinstance(engine, Engine):
        raise ValueError(f"engine must be a jaxpt.Engine, fit(engine, train, valid, steps=...), not {type(engine)}")
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, but it is {steps!r}")
    if save_every is not None and (not isinstance(save_every, int | np.integer) or save_every < 1):
        raise ValueError(f"save_every must be a number of periods, at least 1, but it is {save_every!r}")
    if not isinstance(save_minutes, int | float | np.number) or not save_minutes > 0:
        raise ValueError(f"save_minutes must be positive, but it is {save_minutes!r}")
    directory = None if directory is None else local_path("directory", directory)
    callbacks = _checked_callbacks(callbacks)
    if patience is not None and (not isinstance(patience, int | np.integer) or patience < 1):
        raise ValueError(f"patience must be a number of periods, at least 1, but it is {patience!r}")
    if tensorboard:
        extra("tensorboardX", "tensorboard", "tensorboard=True")
        if directory is None:
            raise ValueError("tensorboard=True writes to DIRECTORY/tensorboard; give directory=...")
    key = keys(seed, seeds, prng)
    whole, rest = divmod(int(steps), engine.every)
    early = engine.rule.swap_while_tuning
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
        saver = Saver(store, save_minutes, done)
        wait = Wait(lambda: request.name is not None, saver.due)

        # None: tqdm shows the bar on a terminal only.
        hidden = not is_first() or (None if progress is None else not progress)
        start = engine.every * done
        bar = stack.enter_context(
            tqdm(total=steps, initial=start, desc=f"{description}, compiling", disable=hidden, dynamic_ncols=True)
        )
        bar.bar_format = BAR
        if start and not bar.disable:
            bar.write(f"{description} goes on from step {start} of {directory}", file=sys.stderr)

        def first(feed: Iterator[Any]) -> Any:
            batches, gone = wait.next(feed, lambda: None)
            if gone:
                raise interrupted(request, description, engine.every * done, steps, directory)
            return batches

        job = prepare(engine, train, Data(None, valid, test), whole, rest, done, key, store, first)
        if isinstance(job.feed, Prefetch):
            stack.callback(job.feed.close, 1.0)
        state, traces, earlier, images, keeper = job.begin(store)
        keeps = patience is not None if keep_best is None else keep_best
        bar.set_description(description, refresh=False)
        bar.unpause()  # its time begins with the training
        recorders = _recorders(stack, engine, store, joined(traces) if traces else None, tensorboard)
        monitor = Monitor(steps, traces, earlier, images, bar, recorders, callbacks, patience)
        watch = Watch(engine, fresh=not done)
        batches, (count, _, ended, _) = job.batches, _agreed(1, False, request.name is not None, False)
        trained = 0.0
        stopped: Literal["callback", "patience"] | None = None if monitor.left != 0 else "patience"
        while done < whole and not ended and not stopped:
            before = time.perf_counter()
            state, trace = engine.run(state, job.data, periods=count, room=job.room, batches=batches, donate=True)
            rows = filled(trace, count)
            done += count
            now = time.perf_counter()
            trained += now - before
            monitor.add(state, rows, job.images(engine, rows, batches))
            with tqdm.external_write_mode(file=sys.stderr):  # a warning gets a line of its own
                watch.look(rows, _kept(store))
            if keeps:
                keeper.look(state, rows)
            due = done == whole or saver.due() or (save_every and done % save_every == 0)
            count, due, ended, asked = _agreed(
                _seconds(trained) * count / (now - before), bool(due), request.name is not None, monitor.asked
            )
            stopped = "callback" if asked else "patience" if monitor.left == 0 else None
            until = save_every - done % save_every if save_every else whole
            # No dispatch goes past the end of patience: where a run ends does not depend on how it is cut.
            patient = monitor.left or whole
            count = 1 if keeps else min(max(1, count), job.room, until, patient, max(1, whole - done))
            save = partial(saver.save, state, monitor, done, keeper)
            if due or ended or stopped:
                save()
            if not ended and not stopped:  # decided before the wait for a stream, which may be long
                batches, ended = wait.next(job.feed, save)
        if ended and store is not None:
            store.wait()
            raise interrupted(request, description, engine.every * done, steps, directory)
        if rest and not stopped:
            state, trace = job.short.run(state, job.data, periods=1, batches=batches, donate=True)
            rows = filled(trace, 1)
            monitor.add(state, rows, job.images(job.short, rows, batches), whole=False)
            with tqdm.external_write_mode(file=sys.stderr):  # a warning gets a line of its own
                watch.look(rows, _kept(store))
            if keeps:
                keeper.look(state, rows)
        seconds = monitor.seconds
        if store is not None:
            store.wait()
            if _agreed(0, False, request.name is not None, False)[2]:
                raise interrupted(request, description, engine.every * done, steps, directory)
    whole_trace: Any = monitor.join()
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
        replica_images=monitor.images,
        execution=job.execution,
        stopped=stopped if int(whole_trace.step[-1]) < steps else None,
        kept=tuple(keeper.kept) if keeps else None,
    )


class Saver:
    """Writes a run's checkpoints, one for each step at most; does nothing without a store."""

    def __init__(self, store: "Checkpoints | None", minutes: float, done: int):
        self._store, self._seconds = store, 60 * minutes
        self._done, self._saved = done, time.perf_counter()

    def due(self) -> bool:
        """Returns whether the last checkpoint is longer ago than it may be."""
        return self._store is not None and time.perf_counter() - self._saved > self._seconds

    def save(self, state: RunState, monitor: Monitor, done: int, keeper: Keeper) -> None:
        """Saves the state after `done` whole periods, unless it is saved already."""
        if self._store is None or done == self._done:
            return
        self._store.save(state, monitor.join(), monitor.seconds, monitor.images, keeper.saved())
        self._done, self._saved = done, time.perf_counter()


def _seconds(trained: float) -> float:
    """Returns how long the next dispatch should take, given the time of all so far."""
    return min(max(_SHORTEST, _SHARE * trained), _LONGEST)


def _checked_callbacks(callbacks: Sequence[Callback]) -> list[Callback]:
    if not isinstance(callbacks, Iterable) or not all(map(callable, found := list(callbacks))):
        raise ValueError(f"callbacks must be a list of functions that take a Status, but it is {callbacks!r}")
    return found


def _opened(stack: contextlib.ExitStack, directory: str | os.PathLike[str]) -> "Checkpoints":
    from jaxpt.saving.checkpoint import Checkpoints  # Orbax takes a second to import, so only who saves imports it

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


def _recorders(
    stack: contextlib.ExitStack, engine: Engine, store: "Checkpoints | None", trace: Trace | None, tensorboard: bool
) -> list[Recorder]:
    """Returns what writes the run's periods to its directory, in the first process."""
    if store is None or not is_first():
        return []
    found: list[Recorder] = [Lines(store.directory / "periods.jsonl", engine, trace)]
    if tensorboard:
        found.append(Scalars(store.directory / "tensorboard", engine, trace))
    for recorder in found:
        stack.callback(recorder.close)
    return found


def _agreed(count: float, due: bool, ended: bool, asked: bool) -> tuple[int, bool, bool, bool]:
    """Returns the first process's numbers, and whether any process was asked to end: all must do the same."""
    found = np.array([min(count, NEVER), due, ended, asked], np.int64)
    if jax.process_count() > 1:
        each = multihost_utils.process_allgather(found)
        found = np.array([*each[0, :2], *each[:, 2:].max(0)])
    return int(found[0]), bool(found[1]), bool(found[2]), bool(found[3])


def _kept(store: "Checkpoints | None") -> str:
    """What there is to go back to, for an error message."""
    return f"; {store.directory} keeps step {store.steps[-1]}" if store is not None and store.steps else ""
