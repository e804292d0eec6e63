"""Streams: minibatches from an iterator on the host, stacked by period and copied to the device ahead of time."""

import operator
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
from jaxpt.saving.progress import Position
from jaxpt.training.source import Source


def is_stream(train: Any) -> bool:
    """Returns whether an object is an iterator (or an iterable, such as a loader) rather than a pytree of arrays."""
    return isinstance(train, Iterable) and jax.tree_util.all_leaves([train]) and not hasattr(train, "shape")


def prefetch(
    stream: Iterable[PyTree],
    lengths: Sequence[int],
    batch_size: int,
    start: int = 0,
    check: Callable[[PyTree, str], None] | None = None,
    *,
    replicas: int | None = None,
    position: Position | None = None,
    positions: bool = False,
) -> "Prefetch":
    """Returns an iterator over the minibatches of each period, on the device; a thread prepares the next period's.

    The thread begins a period as soon as the previous one is handed out, so reading, stacking and copying overlap with
    training; two periods of minibatches are in memory at a time. Exactly sum(lengths) minibatches are taken from the
    stream (with `replicas`, that many times M). A caller that stops early has taken up to one period more than it used.
    The thread is a daemon, so a stream that never returns does not keep the process from ending.

    A minibatch may be short, like the last one of an epoch. It is then filled up with repeats of its examples, which do
    not count in the loss (as in `core.data.minibatches`); only a layer that reads the whole minibatch, such as
    BatchNorm, sees them.

    Args:
        stream: pytrees of arrays [B, ...], B = batch_size or, for short ones, 1 .. batch_size.
        lengths: steps in each period.
        batch_size: B.
        start: steps already done; their minibatches are skipped, unless the stream takes a `position`.
        check: called with each minibatch and a name for it; raises ValueError if the minibatch is unfit.
        replicas: M, for an engine with `own_batches=True`: each step takes M minibatches, the k-th is replica k's.
            None: all replicas share one.
        position: the `Prefetch.position` after the steps already done. A stream with `get_state` and `set_state`, or
            with `state_dict` and `load_state_dict`, itself or its iterator, is set to it.
        positions: whether the iterator keeps `Prefetch.position`, which asks the stream for its state each period.

    Returns:
        An iterator over `Batches` of one period each, leaves [1, T, B, ...]; with `replicas` [1, M, T, B, ...].

    Raises:
        ValueError: the stream ends early; the arrays of a minibatch differ in length, or from those of the first
            minibatch in structure, shape or type; a minibatch is empty or too large (the message states the step,
            counted from 0); the skipped minibatches are not those of the earlier steps, as far as `position` tells.
    """
    stopped = threading.Event()
    each = 1 if replicas is None else replicas
    source = Source(stream, start * each, position)
    reader = _Reader(source, start, start + sum(lengths), batch_size, replicas, check)
    return Prefetch(_periods(reader, lengths, positions, stopped), len(lengths), stopped)


_Item: TypeAlias = tuple[Batches, Position | None]
_Orders: TypeAlias = "queue.SimpleQueue[Future[_Item] | None]"


class Prefetch(Iterator[Batches]):
    """The iterator that `prefetch` returns; it can report whether its next item is ready.

    Args:
        periods: makes the items and the positions after them; only this object's thread calls it.
        count: number of items.
        stopped: when set, `periods` ends before its next minibatch.

    Attributes:
        position: of the stream after the item that `next` returned last, however far the thread has read ahead; None
            before the first item, and if positions are not kept.
    """

    def __init__(self, periods: Iterator[_Item], count: int, stopped: threading.Event):
        self.position: Position | None = None
        self._periods, self._left, self._stopped = periods, count, stopped
        self._orders: _Orders = queue.SimpleQueue()
        self._ahead: Future[_Item] | None = None
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
            batches, self.position = ahead.result()
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

    def _next(self) -> "Future[_Item] | None":
        """Returns the next item's future, None after the last; orders the item if it is not ordered yet."""
        if self._ahead is None and self._left:
            if self._thread is None:
                work = (self._periods, self._orders)
                self._thread = threading.Thread(target=_work, args=work, daemon=True, name="jaxpt-stream")
                self._thread.start()
            self._ahead = Future()
            self._orders.put(self._ahead)
        return self._ahead


