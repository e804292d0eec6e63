"""A race: candidates take turns in being timed, and those that are clearly slower leave."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

K = TypeVar("K")

_CLEARLY = (2.0, 1.5, 1.2)  # times the fastest: slower ones leave after the first, second and each later round
_ROUNDS = 50  # at most


class Lap(NamedTuple):
    """What one turn of a candidate takes, in seconds.

    Attributes:
        step: of one training step of all replicas; 0 where only evaluations are timed.
        evaluation: of the evaluations of one period.
    """

    step: float
    evaluation: float

    def period(self, every: int) -> float:
        """Returns the seconds of a period of `every` steps."""
        return every * self.step + self.evaluation


def race(
    turns: Mapping[K, Callable[[], Lap]], every: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[K, list[Lap]]:
    """Returns the laps of each candidate, at least one each.

    In a round each candidate that is left takes its turn; the first of them changes from round to round. After a round
    those leave whose median period is more than twice the least (1.5 times after the second round, 1.2 times after
    later ones, as one slow turn then counts less). The race ends when one candidate is left, when another round would
    exceed the time, or after fifty rounds.

    Args:
        turns: {candidate: a function that times one turn}.
        every: steps in a period.
        seconds: time for all rounds; the first is always run.
        clock: returns seconds.
    """
    laps: dict[K, list[Lap]] = {name: [] for name in turns}
    left, begun = list(turns), clock()
    for number in range(_ROUNDS):
        started, shift = clock(), number % len(left)
        for name in left[shift:] + left[:shift]:
            laps[name].append(turns[name]())
        took = clock() - started
        before, left = len(left), _left(laps, left, every, _CLEARLY[min(number, 2)])
        if len(left) == 1 or clock() - begun + took * len(left) / before > seconds:
            break
    return laps


def median(laps: list[Lap]) -> Lap:
    """Returns the medians of both parts."""
    return Lap(*(statistics.median(part) for part in zip(*laps, strict=True)))


def fastest(laps: Mapping[K, list[Lap]], every: int) -> K:
    """Returns the candidate of the least median period among those with the most laps, which were never left behind."""
    most = max(map(len, laps.values()))
    return min((name for name in laps if len(laps[name]) == most), key=lambda name: _period(laps[name], every))


def _left(laps: Mapping[K, list[Lap]], left: list[K], every: int, factor: float) -> list[K]:
    medians = {name: _period(laps[name], every) for name in left}
    best = min(medians.values())
    return [name for name in left if medians[name] <= factor * best]


def _period(laps: list[Lap], every: int) -> float:
    return statistics.median(lap.period(every) for lap in laps)
