"""What has come of a run so far: its rows on the host, what the progress bar says, how many examples were used."""

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxpt.core.data import examples_seen
from jaxpt.core.state import Trace
from jaxpt.engine.engine import Engine

BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
"""The progress bar, as tqdm writes it; the rate is that of `postfix`, where there is room for it."""
_WIDE = 110  # columns of a terminal with room for the rate


def postfix(lowest: Any, accepted: int, offered: int, rate: float) -> str:
    """Returns the text behind the steps on the progress bar: "best 0.0484, swaps 54%".

    Args:
        lowest: validation energy so far, one number per seed.
        accepted: swaps so far.
        offered: swaps so far.
        rate: training examples of all replicas per second; shown on wide terminals only.
    """
    shown = [f"best {np.min(lowest):.4g}"]
    if offered:
        shown.append(f"swaps {accepted / offered:.0%}")
    if rate and shutil.get_terminal_size().columns >= _WIDE:
        shown.append(f"{rate:,.0f} replica-images/s")
    return ", ".join(shown)


def replica_images(engine: Engine, trace: Trace, count: Callable[[int, int], int]) -> int:
    """Returns how many training examples counted, all replicas of all seeds together.

    Args:
        engine: with which these periods ran.
        trace: their rows.
        count: (period, batch size) -> examples that count for one replica.
    """
    sizes = trace.hyper.get("batch_size", np.full(trace.loss.shape, engine.batch_size))
    return sum(
        int(number) * count(period, int(size))
        for period, row in enumerate(sizes)
        for size, number in zip(*np.unique(row, return_counts=True), strict=True)
    )


def drawn(engine: Engine, trace: Trace, num_examples: int, period: int, limit: int) -> int:
    """Returns how many examples of minibatches drawn from the split count, if at most `limit` of each do."""
    split = num_examples, engine.batch_size, engine.drop_remainder
    end = int(trace.step[period])
    return examples_seen(end, *split, limit) - examples_seen(end - engine.every, *split, limit)


def counted(counts: np.ndarray, period: int, limit: int) -> int:
    """Returns how many examples of given minibatches [P, T, B] count, if at most the first `limit` of each do."""
    return int(counts[period, :, :limit].sum())


def swaps(trace: Trace) -> Any:
    """Returns how many swaps were accepted and how many offered, [2]."""
    return np.array([trace.info.accepted.sum(), trace.info.attempted.sum()], int)


def filled(trace: Trace, count: int) -> Trace:
    """Returns the first rows on the host; copies, since on CPUs a view would hold on to all of them."""
    return jax.tree.map(lambda leaf: np.array(np.asarray(leaf)[:count]), trace)


def joined(traces: Sequence[Trace]) -> Trace:
    """Returns the rows of all of them, in this order."""
    return jax.tree.map(lambda *rows: np.concatenate(rows), *traces)
