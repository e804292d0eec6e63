"""What `jaxpt.compare` returns: the scores of engines on the same seeds, and their differences paired by seed."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from jaxpt.core.extras import extra
from jaxpt.core.state import Trace
from jaxpt.diagnostics import interval
from jaxpt.results.result import Result
from jaxpt.results.summary import columns, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

What = Literal["best replica", "ensemble"]
Split = Literal["valid", "test"]
_BEST: What = "best replica"
_ENSEMBLE: What = "ensemble"
_NAMES: dict[Split, str] = {"valid": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """One arm of a comparison: an engine's scores, one number per seed in arrays [S].

    Attributes:
        replica: the slot of each seed's best replica on the validation split at the end of the run.
        valid: {score: [S]} of these replicas on the validation split. NaN for a seed of which all replicas have
            diverged; so are the next three.
        test: the same on the test split; empty without one.
        ensemble_valid: {metric: [S]} of the mean prediction of all replicas on the validation split; empty unless
            `compare(ensemble=...)` asked for it.
        ensemble_test: the same on the test split.
        replicas: M, the number of replicas of a seed.
        examples: training examples used by all replicas of a seed together, repeats included; the mean over seeds. 0
            for a problem without data.
        seconds: wall time of the training of all seeds, compilation left out.
        compile_seconds: wall time of the compilation.
        trace: the trace of all seeds, NumPy arrays [P, S, M].
        results: with `compare(keep=True)` the result of each run of `fit`: one, or with `at_once` one for each group of
            seeds. Else empty.
    """

    replica: Int[np.ndarray, " S"]
    valid: dict[str, Float[np.ndarray, " S"]]
    test: dict[str, Float[np.ndarray, " S"]]
    ensemble_valid: dict[str, Float[np.ndarray, " S"]]
    ensemble_test: dict[str, Float[np.ndarray, " S"]]
    replicas: int
    examples: float
    seconds: float
    compile_seconds: float
    trace: Trace = dataclasses.field(repr=False)
    results: tuple[Result, ...] = dataclasses.field(default=(), repr=False)

    def scores(self, what: What, split: Split) -> dict[str, Float[np.ndarray, " S"]]:
        """Returns {score: [S]} of the best replicas or of the ensembles, on one split."""
        found = {
            (_BEST, "valid"): self.valid,
            (_BEST, "test"): self.test,
            (_ENSEMBLE, "valid"): self.ensemble_valid,
            (_ENSEMBLE, "test"): self.ensemble_test,
        }
        if (what, split) not in found:
            raise ValueError(
                f'what must be "best replica" or "ensemble" and split "valid" or "test", but they are {what!r} and '
                f"{split!r}"
            )
        return found[what, split]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Engines compared on the same seeds; `print` it, or take `frame`, `picture`, `as_dict` or the arrays.

        >>> grid = dataclasses.replace(engine, rule=jaxpt.Independent())
        >>> found = jaxpt.compare({"tempering": engine, "grid": grid}, train, valid, steps=50, seeds=range(3))
        >>> found.arms["grid"].valid["energy"].shape  # a number per seed
        (3,)
        >>> found.differences("grid", "energy").shape  # minus the baseline, here tempering
        (3,)
        >>> print(found)
        tempering, grid: 50 steps, seeds 0, 1, 2; means with 95 % intervals; ...
        >>> len(found.frame()), sorted(found.as_dict()["arms"])
        (6, ['grid', 'tempering'])

    Its text has a table for each score. Numbers are means over the seeds with their 95 % Student t intervals; an
    interval of differences that does not contain 0 is evidence that the arms differ. Choose the score to look at, and
    the number of seeds, before the run: with many arms and scores some interval excludes 0 by chance.

    Attributes:
        arms: {name: `Arm`}, in the order given.
        baseline: the arm to which differences are taken.
        seeds: the seeds, in the order of all arrays.
        steps: optimiser steps of each replica.
        on: the score on the validation split by which each seed's replica was chosen.
        higher_is_better: {score or ensemble metric: whether higher is better; None: unknown}.
    """

    arms: dict[str, Arm]
    baseline: str
    seeds: tuple[int, ...]
    steps: int
    on: str
    higher_is_better: dict[str, bool | None]

    def values(
        self, arm: str, score: str | None = None, *, what: What = "best replica", split: Split | None = None
    ) -> Float[np.ndarray, " S"]:
        """Returns a score of one arm for each seed.

        Args:
            arm: its name.
            score: name of a score, or of a metric of the ensemble; by default `on`.
            what: "best replica" or "ensemble".
            split: "valid" or "test"; by default the test split if there is one.

        Raises:
            ValueError: no such arm, score or split.
        """
        if arm not in self.arms:
            raise ValueError(f"arm={arm!r} is none of the comparison's; there are {', '.join(self.arms)}")
        score, split = self.on if score is None else score, self._split if split is None else split
        found = self.arms[arm].scores(what, split)
        if score not in found:
            raise ValueError(
                f"there is no score {score!r} of the {what} on the {_NAMES[split]} split; there are "
                f"{', '.join(found) or 'none'}"
            )
        return found[score]

    def differences(
        self, arm: str, score: str | None = None, *, what: What = "best replica", split: Split | None = None
    ) -> Float[np.ndarray, " S"]:
        """Returns an arm's score minus the baseline's for each seed; arguments as in `values`.

        `jaxpt.diagnostics.interval` gives their mean and its 95 % interval.
        """
        own = self.values(arm, score, what=what, split=split)
        return own - self.values(self.baseline, score, what=what, split=split)

    @property
    def equal_compute(self) -> bool:
        """Whether all arms used the same number of training examples (without data: of replicas) per seed."""
        return len(set(self._used[1].values())) == 1

    def frame(self) -> Any:
        """Returns all scores as a tidy pandas frame, one row per number.

        Columns: arm, seed, what ("best replica" or "ensemble"), split ("valid" or "test"), score, value.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        pandas = extra("pandas", "pandas", "comparison.frame()")
        rows = [
            (name, seed, what, split, score, float(value))
            for name in self.arms
            for what, split, score in self._all(name)
            for seed, value in zip(self.seeds, self.values(name, score, what=what, split=split), strict=True)
        ]
        return pandas.DataFrame(rows, columns=["arm", "seed", "what", "split", "score", "value"])

    def picture(self, score: str | None = None, *, split: Split | None = None) -> "Figure":
        """Returns a matplotlib figure of one score: each seed's value, means and intervals; beside them differences.

        Args:
            score: name of a score, or of a metric of the ensemble; by default `on`.
            split: "valid" or "test"; by default the test split if there is one.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: no such score or split.
        """
        extra("matplotlib", "plots", "comparison.picture()")
        from jaxpt.results.plots import comparison_picture

        score, split = self.on if score is None else score, self._split if split is None else split
        kinds = [what for what in (_BEST, _ENSEMBLE) if score in self._baseline.scores(what, split)]
        found: dict[str, dict[str, np.ndarray]] = {
            what: {name: self.values(name, score, what=what, split=split) for name in self.arms}
            for what in kinds or (_BEST,)
        }
        return comparison_picture(found, self.baseline, what=f"{score} on {_NAMES[split]}", better=self._better(score))

    def as_dict(self) -> dict[str, Any]:
        """Returns all numbers ready for JSON: scores, differences, means and 95 % intervals; None if not finite."""
        arms: dict[str, Any] = {}
        for name, arm in self.arms.items():
            arms[name] = {
                "replica": arm.replica,
                "replicas": arm.replicas,
                "examples": arm.examples,
                "seconds": arm.seconds,
                "compile_seconds": arm.compile_seconds,
                "scores": self._nested(name, self.values),
                "differences": self._nested(name, self.differences) if name != self.baseline else None,
            }
        found = {
            "seeds": self.seeds,
            "steps": self.steps,
            "on": self.on,
            "baseline": self.baseline,
            "equal_compute": self.equal_compute,
            "arms": arms,
        }
        return plain(found)

    def __str__(self) -> str:
        split = self._split
        seeds = f"{len(self.seeds)} seeds" if len(self.seeds) > 8 else f"seeds {', '.join(map(str, self.seeds))}"
        lines = [
            f"{', '.join(self.arms)}: {self.steps:,} steps, {seeds}; means with 95 % intervals; best replicas by "
            f"{self.on} on validation"
        ]
        names = dict.fromkeys(score for _, where, score in self._all(self.baseline) if where == split)
        for score in sorted(names, key=lambda name: name != self.on):  # stable: the one that chose comes first
            better = self._better(score)
            lines += ["", f"{score} on {_NAMES[split]}" + ("" if better is None else f", {better} is better")]
            lines += columns(self._table(score, split))
        lines.append("")
        if split == "valid" and self._baseline.examples:
            lines.append(
                "without a test split these are the examples that the replicas were chosen on: scores too good"
            )
        for name, arm in self.arms.items():
            lost = [
                str(s) for s, energy in zip(self.seeds, arm.valid["energy"], strict=True) if not np.isfinite(energy)
            ]
            if lost:
                lines.append(f"all replicas of {name} have diverged with seed{'s' * (len(lost) > 1)} {', '.join(lost)}")
        if same := [name for name in self.arms if name != self.baseline and self._is_same(name)]:
            lines.append(
                f"differences of exactly 0: the best replicas of {', '.join(same)} trained exactly as those of "
                f"{self.baseline}, because the rules did nothing to them"
            )
        return "\n".join([*lines, self._compute()])

    __repr__ = __str__

    def _is_same(self, name: str) -> bool:
        """Returns whether an arm's best replicas are in slot and in each score those of the baseline."""
        own, other = (self.arms[one].scores(_BEST, "valid") for one in (name, self.baseline))
        slots = np.array_equal(self.arms[name].replica, self._baseline.replica)
        return slots and all(score in other and np.array_equal(own[score], other[score]) for score in own)

    def _compute(self) -> str:
        """Returns the arms' compute in a line."""
        unit, used = self._used
        if self.equal_compute:
            return f"equal compute: {used[self.baseline]:,.0f} {unit} in each arm"
        return f"unequal compute: {', '.join(f'{name} {count:,.0f}' for name, count in used.items())} {unit}"

    def _table(self, score: str, split: Split) -> list[tuple[str, ...]]:
        """Returns the rows of one score's table, the title first."""
        kinds = [what for what in (_BEST, _ENSEMBLE) if score in self._baseline.scores(what, split)]
        several = len(self.arms) > 1
        unit, used = self._used
        heads = [head for what in kinds for head in (what, f"minus {self.baseline}")[: 1 + several]]
        rows = [("arm", *heads, unit)]
        for name in self.arms:
            cells = [name]
            for what in kinds:
                cells.append(_mean(self.values(name, score, what=what, split=split), ".4g"))
                if several and name == self.baseline:
                    cells.append("-")
                elif several:
                    cells.append(_mean(self.differences(name, score, what=what, split=split), "+.3g"))
            rows.append((*cells, f"{used[name]:,.0f}"))
        return rows

    def _all(self, name: str) -> Iterator[tuple[What, Split, str]]:
        """Yields what, split and name of each score of an arm."""
        for what in (_BEST, _ENSEMBLE):
            for split in _NAMES:
                for score in self.arms[name].scores(what, split):
                    yield what, split, score

    def _nested(self, name: str, function: Any) -> dict[str, Any]:
        """Returns {what: {split: {score: numbers}}} of an arm."""
        found: dict[str, Any] = {}
        for what, split, score in self._all(name):
            values = function(name, score, what=what, split=split)
            mean, low, high = interval(values)
            numbers = {"per_seed": values, "mean": mean, "ci95": [low, high]}
            found.setdefault(what, {}).setdefault(split, {})[score] = numbers
        return found

    @property
    def _baseline(self) -> Arm:
        return self.arms[self.baseline]

    @property
    def _split(self) -> Split:
        return "test" if self._baseline.test else "valid"

    @property
    def _used(self) -> tuple[str, Mapping[str, float]]:
        """The unit of the compute, and each arm's in it: training examples, or replicas of a problem without data."""
        examples = {name: arm.examples for name, arm in self.arms.items()}
        if any(examples.values()):
            return "examples per seed", examples
        return "replicas per seed", {name: arm.replicas for name, arm in self.arms.items()}

    def _better(self, score: str) -> Literal["lower", "higher"] | None:
        higher = self.higher_is_better.get(score)
        return None if higher is None else "higher" if higher else "lower"


def _mean(values: Float[np.ndarray, " S"], form: str) -> str:
    """Returns the mean of numbers and its interval as text; the reason where there is none."""
    lost = int((~np.isfinite(values)).sum())
    if lost:
        return f"not finite for {lost} of {len(values)} seed{'s' * (len(values) > 1)}"
    mean, low, high = interval(values)
    largest = np.nanmax(np.abs([mean, low, high]))
    # Five digits of the largest: beyond them a mean that is zero shows the rounding of the scores.
    digits = 4 - math.floor(math.log10(largest or 1.0))
    middle, least, most = (round(float(x), digits) + 0.0 for x in (mean, low, high))
    ends = "[one seed]" if len(values) < 2 else f"[{least:{form}}, {most:{form}}]"
    return f"{middle:{form}} {ends}"
