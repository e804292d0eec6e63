"""Stretches of a trace, and the acceptance of each pair of rungs in them."""

import itertools

import jax
import numpy as np
from jaxtyping import Float

from jaxpt.core.state import Trace
from jaxpt.core.types import AnyArray


def window(trace: Trace, start: int = 0, stop: int | None = None) -> Trace:
    """Returns the periods that end after step `start` and no later than step `stop`."""
    step = np.asarray(trace.step)
    rows = (step > start) & (step <= (step[-1] if stop is None else stop))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], trace)


def windows(trace: Trace, count: int) -> list[Trace]:
    """Returns the periods from the first exchange on, divided into `count` stretches of about equal length."""
    begun = _first_exchange(trace)
    edges = np.linspace(begun, len(trace.step), count + 1).astype(int)
    return [jax.tree.map(lambda leaf, a=a, b=b: np.asarray(leaf)[a:b], trace) for a, b in itertools.pairwise(edges)]


def check_trace(trace: Trace) -> None:
    """Raises ValueError if the argument is not a Trace, but for example the whole Result."""
    if not isinstance(trace, Trace):
        raise ValueError(f"trace must be a run's trace, result.trace, but it is of {type(trace)}")


def ladder_name(trace: Trace, ladder: str | None) -> str:
    """Returns the ladder's name; by default that of the only ladder.

    Raises:
        ValueError: there are several ladders and none is chosen, or no such ladder.
    """
    check_trace(trace)
    names = list(trace.rung)
    if ladder is None and len(names) == 1:
        return names[0]
    if ladder not in names:
        raise ValueError(f"ladder={ladder!r} is not among this trace's ladders; choose one of {', '.join(names)}")
    return ladder


def exchanges(trace: Trace, ladder: str | None = None) -> Trace:
    """Returns the periods of that ladder's turns, from the first one with an offered swap.

    Leaves out the cooldown, and exchanges during which the ladder still adapts (`Tempering(swap_while_tuning=True)`).
    Also leaves out a last period that is shorter than the others and has no offer: `fit` runs such steps without an
    exchange. Draws are left out.
    """
    check_trace(trace)
    trace = trace._replace(draws=None)  # they may be large
    length = np.diff(trace.step)
    if len(length) > 1 and length[-1] < length[0] and not _any_offer(trace)[-1]:
        trace = jax.tree.map(lambda leaf: np.asarray(leaf)[:-1], trace)
    turns = _first(trace.info.ladder) == list(trace.rung).index(ladder_name(trace, ladder))
    rows = np.flatnonzero(turns)
    begun = _any_offer(trace)[rows]
    rows = rows[np.argmax(begun) :] if begun.any() else rows[:0]
    if trace.cooldown is not None and len(rows):
        rows = rows[: len(rows) - np.argmax(_any_offer(trace)[rows][::-1])]
    if trace.info.beta is not None and len(rows):
        beta = np.asarray(trace.info.beta)[rows].reshape(len(rows), -1)
        rows = rows[len(rows) - np.argmax([*(beta != beta[-1]).any(-1)[::-1], True]) :]
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], trace)


def offered(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S pairs"]:
    """Returns the share of that ladder's exchanges in which each pair was offered a swap; NaN without exchanges."""
    attempted = np.asarray(exchanges(trace, ladder).info.attempted)
    return _mean(attempted, np.ones_like(attempted))


def acceptance(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S pairs"]:
    """Returns the mean acceptance probability of each pair's offered swaps; NaN for a pair without offers.

    The mean probability estimates the same number as the share of accepted swaps, with less noise. Pairs that an
    exchange does not offer do not count: under DEO their energies have just been sorted.

    Args:
        trace: the whole trace or a stretch.
        ladder: the ladder's name; needed if there are several.
    """
    info = exchanges(trace, ladder).info
    return _mean(np.asarray(info.probability, np.float64), np.asarray(info.attempted))


def rejection(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S pairs"]:
    """Returns 1 - `acceptance`."""
    return 1 - acceptance(trace, ladder)


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Returns the mean over the periods that count, NaN if none does."""
    count = where.sum(0)
    return np.where(count > 0, np.sum(values, 0, where=where.astype(bool)) / np.maximum(count, 1), np.nan)


def _first(per_period: AnyArray) -> np.ndarray:
    """Returns the first seed's values of an array that is the same for all seeds, [P]."""
    return np.asarray(per_period).reshape(len(per_period), -1)[:, 0]


def _any_offer(trace: Trace) -> np.ndarray:
    attempted = np.asarray(trace.info.attempted)
    return np.asarray(attempted.reshape(len(attempted), -1).any(-1))


def _first_exchange(trace: Trace) -> int:
    """Returns the index of the first period with an offer; the number of periods if there is none."""
    any_offer = _any_offer(trace)
    return int(np.argmax(any_offer)) if any_offer.any() else len(any_offer)
