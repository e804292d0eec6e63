"""The host's loop around `Engine.run`: dispatches of a second to ten, a progress bar, checkpoints, and the result."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxpt.core.cooldown import NEVER
from jaxpt.core.data import Data
from jaxpt.core.seeds import keys
from jaxpt.core.state import RunState
from jaxpt.devices.processes import clear_errors, is_first
from jaxpt.engine.engine import Engine
from jaxpt.results.record import last_scores
from jaxpt.results.result import Result
from jaxpt.saving.files import local_path
from jaxpt.training.divergence import DivergenceMonitor
from jaxpt.training.loop import Loop, Saver, Stopped
from jaxpt.training.monitor import Callback, Monitor
from jaxpt.training.prepare import Job, prepare
from jaxpt.training.recorders.base import Recorder, Run
from jaxpt.training.recorders.json_lines import JsonLines
from jaxpt.training.recorders.tracker import Tracker
from jaxpt.training.rows import BAR, joined
from jaxpt.training.signals import interrupted, requests
from jaxpt.training.stream import Prefetch
from jaxpt.training.waiting import Wait

if TYPE_CHECKING:
    from jaxpt.saving.checkpoint import Checkpoints


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
    recorders: Sequence[Recorder] = (),
    progress: bool | None = None,
    description: str = "training",
) -> Result:
    """Trains all replicas for `steps` optimiser steps and shows progress.

        >>> found = jaxpt.fit(engine, train, valid, steps=100, seeds=range(2))
        >>> found.trace.valid["energy"].shape  # [periods, seeds, replicas]
        (10, 2, 4)
        >>> best = found.best(seed=0)
        >>> best.model(valid["x"]).shape  # ready to call
        (80, 2)

    Data goes to the device once. Each dispatch runs as many periods as take about a second (ten seconds in long runs),
    at most 1024. Steps left over after the last whole period run without an exchange. The result is the same, bit for
    bit, however the run is divided into dispatches.

    A training split that does not fit on the device is given as a stream: an iterator of minibatches on the host, such
    as a Grain loader. A thread reads, stacks and copies the next period's minibatches while the device trains
    (`training.stream`). All replicas, and with `seeds` all ladders, share its minibatches; with `own_batches=True` each
    step takes M of them, the k-th for replica k. If the examples come in the same order, the result equals that of a
    split on the device, bit for bit.

    With a `directory`, checkpoints are written there in the background, and the same call resumes from the latest one;
    with more `steps` it trains further. On the same devices a resumed run gives the same bits. On other devices it
    gives the same bits with `replica_axis="map"`, and otherwise the same numbers up to rounding. SIGTERM and SIGINT
    end a run with a directory after the current period: it saves a checkpoint and raises `Interrupted`, which ends the
    process with code 75. A second signal ends the process at once. DIRECTORY/periods.jsonl has a line for each period
    of the trace (`jaxpt.JsonLines`), also during the run.

    A resumed run sets its stream to the position after the minibatches that were used, if the stream or its iterator
    has `get_state` and `set_state`, or `state_dict` and `load_state_dict`. Any other stream is read from the beginning;
    the last minibatch that is skipped must be the one that was used. Callbacks, patience and checkpoints are not
    delayed by the wait for a stream's next minibatches, and a signal ends this wait. If a stream raises, the steps done
    are saved first.

    A run can end before its last step: when a callback asks for it, or when the energies stop improving (`patience`).
    `result.best(ever=True)` is the best replica of all periods, with its weights of that time; the rest of the result
    is from the last step. It is saved in the directory if there is one, and steps that do not fill a period are left
    out. The same call resumes from there, unless its patience is already exhausted.

    Args:
        engine: the engine to run.
        train: training split, leaves [N, ...]; or a stream of minibatches, leaves [batch_size, ...]; None for a problem
            without data. Exactly `steps` minibatches are taken from a stream (M times as many with `own_batches`); if
            the run ends early, those of up to `every` steps more than were used.
        valid: validation split.
        steps: optimiser steps of each replica.
        seed: the seed of a run with one ladder.
        seeds: several seeds instead of one: one whole ladder per seed, all in one run. Each ladder equals, up to
            rounding, a run with that seed alone.
        test: test split; its scores are recorded each period and influence nothing.
        prng: the random generator: "threefry2x32", "rbg" or "unsafe_rbg"; by default JAX's own
            (`jax_default_prng_impl`, threefry). The other two are faster at dropout, but their numbers depend on
            `Engine.replica_axis` and on the number of devices.
        directory: checkpoints are written to it and read from it; the latest two and the best are kept.
        save_every: periods between checkpoints; by default only time counts.
        save_minutes: at most this many minutes between checkpoints; there is always one at the end.
        callbacks: functions that are called with a `Status` after every dispatch: about every second, in long runs
            every ten seconds, and after every period if a period takes longer. A callback that returns true ends the
            run. With several processes each calls its own callbacks, and one true result ends the run.
        patience: end the run after this many whole periods without a new lowest energy on the validation split (or
            probe batches); with seeds, once this holds for each seed. The run ends at the same period however it is
            divided into dispatches. It may end before the engine's cooldown begins, or soon after its search.
        keep_best: keep the weights of the best replica of all periods, for `result.best(ever=True)`; by default true
            if patience is given. Each period is then a separate dispatch, which costs some milliseconds; better
            weights are copied to the host, and to the checkpoints.
        recorders: further recorders of the periods: `jaxpt.TensorBoard()` or another `jaxpt.Recorder`.
        progress: show a progress bar on stderr; by default if stderr is a terminal. With several processes only the
            first shows one.
        description: label of the bar.

    Returns:
        The final state, the trace as NumPy arrays, the final scores and the wall time; see `Result`.

    Raises:
        ValueError: steps is not a positive integer, seeds are not distinct integers, prng is unknown, or an option is
            out of range; the data does not fit the engine (see `Engine.check`); a stream ends early, changes its
            shapes, or cannot go on where the earlier call ended (see `jaxpt.prefetch`); the directory is a URL, or
            holds a longer run or one with other settings.
        MemoryError: the run does not fit on its devices; the message states how many replicas do.
        CheckpointError: a checkpoint cannot be written or read, or another run is using the directory.
        Diverged: a replica's energy is not finite, and the engine has `diverged="stop"`.
        Interrupted: a signal ended a run that has a directory.
        ProcessLost: another process of the run has ended, see `jaxpt.placement.clear_errors`.
    """
    _check_options(engine, steps, save_every, save_minutes, patience)
    engine = engine.over(int(steps))
    directory = None if directory is None else local_path("directory", directory)
    callbacks = _checked_callbacks(callbacks)
    written = _checked_recorders(recorders, directory)
    key = keys(seed, seeds, prng)
    whole, rest = _periods(engine, int(steps))
    with contextlib.ExitStack() as stack:
        stack.enter_context(clear_errors())
        request = stack.enter_context(requests(directory is not None))
        store = None if directory is None else _opened(stack, directory)
        done = _periods_done(store, engine, whole)
        saver = Saver(store, save_minutes, save_every, done)
        wait = Wait(lambda: request.name is not None, saver.due)
        bar = _bar(stack, steps, engine.every * done, directory, progress, description)

        def ended(periods: int) -> BaseException:
            return interrupted(request, description, engine.every * periods, steps, directory)

        def first(feed: Iterator[Any]) -> Any:
            batches, gone = wait.next(feed, lambda: None)
            if gone:
                raise ended(done)
            return batches

        job = prepare(engine, train, Data(None, valid, test), whole, rest, done, key, store, first)
        _close_at_end(stack, job)
        about = {"steps": int(steps), "description": description}
        if store is not None:
            store.note(about)
        state, traces, earlier, images, keeper = job.begin(store)
        bar.set_description(description, refresh=False)
        bar.unpause()  # restarts the bar's clock: its rate leaves out preparation and compilation
        several = None if seeds is None else tuple(map(int, seeds))
        run = Run(engine, int(steps), directory, joined(traces) if traces else None, int(seed), several)
        monitor = Monitor(steps, traces, earlier, images, bar, _begun(stack, written, run), callbacks, patience)
        keeps = patience is not None if keep_best is None else keep_best
        divergence = DivergenceMonitor(engine, fresh=not done)
        loop = Loop(
            *(job, whole, rest, store, saver, wait, monitor, divergence, keeper, keeps),
            lambda: request.name is not None,
            ended,
        )
        state, stopped = loop.run(state, done)
        seconds = monitor.seconds
        loop.finish()
        if store is not None and stopped:
            store.note({**about, "ended_by": stopped})
    kept = tuple(keeper.kept) if keeps else None
    return _result(job, state, monitor, seconds, stopped, int(steps), kept)


def _result(
    job: Job, state: RunState, monitor: Monitor, seconds: float, stopped: Stopped, steps: int, kept: Any
) -> Result:
    """Returns the result of a run that has ended."""
    engine, trace = job.engine, monitor.join()
    valid, test = _last_scores(engine, state, trace, job)
    return Result(
        engine,
        state,
        trace,
        valid=valid,
        test=test,
        seconds=seconds,
        compile_seconds=job.compile_seconds,
        replica_images=monitor.images,
        execution=job.execution,
        stopped=stopped if int(trace.step[-1]) < steps else None,
        kept=kept,
    )


def _check_options(engine: Any, steps: Any, save_every: Any, save_minutes: Any, patience: Any) -> None:
    """Raises ValueError if a number is out of range, or `engine` is not an Engine."""
    if not isinstance(engine, Engine):
        raise ValueError(
            f"engine must be a jaxpt.Engine, but it is of {type(engine)}; call fit(engine, train, valid, steps=...)"
        )
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, but it is {steps!r}")
    engine.placed.check_runs()
    for name, value in {"save_every": save_every, "patience": patience}.items():
        if value is not None and (not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f"{name} must be a number of periods, at least 1, but it is {value!r}")
    if not isinstance(save_minutes, int | float | np.number) or not save_minutes > 0:
        raise ValueError(f"save_minutes must be positive, but it is {save_minutes!r}")


def _periods(engine: Engine, steps: int) -> tuple[int, int]:
    """Returns the whole periods of a run and the steps of its short last one; warns if no exchange follows burn-in."""
    whole, rest = divmod(steps, engine.every)
    begin = NEVER if engine.ending is None else engine.ending.begin
    quiet = max(int(engine.burn_in), 0 if engine.beginning is None else engine.beginning.end)
    if begin >= steps and engine.ending is not None:
        warnings.warn(f"the cooldown begins at step {begin}, but the run has steps={steps} only", stacklevel=3)
    if engine.beginning is not None and engine.beginning.end >= steps:
        warnings.warn(
            f"the search ends at step {engine.beginning.end}, but the run has steps={steps} only, so nothing is "
            "trained with what it finds; run longer, or leave it out",
            stacklevel=3,
        )
    last = min(begin // engine.every, whole)  # the last period that may end with an exchange
    if engine.rule.exchanges and not engine.rule.swap_while_tuning and engine.every * last <= quiet:
        cooled = "" if begin >= steps else f", and the cooldown begins at step {begin}"
        searched = "" if quiet == engine.burn_in else f", a search of {quiet} steps"
        warnings.warn(
            f"no exchange will happen: with every={engine.every}{searched} and burn_in={engine.burn_in} the first "
            f"comes after {(quiet // engine.every + 1) * engine.every} steps, but steps={steps}{cooled}",
            stacklevel=3,
        )
    return whole, rest


def _bar(
    stack: contextlib.ExitStack, steps: int, start: int, directory: Any, progress: bool | None, description: str
) -> Any:
    """Returns the progress bar, hidden in all processes but the first; at first it shows that programs are compiled."""
    hidden = not is_first() or (None if progress is None else not progress)  # None: shown on a terminal only
    bar = stack.enter_context(
        tqdm(total=steps, initial=start, desc=f"{description}, compiling", disable=hidden, dynamic_ncols=True)
    )
    bar.bar_format = BAR
    if start and not bar.disable:
        bar.write(f"{description} resumes at step {start} of {directory}", file=sys.stderr)
    return bar


def _close_at_end(stack: contextlib.ExitStack, job: Job) -> None:
    """Ends the thread that reads a stream when the run ends."""
    if isinstance(job.feed, Prefetch):
        stack.callback(job.feed.close, 1.0)


def _last_scores(engine: Engine, state: RunState, trace: Any, job: Job) -> tuple[Any, Any]:
    """Returns the scores at the end on the validation and the test split."""
    last_valid, last_test = last_scores(trace)
    if engine.probe is not None:
        with clear_errors():
            last_valid = jax.tree.map(np.asarray, engine.evaluate(state, job.data.valid))
    return last_valid, last_test


def _checked_callbacks(callbacks: Sequence[Callback]) -> list[Callback]:
    if not isinstance(callbacks, Iterable) or not all(map(callable, found := list(callbacks))):
        raise ValueError(f"callbacks must be a list of functions that take a Status, but it is {callbacks!r}")
    return found


def _opened(stack: contextlib.ExitStack, directory: str | os.PathLike[str]) -> "Checkpoints":
    from jaxpt.saving.checkpoint import Checkpoints  # Orbax takes a second to import: only for runs that save

    store = Checkpoints(directory)
    stack.callback(store.close)
    return store


def _periods_done(store: "Checkpoints | None", engine: Engine, whole: int) -> int:
    begun = store.steps[-1] if store is not None and store.steps else 0
    if store is not None and begun > engine.every * whole:
        raise ValueError(
            f"{store.directory} holds a run of {begun} steps already, which is more than {engine.every * whole}; give "
            "more steps, or another directory"
        )
    return begun // engine.every


def _checked_recorders(recorders: Sequence[Recorder], directory: Path | None) -> list[Recorder]:
    """Returns the recorders, the lines of JSON in the run's directory first."""
    found = list(recorders) if isinstance(recorders, Iterable) else [recorders]
    if not all(isinstance(one, Recorder) for one in found):
        raise ValueError(
            f"recorders must be a list of jaxpt.Recorder objects, e.g. [jaxpt.TensorBoard()], but it is {recorders!r}"
        )
    for one in found:
        one.check(directory)
    places = [one.key for one in found if isinstance(one, Tracker)]
    # Without a directory each begins runs of its own.
    if directory is not None and (twice := [place for place in places if places.count(place) > 1]):
        raise ValueError(
            f"two recorders keep the same runs ({twice[0]}); leave one out, or give it another project or another per"
        )
    known = any(isinstance(one, JsonLines) and one.path is None for one in found)
    return found if known or directory is None else [JsonLines(), *found]


def _begun(stack: contextlib.ExitStack, recorders: Sequence[Recorder], run: Run) -> Sequence[Recorder]:
    """Opens the recorders and returns them; returns none in processes other than the first."""
    if not is_first():
        return []
    for recorder in recorders:
        stack.push(partial(_ended, recorder))
        recorder.open(run)
    return recorders


def _ended(recorder: Recorder, _: Any, error: BaseException | None, __: Any) -> None:
    """Tells a recorder that the run has ended, and by which error, if any."""
    if error is not None:
        recorder.fail(error)
    recorder.close()
