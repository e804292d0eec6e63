"""Streams: minibatches from an iterator on the host, stacked into periods and put on the device ahead of time."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, PyTree

from jaxpt import tree
from jaxpt.data import Batches
from jaxpt.ranges import check_numbers


def is_stream(train: Any) -> bool:
    """Whether something is an iterator (or an iterable, as loaders are) rather than a pytree of arrays."""
    return isinstance(train, Iterable) and jax.tree_util.all_leaves([train]) and not hasattr(train, "shape")


def prefetch(
    stream: Iterable[PyTree],
    lengths: Sequence[int],
    batch_size: int,
    start: int = 0,
    check: Callable[[PyTree, str], None] | None = None,
) -> Iterator[Batches]:
    """Yields the minibatches of one period after the other, on the device; a thread prepares the next one meanwhile.

    The thread begins with a period as soon as the one before is handed out, so reading, stacking and copying overlap
    with training; two periods' minibatches are in memory at a time. Exactly sum(lengths) are taken from the stream.

    A minibatch may be short, as an epoch's last one is: it is filled up by examples of its own that do not count in
    the loss (as in `jaxpt.data.minibatches`; only a layer that looks at the whole minibatch, BatchNorm, sees them).

    Args:
        stream: pytrees of arrays [B, ...], B = batch_size or, for short ones, 1 .. batch_size.
        lengths: steps in each period.
        batch_size: B.
        start: steps done already, whose minibatches are passed over.
        check: called with each minibatch and a name for it; raises ValueError if it is unfit.

    Yields:
        `Batches` of one period, leaves [1, T, B, ...].

    Raises:
        ValueError: the stream ends early; arrays that differ in length, or in structure, shape or type from those of
            the first minibatch; an empty or too large minibatch. All say at which step; the first step is 0.
    """
    ready = _periods(iter(stream), lengths, batch_size, start, check)
    with ThreadPoolExecutor(1, "jaxpt-stream") as pool:
        ahead = pool.submit(next, ready)
        for left in reversed(range(len(lengths))):
            batches = ahead.result()
            if left:
                ahead = pool.submit(next, ready)
            yield batches


def _periods(
    stream: Iterator[PyTree],
    lengths: Sequence[int],
    batch_size: int,
    start: int,
    check: Callable[[PyTree, str], None] | None,
) -> Iterator[Batches]:
    """Yields what `prefetch` does, when asked."""
    steps = start + sum(lengths)
    for step in range(start):
        _next(stream, step, steps)
    first, counter = None, itertools.count(start)
    for length in lengths:
        taken = []
        for step in itertools.islice(counter, length):
            batch = jax.tree.map(np.asarray, _next(stream, step, steps))
            first = _like(batch) if first is None else first
            what = f"the stream's minibatch of step {step}"
            check_numbers(batch, what)
            taken.append(_filled(batch, batch_size, what, first))
            if check is not None:
                check(batch, what)
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
    """Returns one minibatch of full size, and which of its examples count."""
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
    """What all minibatches must share: the structure, and type and shape of one example."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, [f"{leaf.dtype}[B{''.join(f', {n}' for n in leaf.shape[1:])}]" for leaf in leaves]
