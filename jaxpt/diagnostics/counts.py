"""Counts and means of a trace's exchanges: pure functions of NumPy or JAX arrays; seeds are the middle axes if any."""

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxpt.core.types import AnyArray


def pair_acceptance(
    attempted: Bool[AnyArray, "P *S pairs"], accepted: Bool[AnyArray, "P *S pairs"]
) -> Float[np.ndarray, "*S pairs"]:
    """Returns the share of offered swaps that each adjacent pair accepted; NaN for a pair that was never offered one.

    Args:
        attempted: `trace.info.attempted`. With several ladders, select one: `& (trace.info.ladder == i)[..., None]`.
        accepted: `trace.info.accepted`, likewise.
    """
    offered = np.sum(np.asarray(attempted), axis=0)
    made = np.sum(np.asarray(accepted), axis=0)
    return np.where(offered > 0, made / np.maximum(offered, 1), np.nan)


def acceptance_rate(attempted: Bool[AnyArray, "P *S pairs"], accepted: Bool[AnyArray, "P *S pairs"]) -> float:
    """Returns the share of all offered swaps that were accepted; NaN if none were offered."""
    offered = int(np.sum(np.asarray(attempted)))
    return float(np.sum(np.asarray(accepted))) / offered if offered else float("nan")


def round_trips(
    rung: Int[AnyArray, "P *S M"],
) -> Int[np.ndarray, "*S M"]:
    """Returns the number of round trips of each replica, hottest -> coldest -> hottest.

    Args:
        rung: the index process, `trace.rung[ladder]`; the hottest rung is M - 1.
    """
    path = np.asarray(rung)
    hottest = path.shape[-1] - 1
    trips = np.zeros(path.shape[1:], np.int64)
    if hottest == 0:
        return trips
    leg = np.zeros(path.shape[1:], np.int8)  # 0: not yet hottest, 1: on the way down, 2: on the way up
    for now in path:
        home = (now == hottest) & (leg == 2)
        trips += home
        leg = np.where(now == hottest, 1, np.where((now == 0) & (leg == 1), 2, leg))
    return trips


def running_mean(values: Float[AnyArray, "P *rest"], window: int) -> Float[np.ndarray, "P *rest"]:
    """Returns the mean of each row and the `window - 1` rows before it, or fewer for the first rows."""
    if window < 1:
        raise ValueError(f"window must be at least 1, but it is {window}")
    values = np.asarray(values, np.float64)
    return np.stack([values[max(0, row + 1 - window) : row + 1].mean(0) for row in range(len(values))])


def interval(
    samples: Float[AnyArray, "*rest S"], level: float = 0.95
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Returns the mean over the last axis (the seeds), and lower and upper end of its Student t interval.

    With one seed the ends are NaN, since the spread is unknown.
    """
    samples = np.asarray(samples, np.float64)
    count, mean = samples.shape[-1], np.asarray(samples.mean(-1))
    if count < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    from scipy import special  # takes half a second to import

    half = special.stdtrit(count - 1, (1 + level) / 2) * samples.std(-1, ddof=1) / np.sqrt(count)
    return mean, np.asarray(mean - half), np.asarray(mean + half)
