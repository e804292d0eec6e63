"""Streams: minibatches from an iterator on the host, stacked by period and copied to the device ahead of time."""

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Bool, PyTree

from jaxpt.core import tree
from jaxpt.core.data import Batches
from jaxpt.core.ranges import check_numbers


def is_stream(train: Any) -> bool:
    """Returns whether an object is an iterator (or an iterable, such as a loader) rather than a pytree of arrays."""
    return isinstance(train, Iterable) and jax.tree_util.all_leaves([train]) and not hasattr(train, "shape")


def prefetch(
    stream: Iterable[PyTree],
    lengths: Sequence[int],
    batch_size: int,
    start: int = 0,
    check: Callable[[PyTree, str], None] | None = None,
) -> "Prefetch":
    """Returns an iterator over the minibatches of each period, on the device; a thread prepares the next period's.

    The thread begins a period as soon as the previous one is handed out, so reading, stacking and copying overlap with
    training; two periods of minibatches are in memory at a time. Exactly sum(lengths) minibatches are taken from the
    stream. A caller that stops early has taken up to one period more than it used. The thread is a daemon, so a stream
    that never returns does not keep the process from ending.

    A minibatch may be short, like the last one of an epoch. It is then filled up with repeats of its examples, which do
    not count in the loss (as in `core.data.minibatches`); only a layer that reads the whole minibatch, such as
    BatchNorm, sees them.

    Args:
        stream: pytrees of arrays [B, ...], B = batch_size or, for short ones, 1 .. batch_size.
        lengths: steps in each period.
        batch_size: B.
        start: steps already done; their minibatches are skipped.
        check: called with each minibatch and a name for it; raises ValueError if the minibatch is unfit.

    Returns:
        An iterator over `Batches` of one period each, leaves [1, T, B, ...].

    Raises:
        ValueError: the stream ends early; the arrays of a minibatch differ in length, or from those of the first
            minibatch in structure, shape or type; a minibatch is empty or too large. The message states the step,
            counted from 0.
    """
    stopped = threading.Event()
    return Prefetch(_periods(iter(stream), lengths, batch_size, start, check, stopped), len(lengths), stopped)


_Orders: TypeAlias = "queue.SimpleQueue[Future[Batches] | None]"


class Prefetch(Iterator[Batches]):
    """The iterator that `prefetch` returns; it can report whether its next item is ready.

    Args:
        periods: makes the items; only this object's thread calls it.
        count: number of items.
        stopped: when set, `periods` ends before its next minibatch.
    """

    def __init__(self, periods: Iterator[Batches], count: int, stopped: threading.Event):
        self._periods, self._left, self._stopped = periods, count, stopped
        self._orders: _Orders = queue.SimpleQueue()
        self._ahead: Future[Batches] | None = None
        self._thread: threading.Thread | None = None

    def ready(self, seconds: float) -> bool:
        """Returns whether `next` would return (or raise) at once, after waiting for at most `seconds`."""
        ahead = self._next()
        return ahead is None or bool(wait([ahead], seconds).done)

    @property
    def failed(self) -> bool:
        """Whether the ready item is an error, which `next` will raise."""
        return self._ahead is not None and self._ahead.done() and self._ahead.exception() is not None

    def __next__(self) -> Batches:
        ahead = self._next()
        if ahead is None:
            raise StopIteration
        try:
            batches = ahead.result()
        except Exception:
            self.close()
            raise
        self._left -= 1
        self._ahead = None
        if self._next() is None:
            self.close()
        return batches

    def close(self, seconds: float = 0.0) -> None:
        """Ends the thread after the minibatch that it is reading; waits for it for at most `seconds`."""
        self._left, self._ahead = 0, None
        self._stopped.set()
        self._orders.put(None)
        if self._thread is not None and seconds:
            self._thread.join(seconds)

    def __del__(self) -> None:
        self.close()

    def _next(self) -> "Future[Batches] | None":
        """Returns the next item's future, None after the last; orders the item if it is not ordered yet."""
        if self._ahead is None and self._left:
            if self._thread is None:
                work = (self._periods, self._orders)
                self._thread = threading.Thread(target=_work, args=work, daemon=True, name="jaxpt-stream")
                self._thread.start()
            self._ahead = Future()
            self._orders.put(self._ahead)
        return self._ahead


def _work(periods: Iterator[Batches], orders: _Orders) -> None:
    """Fills in the ordered futures in turn; holds no reference to the iterator that orders them."""
    while (order := orders.get()) is not None:
        try:
            order.set_result(next(periods))
        except BaseException as error:
            order.set_exception(error)


def _periods(
    stream: Iterator[PyTree],
    lengths: Sequence[int],
    batch_size: int,
    start: int,
    check: Callable[[PyTree, str], None] | None,
    stopped: threading.Event,
) -> Iterator[Batches]:
    """Yields each period's `Batches` on demand, until `stopped` is set."""
    steps = start + sum(lengths)
    for step in range(start):
        if stopped.is_set():
            return
        _next(stream, step, steps)
    first, counter = None, itertools.count(start)
    for length in lengths:
        taken = []
        for step in itertools.islice(counter, length):
            if stopped.is_set():
                return
            batch = jax.tree.map(np.asarray, _next(stream, step, steps))
            first = _like(batch) if first is None else first
            what = f"the stream's minibatch of step {step}"
            check_numbers(batch, what)
            taken.append(_filled(batch, batch_size, what, first))
            if check is not None:
                check(batch, what)
        if stopped.is_set():  # the process may be ending
            return
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves)[None], *taken)
        yield Batches(*jax.device_put(stacked))


def _next(stream: Iterator[PyTree], step: int, steps: int) -> PyTree:
    try:
        return next(stream)
    except StopIteration:
        raise ValueError(
            f"the stream ended before step {step}: it holds {step} minibatches, but the run has {steps} steps; let it "
            "repeat its epochs, or ask for fewer steps"
        ) from None
    except Exception as error:
        error.add_note(f"raised by the stream, asked for the minibatch of step {step}")
        raise


def _filled(
    batch: PyTree, batch_size: int, what: str, first: tuple[Any, list[str]]
) -> tuple[PyTree, Bool[np.ndarray, " B"]]:
    """Returns one minibatch, filled up to full size, and which of its examples count."""
    size = tree.leading(batch, what)
    if not 1 <= size <= batch_size:
        raise ValueError(
            f"{what} has {size} examples, but the engine's batch_size={batch_size}; give it 1 to that many"
        )
    if (like := _like(batch)) != first:
        shown, expected = (f"{len(kinds)} array(s) {', '.join(kinds)} in {form}" for form, kinds in (like, first))
        raise ValueError(f"{what} is unlike that of step 0: it holds {shown}, but that one held {expected}")
    counts = np.arange(batch_size) < size
    if size < batch_size:
        batch = jax.tree.map(lambda leaf: leaf[np.arange(batch_size) % size], batch)
    return batch, counts


def _like(batch: PyTree) -> tuple[Any, list[str]]:
    """Returns what all minibatches must share: the structure, and the type and shape of one example."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, [f"{leaf.dtype}[B{''.join(f', {n}' for n in leaf.shape[1:])}]" for leaf in leaves]
