"""What the progress bar says, and how many training examples a run stands for."""

from collections.abc import Callable

import numpy as np

from jaxpt.data import examples_seen
from jaxpt.engine import Engine
from jaxpt.state import Trace


def postfix(trace: Trace, accepted: int, offered: int, rate: float) -> dict[str, str]:
    """What the progress bar says behind the steps."""
    energy = trace.valid["energy"][-1]
    shown = {"best": f"{np.min(energy, where=np.isfinite(energy), initial=np.inf):.4g}"}
    if offered:
        shown["accepted"] = f"{accepted / offered:.0%}"
    if rate:
        shown["replica-images/s"] = f"{rate:,.0f}"
    return shown


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
