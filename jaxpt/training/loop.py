"""The loop between dispatches: the periods in each, the monitors of their rows, when to save and when to end."""

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm.auto import tqdm

from jaxpt.core.data import Batches
from jaxpt.core.state import RunState, Trace
from jaxpt.engine.engine import Engine
from jaxpt.saving.keeping import Keeper
from jaxpt.saving.progress import Position, Progress
from jaxpt.training.divergence import DivergenceMonitor
from jaxpt.training.monitor import Monitor
from jaxpt.training.prepare import NEVER, Job
from jaxpt.training.rows import filled
from jaxpt.training.waiting import Wait

if TYPE_CHECKING:
    from jaxpt.saving.checkpoint import Checkpoints

Stopped = Literal["callback", "patience"] | None

# Seconds that a dispatch should take. Signals and the bar wait for its end, so it must be short; but each dispatch
# costs some twenty milliseconds, on the device and on the host. So dispatches grow longer as the run does.
_SHORTEST, _LONGEST, _SHARE = 1.0, 10.0, 0.25


class Agreed(NamedTuple):
    """The next action, the same in all processes.

    Attributes:
        periods: length of the next dispatch, before the limits that all processes know.
        due: whether a checkpoint is due.
        signalled: whether a signal asked any process to end.
        asked: whether a callback of any process asked for the end.
    """

    periods: int
    due: bool
    signalled: bool
    asked: bool


def agree(*, count: float = 0, due: bool = False, signalled: bool = False, asked: bool = False) -> Agreed:
    """Returns the first process's count and due, and for the rest whether any process has it; all call it together."""
    found = np.array([min(count, NEVER), due, signalled, asked], np.int64)
    if jax.process_count() > 1:
        each = multihost_utils.process_allgather(found)
        found = np.array([*each[0, :2], *each[:, 2:].max(0)])
    return Agreed(int(found[0]), bool(found[1]), bool(found[2]), bool(found[3]))


class Saver:
    """Writes a run's checkpoints, at most one per step; does nothing without a store.

    Args:
        store: the store that they are written to.
        minutes: minutes until the next checkpoint is due.
        every: periods until the next checkpoint is due; None: only time counts.
        done: whole periods that are already saved.
    """

    def __init__(self, store: "Checkpoints | None", minutes: float, every: int | None, done: int):
        self._store, self._seconds, self._every = store, 60 * minutes, every
        self._done, self._saved = done, time.perf_counter()

    def due(self) -> bool:
        """Returns whether a checkpoint is due by time."""
        return self._store is not None and time.perf_counter() - self._saved > self._seconds

    def due_after(self, done: int) -> bool:
        """Returns whether a checkpoint is due after `done` whole periods."""
        return self.due() or (self._every is not None and done % self._every == 0)

    def until(self, done: int) -> int:
        """Returns how many periods remain until the next checkpoint that is due by their number."""
        return NEVER if self._every is None else self._every - done % self._every

    def save(self, state: RunState, monitor: Monitor, done: int, keeper: Keeper, stream: Position | None) -> None:
        """Saves the state after `done` whole periods, and their stream's position, unless it is saved already."""
        if self._store is None or done == self._done:
            return
        trace = monitor.join()
        progress = Progress(len(trace.step), monitor.seconds, monitor.images, stream)
        self._store.save(state, trace, progress, keeper.saved())
        self._done, self._saved = done, time.perf_counter()


