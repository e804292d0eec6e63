"""Reports a run's progress to its bar, its recorders and its callbacks, and collects their requests to end it."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxpt.core.state import RunState, Trace
from jaxpt.training.recorders.base import Recorder
from jaxpt.training.rows import joined, postfix, swaps


@dataclasses.dataclass(frozen=True)
class Status:
    """Progress of a run between two dispatches; the argument of `fit`'s callbacks.

    Attributes:
        step: optimiser steps done.
        steps: optimiser steps requested.
        trace: the rows of the periods since the last call, as NumPy arrays; at least one row.
        lowest: the lowest energy of any replica so far, on the validation split (or probe batches); with seeds one
            per seed.
        seconds: wall time of the training so far.
        images: training examples so far, all replicas together.
        state: the state itself, on its devices. The next dispatch overwrites it, so do not use it after the call.
    """

    step: int
    steps: int
    trace: Trace = dataclasses.field(repr=False)
    lowest: Float[np.ndarray, "*S"]
    seconds: float
    images: int
    state: RunState = dataclasses.field(repr=False)

    def copied_state(self) -> RunState:
        """Returns a copy of the state that stays valid; it takes as much device memory again."""
        return jax.tree.map(jnp.copy, self.state)


Callback: TypeAlias = Callable[[Status], bool | None]
"""Called between dispatches; a true result ends the run."""


class BestEnergy:
    """The lowest energy of each seed's replicas so far, and the number of whole periods since it last improved."""

    def __init__(self) -> None:
        self.energy: Any = np.inf
        """[*S]; infinite before the first finite energy."""
        self._since: Any = 0

    def look(self, trace: Trace, counts: bool = True) -> None:
        """Updates both from further rows.

        Args:
            trace: the rows, in order.
            counts: whether they are whole periods; only whole periods count as periods without improvement.
        """
        energy = np.asarray(trace.valid["energy"], np.float64)
        rows = np.where(np.isfinite(energy), energy, np.inf).min(-1)
        before = np.broadcast_to(self.energy, rows[:1].shape)
        lowest = np.minimum.accumulate(np.concatenate([before, rows]))
        better = lowest[1:] < lowest[:-1]
        passed = len(rows) * counts
        after = np.argmax(better[::-1], 0) * counts  # whole periods since the last improvement among these rows
        self.energy, self._since = lowest[-1], np.where(better.any(0), after, self._since + passed)

    @property
    def stale(self) -> int:
        """Whole periods since the lowest energy of any seed last improved."""
        return int(np.min(self._since))


class Monitor:
    """Takes the rows of each dispatch and passes them to the bar, the recorders and the callbacks.

    Args:
        steps: optimiser steps requested.
        traces: rows of earlier dispatches, if any.
        seconds: wall time of those rows.
        images: training examples used in those rows.
        bar: a tqdm bar.
        recorders: recorders of the rows; files among them already hold the earlier rows.
        callbacks: functions called after each dispatch.
        patience: whole periods without an improvement after which the run ends; None: never.
    """

    def __init__(
        self,
        steps: int,
        traces: Sequence[Trace],
        seconds: float,
        images: int,
        bar: Any,
        recorders: Sequence[Recorder],
        callbacks: Sequence[Callback],
        patience: int | None,
    ):
        self.traces, self.images = list(traces), images
        self.asked = False
        """Whether a callback has asked for the end."""
        self._steps, self._bar, self._recorders, self._callbacks = steps, bar, recorders, callbacks
        self._best, self._patience = BestEnergy(), patience
        self._swaps = sum(map(swaps, traces), np.zeros(2, int))
        self._began = time.perf_counter() - seconds
        self._told = seconds
        for trace in traces:
            self._best.look(trace)

    @property
    def seconds(self) -> float:
        """Wall time of the training, including the time before a resumption."""
        return time.perf_counter() - self._began

    @property
    def left(self) -> int | None:
        """Fewest periods after which patience can end the run; None without patience."""
        return None if self._patience is None else max(0, self._patience - self._best.stale)

    def add(self, state: RunState, trace: Trace, images: int, whole: bool = True) -> None:
        """Adds the rows of a dispatch; `state` is the state after it, `whole` whether its periods are whole ones."""
        self.traces.append(trace)
        self.images += images
        self._swaps = self._swaps + swaps(trace)
        self._best.look(trace, whole)
        seconds, step = self.seconds, int(trace.step[-1])
        for recorder in self._recorders:
            recorder.add(trace, (self._told, seconds), images)
        self._told = seconds
        accepted, offered = self._swaps
        shown = postfix(self._best.energy, accepted, offered, self.images / seconds)
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._callbacks:
            lowest: Any = np.float32(self._best.energy)  # the precision in which it was computed
            status = Status(step, self._steps, trace, lowest, seconds, self.images, state)
            wishes = [bool(callback(status)) for callback in self._callbacks]  # no short circuit: each is called
            self.asked = any(wishes)

    def join(self) -> Trace:
        """Returns all rows so far, as NumPy arrays."""
        self.traces = [joined(self.traces)]
        return self.traces[0]
