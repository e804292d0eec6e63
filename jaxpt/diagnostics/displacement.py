"""The displacement of weights at each value of a hyperparameter, and whether the hyperparameter is temperature-like."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from jaxpt.diagnostics.counts import interval

Answer = Literal["temperature-like", "not temperature-like", "undecided"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether hotter values diffuse faster, early and late, and the supporting numbers; see `Diffusion.verdict`.

    Attributes:
        answer: the conclusion from the intervals.
        steps: the early and the late time, in steps since t0.
        difference: early and late: mean over seeds of |W(t) - W(t0)| at rung i + 1 minus that at rung i, the next
            colder one.
        low: lower end of its Student t interval at the given level; all above zero: temperature-like.
        high: upper end of its interval, widened for the number of pairs and times; any below zero: not
            temperature-like.
    """

    answer: Answer
    steps: tuple[int, int]
    difference: Float[np.ndarray, "2 pairs"]
    low: Float[np.ndarray, "2 pairs"]
    high: Float[np.ndarray, "2 pairs"]

    def __str__(self) -> str:
        lines = [str(self.answer)]
        for row, when in enumerate(("early", "late")):
            pairs = zip(self.difference[row], self.low[row], self.high[row], strict=True)
            shown = ", ".join(f"{mean:.3g} (> {low:.3g}, < {high:.3g})" for mean, low, high in pairs)
            lines.append(f"{when}, step {self.steps[row]}: hotter less colder, coldest pair first: {shown}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """Distances from the weights W(t0), for every value and seed.

    Attributes:
        name: the hyperparameter.
        values: its values, coldest first.
        steps: steps since t0 at each record.
        displacement: |W(t) - W(t0)|, Euclidean over all trained weights.
    """

    name: str
    values: Float[np.ndarray, " M"]
    steps: Int[np.ndarray, " P"]
    displacement: Float[np.ndarray, "P S M"]

    @property
    def mean_square(self) -> Float[np.ndarray, "P M"]:
        """Mean over seeds of |W(t) - W(t0)|^2."""
        return np.square(self.displacement).mean(1)

    def verdict(self, *, early: int | None = None, late: int | None = None, level: float = 0.95) -> Verdict:
        """Returns whether the hyperparameter acts like a temperature: hotter values move farther, early AND late.

        For each time and each pair of adjacent values, each seed gives a difference of displacements, hotter minus
        colder. The differences are a sample over seeds (paired: same first weights, same minibatches). The answers:

        - *temperature-like*: the Student t interval of every pair at both times lies above zero. All must hold, so the
          level needs no correction.
        - *not temperature-like*: the interval of some pair at some time lies below zero: a hotter value is slower. One
          of 2 (M - 1) is enough, so these intervals are widened by Bonferroni's correction.
        - *undecided*: neither. Also with one seed, with too few seeds for the spread, and if a replica diverged.

        Args:
            early: steps since t0 of the early time (the nearest record counts); by default a tenth of the last record.
            late: steps since t0 of the late time; by default the last record.
            level: level of the intervals.

        Raises:
            ValueError: there is only one value; the level is not between 0 and 1; early and late are the same record.
        """
        if len(self.values) < 2:
            raise ValueError(f"a verdict compares values of {self.name}, but there is one only: {self.values[0]:g}")
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, but it is {level}")
        last = int(self.steps[-1])
        asked = np.array([last / 10 if early is None else early, last if late is None else late])
        rows = np.abs(self.steps[:, None] - asked).argmin(0)
        if rows[0] >= rows[1]:
            raise ValueError(
                f"the early time {asked[0]:g} and the late time {asked[1]:g} fall on the records of steps "
                f"{self.steps[rows[0]]} and {self.steps[rows[1]]}; the first must come before: record more often"
            )
        sample = np.moveaxis(np.diff(self.displacement[rows], axis=-1), 1, -1)  # [2, pairs, S]
        mean, low, _ = interval(sample, level)
        _, _, high = interval(sample, 1 - (1 - level) / mean.size)
        answer: Answer = "undecided"
        if np.all(low > 0):
            answer = "temperature-like"
        elif np.any(high < 0):
            answer = "not temperature-like"
        return Verdict(answer, (int(self.steps[rows[0]]), int(self.steps[rows[1]])), mean, low, high)
