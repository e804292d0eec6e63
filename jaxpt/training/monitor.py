"""What a run says while it goes: to its bar, to its files, to callbacks; and whether these want it to end."""

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
    """Where a run stands between two dispatches; what callbacks of `fit` get.

    Attributes:
        step: optimiser steps done.
        steps: steps asked for.
        trace: the rows of the periods since the last call, as NumPy arrays; one at least.
        lowest: the lowest energy of any replica so far, on the validation split (or probe batches); with seeds one
            each.
        seconds: wall time of the training so far.
        images: training examples so far, all replicas together.
        state: the state itself, on its devices: the next dispatch writes over it, so it cannot be used after the call.
    """

    step: int
    steps: int
    trace: Trace = dataclasses.field(repr=False)
    lowest: Float[np.ndarray, "*S"]
    seconds: float
    images: int
    state: RunState = dataclasses.field(repr=False)

    def copied_state(self) -> RunState:
        """Returns a copy of the state that lasts; it takes as much device memory again."""
        return jax.tree.map(jnp.copy, self.state)


Callback: TypeAlias = Callable[[Status], bool | None]
"""Called between dispatches; true ends the run."""


class BestEnergy:
    """The lowest energy of each seed's replicas so far, and for how many whole periods it has not been improved on."""

    def __init__(self) -> None:
        self.energy: Any = np.inf
        """[*S]; infinite before the first number."""
        self._since: Any = 0

    def look(self, trace: Trace, counts: bool = True) -> None:
        """Looks at further rows.

        Args:
            trace: the rows, in their order.
            counts: whether they are whole periods, which alone count as periods without improvement.
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
        """Whole periods since some seed's lowest energy was improved on."""
        return int(np.min(self._since))


class Monitor:
    """Takes the rows of one dispatch after the other and shows them to whoever wants to see them.

    Args:
        steps: that were asked for.
        traces: rows of earlier dispatches, or none.
        seconds: that these took.
        images: training examples that they stand for.
        bar: a tqdm bar.
        recorders: what else gets the rows; where they are files, earlier rows are in them.
        callbacks: what is called after each dispatch.
        patience: whole periods without an improvement after which the run is to end; None: never.
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
        """Wall time of the training, that before a resumption included."""
        return time.perf_counter() - self._began

    @property
    def left(self) -> int | None:
        """Periods after which patience ends at the earliest; None without patience."""
        return None if self._patience is None else max(0, self._patience - self._best.stale)

    def add(self, state: RunState, trace: Trace, images: int, whole: bool = True) -> None:
        """Takes what a dispatch has come to; the state is the one after it, and `whole` says that its periods are."""
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
            lowest: Any = np.float32(self._best.energy)  # as it was computed
            status = Status(step, self._steps, trace, lowest, seconds, self.images, state)
            wishes = [bool(callback(status)) for callback in self._callbacks]  # each is called, whatever others want
            self.asked = any(wishes)

    def join(self) -> Trace:
        """Returns all rows so far, as NumPy arrays."""
        self.traces = [joined(self.traces)]
        return self.traces[0]