def _work(periods: Iterator[_Item], orders: _Orders) -> None:
    """Fills in the ordered futures in turn; holds no reference to the iterator that orders them."""
    while (order := orders.get()) is not None:
        try:
            order.set_result(next(periods))
        except BaseException as error:
            order.set_exception(error)


class _Reader:
    """Reads a stream's minibatches one by one, checks them and fills them up.

    Args:
        source: the stream.
        start: steps already done.
        steps: steps after those of this call.
        batch_size: B.
        replicas: M if each step has a minibatch for each replica, else None.
        check: see `prefetch`.
    """

    def __init__(
        self,
        source: Source,
        start: int,
        steps: int,
        batch_size: int,
        replicas: int | None,
        check: Callable[[PyTree, str], None] | None,
    ):
        self.source, self.replicas, self.each = source, replicas, 1 if replicas is None else replicas
        self._steps, self._batch_size, self._check = steps, batch_size, check
        self._taken = start * self.each - source.left_out
        self._first: tuple[Any, list[str]] | None = None
        self.last: PyTree = None
        """The last minibatch, as the stream gave it."""

    def skip(self) -> None:
        """Takes the next minibatch, as a step already done used it."""
        self.last = self._take()

    def read(self) -> tuple[PyTree, Bool[np.ndarray, " B"]]:
        """Returns the next minibatch, filled up to full size, and which of its examples count."""
        step, replica = divmod(self._taken, self.each)
        what = f"the stream's minibatch of step {step}" + ("" if self.replicas is None else f" for replica {replica}")
        self.last = batch = jax.tree.map(np.asarray, self._take())
        self._first = _like(batch) if self._first is None else self._first
        check_numbers(batch, what)
        filled = _filled(batch, self._batch_size, what, self._first)
        if self._check is not None:
            self._check(batch, what)
        return filled

    def _take(self) -> PyTree:
        step = self._taken // self.each
        try:
            batch = next(self.source)
        except StopIteration:
            each = "" if self.replicas is None else f" of {self.each} minibatches, one for each replica"
            raise ValueError(
                f"the stream ended before step {step}: it holds {self._taken} minibatches, but the run has "
                f"{self._steps} steps{each}; let it repeat its epochs, ask for fewer steps, or make it anew if it has "
                "been read from before"
            ) from None
        except Exception as error:
            error.add_note(f"raised by the stream, asked for the minibatch of step {step}")
            raise
        self._taken += 1
        return batch


def _periods(reader: _Reader, lengths: Sequence[int], positions: bool, stopped: threading.Event) -> Iterator[_Item]:
    """Yields each period's `Batches`, and the stream's position after them, on demand, until `stopped` is set."""
    for _ in range(reader.source.left_out):
        if stopped.is_set():
            return
        reader.skip()
    if reader.source.left_out:
        reader.source.check_skipped(reader.last)
    for length in lengths:
        taken: PyTree = None
        for number in range(length * reader.each):
            if stopped.is_set():
                return
            read = reader.read()
            # Copied at once: the stream may write its next minibatch into the same memory.
            if taken is None:
                rows = length * reader.each
                taken = jax.tree.map(lambda leaf, rows=rows: np.empty((rows, *leaf.shape), leaf.dtype), read)
            jax.tree.map(lambda into, leaf, at=number: operator.setitem(into, at, leaf), taken, read)
        # Before the thread reads on.
        position = reader.source.position(reader.last) if positions else None
        if stopped.is_set():  # the process may be ending
            return
        stacked = jax.tree.map(lambda leaf: _by_replica(leaf, reader.replicas)[None], taken)
        yield Batches(*jax.device_put(stacked)), position


def _by_replica(taken: np.ndarray, replicas: int | None) -> np.ndarray:
    """Returns the minibatches [T, B, ...] of T steps as they are; [T M, B, ...] of M in each step as [M, T, B, ...]."""
    return taken if replicas is None else taken.reshape(-1, replicas, *taken.shape[1:]).swapaxes(0, 1)


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
