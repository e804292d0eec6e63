"""The loop between dispatches: how many periods each holds, what looks at their rows, when to save and when to end."""

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
from jaxpt.training.divergence import DivergenceMonitor
from jaxpt.training.monitor import Monitor
from jaxpt.training.prepare import NEVER, Job
from jaxpt.training.rows import filled
from jaxpt.training.waiting import Wait

if TYPE_CHECKING:
    from jaxpt.saving.checkpoint import Checkpoints

Stopped = Literal["callback", "patience"] | None

# Seconds that a dispatch should take: signals and the bar wait for its end, but each costs some twenty milliseconds, on
# the device and on the host. So they grow with the run.
_SHORTEST, _LONGEST, _SHARE = 1.0, 10.0, 0.25


class Agreed(NamedTuple):
    """What all processes do next.

    Attributes:
        periods: of the next dispatch, before the limits that all processes know.
        due: whether a checkpoint is due.
        signalled: whether a signal asked any process to end.
        asked: whether a callback of any process asked for the end.
    """

    periods: int
    due: bool
    signalled: bool
    asked: bool


def agree(*, count: float = 0, due: bool = False, signalled: bool = False, asked: bool = False) -> Agreed:
    """Returns the first process's count and due, and what any process says of the rest; all call it together."""
    found = np.array([min(count, NEVER), due, signalled, asked], np.int64)
    if jax.process_count() > 1:
        each = multihost_utils.process_allgather(found)
        found = np.array([*each[0, :2], *each[:, 2:].max(0)])
    return Agreed(int(found[0]), bool(found[1]), bool(found[2]), bool(found[3]))


class Saver:
    """Writes a run's checkpoints, at most one for each step; does nothing without a store.

    Args:
        store: where they go.
        minutes: after which the next one is due.
        every: periods after which the next one is due; None: time alone counts.
        done: whole periods that are saved already.
    """

    def __init__(self, store: "Checkpoints | None", minutes: float, every: int | None, done: int):
        self._store, self._seconds, self._every = store, 60 * minutes, every
        self._done, self._saved = done, time.perf_counter()

    def due(self) -> bool:
        """Returns whether the last checkpoint is longer ago than it may be."""
        return self._store is not None and time.perf_counter() - self._saved > self._seconds

    def due_after(self, done: int) -> bool:
        """Returns whether one is due after `done` whole periods."""
        return self.due() or (self._every is not None and done % self._every == 0)

    def until(self, done: int) -> int:
        """Returns after how many further periods the next one is due by their number."""
        return NEVER if self._every is None else self._every - done % self._every

    def save(self, state: RunState, monitor: Monitor, done: int, keeper: Keeper) -> None:
        """Saves the state after `done` whole periods, unless it is saved already."""
        if self._store is None or done == self._done:
            return
        self._store.save(state, monitor.join(), monitor.seconds, monitor.images, keeper.saved())
        self._done, self._saved = done, time.perf_counter()


@dataclasses.dataclass
class Loop:
    """Runs a job's dispatches.

    Attributes:
        job: programs and data.
        whole: whole periods of the run.
        rest: steps of the short last one.
        store: the run's checkpoints, if it has a directory.
        saver: decides when they are written.
        wait: for a stream's minibatches.
        monitor: shows the rows to the bar, recorders and callbacks.
        divergence: warns of replicas that are lost.
        keeper: of the best replica of all periods.
        keeps: whether it is to look at every period.
        signalled: whether a signal has asked for the end.
        interrupted: done periods -> the error that ends the run then.
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
        """Returns the state after the last step, or where callbacks or patience ended the run, and which of them did.

        Args:
            state: after `done` whole periods; it is written over.
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
            state, trace = job.engine.run(state, job.data, periods=count, room=job.room, batches=batches, donate=True)
            rows = filled(trace, count)
            done += count
            took = time.perf_counter() - before
            trained += took
            self._look(job.engine, state, rows, batches)
            now = agree(
                count=_seconds(trained) * count / took,
                due=done == self.whole or self.saver.due_after(done),
                signalled=self.signalled(),
                asked=self.monitor.asked,
            )
            ended = now.signalled
            stopped = "callback" if now.asked else "patience" if self.monitor.left == 0 else None
            save = partial(self.saver.save, state, self.monitor, done, self.keeper)
            if now.due or ended or stopped:
                save()
            count = self._next(now.periods, done)
            if not ended and not stopped:  # decided before the wait for a stream, which may be long
                batches, ended = self.wait.next(job.feed, save)
        if ended and self.store is not None:
            self.store.wait()
            raise self.interrupted(done)
        if self.rest and not stopped:
            state, trace = job.short.run(state, job.data, periods=1, batches=batches, donate=True)
            self._look(job.short, state, filled(trace, 1), batches, whole=False)
        return state, stopped

    def finish(self) -> None:
        """Waits for the last checkpoint; raises Interrupted if a signal came meanwhile."""
        if self.store is not None:
            self.store.wait()
            if agree(signalled=self.signalled()).signalled:
                raise self.interrupted(self.whole)

    def _look(self, engine: Engine, state: RunState, rows: Trace, batches: Batches | None, whole: bool = True) -> None:
        """Shows the rows of a dispatch to all who look at them."""
        self.monitor.add(state, rows, self.job.images(engine, rows, batches), whole=whole)
        with tqdm.external_write_mode(file=sys.stderr):  # a warning gets a line of its own
            self.divergence.look(rows, _kept(self.store))
        if self.keeps:
            self.keeper.look(state, rows)

    def _next(self, wanted: int, done: int) -> int:
        """Returns how many periods the next dispatch holds.

        No dispatch goes past the end of patience or a checkpoint: where a run ends does not depend on how it is cut.
        """
        if self.keeps:
            return 1
        limits: Any = (self.job.room, self.saver.until(done), self.monitor.left or self.whole, self.whole - done)
        return max(1, min(wanted, *limits))


def _seconds(trained: float) -> float:
    """Returns how long the next dispatch should take, given the time of all so far."""
    return min(max(_SHORTEST, _SHARE * trained), _LONGEST)


def _kept(store: "Checkpoints | None") -> str:
    """Returns which checkpoint there is to go back to, for an error message."""
    return f"; {store.directory} keeps step {store.steps[-1]}" if store is not None and store.steps else ""
