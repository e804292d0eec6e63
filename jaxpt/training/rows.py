"""A run's rows on the host, the text of the progress bar, and counts of examples used."""

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxpt.core.data import examples_seen
from jaxpt.core.state import Trace
from jaxpt.engine.engine import Engine

BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
"""Format of the progress bar, for tqdm; the rate comes from `postfix`, if the terminal is wide enough."""
_WIDE = 110  # terminal columns from which on the rate is shown


def postfix(lowest: Any, accepted: int, offered: int, rate: float) -> str:
    """Returns the text after the step count on the progress bar, such as "best 0.0484, swaps 54%".

    Args:
        lowest: lowest validation energy so far, one number per seed.
        accepted: swaps accepted so far.
        offered: swaps attempted so far.
        rate: training examples per second, of all replicas together; shown on wide terminals only.
    """
    shown = [f"best {np.min(lowest):.4g}"]
    if offered:
        shown.append(f"swaps {accepted / offered:.0%}")
    if rate and shutil.get_terminal_size().columns >= _WIDE:
        shown.append(f"{rate:,.0f} examples/s")
    return ", ".join(shown)


def replica_images(engine: Engine, trace: Trace, count: Callable[[int, int], int]) -> int:
    """Returns how many training examples counted, for all replicas of all seeds together.

    Args:
        engine: the engine of these periods.
        trace: the rows of these periods.
        count: (period, batch size) -> examples that count for one replica.
    """
    sizes = trace.hyper.get("batch_size", np.full(trace.loss.shape, engine.batch_size))
    return sum(
        int(number) * count(period, int(size))
        for period, row in enumerate(sizes)
        for size, number in zip(*np.unique(row, return_counts=True), strict=True)
    )


def drawn(engine: Engine, trace: Trace, num_examples: int, period: int, limit: int) -> int:
    """Returns how many examples count in a period's minibatches, drawn from the split, at most `limit` in each."""
    split = num_examples, engine.batch_size, engine.drop_remainder
    end = int(trace.step[period])
    return examples_seen(end, *split, limit) - examples_seen(end - engine.every, *split, limit)


def counted(counts: np.ndarray, period: int, limit: int) -> int:
    """Returns how many examples count in a period of given minibatches [P, T, B], at most the first `limit` of each."""
    return int(counts[period, :, :limit].sum())


def counted_own(engine: Engine, trace: Trace, counts: np.ndarray) -> int:
    """Returns `replica_images` of given minibatches of each replica, [P, M, T, B]; those that count come first."""
    sizes = trace.hyper.get("batch_size", np.full(trace.loss.shape, engine.batch_size)).astype(int)
    of_each = counts.sum(-1).reshape(len(counts), *(1,) * (sizes.ndim - 2), *counts.shape[1:3])
    return int(np.minimum(of_each, sizes[..., None]).sum())


def swaps(trace: Trace) -> Any:
    """Returns the numbers of swaps accepted and attempted, [2]."""
    return np.array([trace.info.accepted.sum(), trace.info.attempted.sum()], int)


def filled(trace: Trace, count: int) -> Trace:
    """Returns the first `count` rows as host copies: on CPUs a view would keep all rows in memory."""
    return jax.tree.map(lambda leaf: np.array(np.asarray(leaf)[:count]), trace)


def joined(traces: Sequence[Trace]) -> Trace:
    """Returns the rows of all traces, concatenated in this order."""
    return jax.tree.map(lambda *rows: np.concatenate(rows), *traces)