@dataclasses.dataclass
class Loop:
    """Runs a job's dispatches.

    Attributes:
        job: the run's programs and data.
        whole: whole periods of the run.
        rest: steps of the short last period.
        store: the run's checkpoints, if it has a directory.
        saver: decides when checkpoints are written.
        wait: waits for a stream's minibatches.
        monitor: shows the rows to the bar, recorders and callbacks.
        divergence: warns of replicas that diverge.
        keeper: keeps the best replica of all periods.
        keeps: whether the keeper looks at every period.
        signalled: whether a signal has asked for the end.
        interrupted: function of the periods done that returns the error that ends the run.
    """

    job: Job
    whole: int
    rest: int
    store: "Checkpoints | None"
    saver: Saver
    wait: Wait
    monitor: Monitor
    divergence: DivergenceMonitor
    keeper: Keeper
    keeps: bool
    signalled: Callable[[], bool]
    interrupted: Callable[[int], BaseException]

    def run(self, state: RunState, done: int) -> tuple[RunState, Stopped]:
        """Returns the state at the end of the run, and what ended it early, if anything: a callback or patience.

        Args:
            state: the state after `done` whole periods; its buffers are overwritten.
            done: periods of earlier calls.

        Raises:
            Interrupted: a signal ended the run.
            Diverged: see `DivergenceMonitor`.
        """
        job, batches, trained = self.job, self.job.batches, 0.0
        stopped: Stopped = "patience" if self.monitor.left == 0 else None
        count, _, ended, _ = agree(count=1, signalled=self.signalled())
        while done < self.whole and not ended and not stopped:
            before = time.perf_counter()
            state, trace = job.engine.run(
                state, job.data, periods=count, max_periods=job.max_periods, batches=batches, donate=True
            )
            rows = filled(trace, count)
            done += count
            took = time.perf_counter() - before
            trained += took
            save = partial(self.saver.save, state, self.monitor, done, self.keeper, job.position)
            self._look(job.engine, state, rows, batches, save)
            now = agree(
                count=_seconds(trained) * count / took,
                due=done == self.whole or self.saver.due_after(done),
                signalled=self.signalled(),
                asked=self.monitor.asked,
            )
            ended = now.signalled
            stopped = "callback" if now.asked else "patience" if self.monitor.left == 0 else None
            if now.due or ended or stopped:
                save()
            count = self._next(now.periods, done)
            if not ended and not stopped:  # reached before the wait for a stream, which may be long
                batches, ended = self.wait.next(job.feed, save)
        if ended and self.store is not None:
            self.store.wait()
            raise self.interrupted(done)
        if self.rest and not stopped:
            state, trace = job.short.run(state, job.data, periods=1, batches=batches, donate=True)
            self._look(job.short, state, filled(trace, 1), batches)
        return state, stopped

    def finish(self) -> None:
        """Waits for the last checkpoint; raises Interrupted if a signal arrived meanwhile."""
        if self.store is not None:
            self.store.wait()
            if agree(signalled=self.signalled()).signalled:
                raise self.interrupted(self.whole)

    def _look(
        self,
        engine: Engine,
        state: RunState,
        rows: Trace,
        batches: Batches | None,
        save: Callable[[], None] | None = None,
    ) -> None:
        """Passes the rows of a dispatch to the monitor, the keeper and the divergence monitor.

        If a callback or a recorder raises, the state is saved first: its mistake must not cost the work since the last
        checkpoint. Not with several processes, which save together, while one of them may fail alone.

        Args:
            engine: the dispatch's engine.
            state: the state after it.
            rows: its rows.
            batches: its minibatches, if they come from a stream.
            save: saves the state; None for the short last period, which no checkpoint holds.
        """
        try:
            self.monitor.add(state, rows, self.job.images(engine, rows, batches), whole=save is not None)
        except Exception:
            if self.store is not None and save is not None and jax.process_count() == 1:
                if self.keeps:
                    self.keeper.look(state, rows)
                save()
                self.store.wait()
            raise
        with tqdm.external_write_mode(file=sys.stderr):  # a warning must not land on the bar's line
            self.divergence.look(rows, _kept(self.store))
        if self.keeps:
            self.keeper.look(state, rows)

    def _next(self, wanted: int, done: int) -> int:
        """Returns the number of periods in the next dispatch.

        No dispatch runs past the end of patience or past a checkpoint, so where a run ends does not depend on how it is
        divided.
        """
        if self.keeps:
            return 1
        limits: Any = (self.job.max_periods, self.saver.until(done), self.monitor.left or self.whole, self.whole - done)
        return max(1, min(wanted, *limits))


def _seconds(trained: float) -> float:
    """Returns how many seconds the next dispatch should take, given the seconds of all so far."""
    return min(max(_SHORTEST, _SHARE * trained), _LONGEST)


def _kept(store: "Checkpoints | None") -> str:
    """Returns a phrase for an error message: the checkpoint from which the run can be resumed."""
    return f"; {store.directory} keeps step {store.steps[-1]}" if store is not None and store.steps else ""
