"""What comes of a run: the final state, the trace, the scores, and the best replica's model."""

import dataclasses
import warnings
from typing import Any, Literal

import numpy as np

from jaxpt import tree
from jaxpt.engine import Engine
from jaxpt.replica_axis import Execution
from jaxpt.state import RunState, Trace


@dataclasses.dataclass(frozen=True)
class Best:
    """The replica that did best on validation."""

    replica: int
    """Its slot, 0 .. M - 1."""
    seed: int | None
    """Which seed's ladder it belongs to (an index into `seeds`); None for a run with one seed."""
    valid: dict[str, float]
    """Its energy and metrics on the whole validation split, at the end."""
    test: dict[str, float]
    """The same on the test split; empty without one."""
    model: Any = dataclasses.field(repr=False)
    """The user's model with its weights, in evaluation mode."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a run.

    result.best("error").model(x)                # the replica that is best on validation, ready to call
    result.trace.valid["energy"]                 # [periods, replicas], or [periods, seeds, replicas]
    result.trace.rung["learning_rate"]           # where each replica stood, period by period
    """

    engine: Engine = dataclasses.field(repr=False)
    """The engine that ran."""
    state: RunState = dataclasses.field(repr=False)
    """The state after the last step."""
    trace: Trace = dataclasses.field(repr=False)
    """One row per period, as NumPy arrays."""
    valid: dict[str, np.ndarray]
    """{"energy": [M], metric: [M]} on the whole validation split, at the end; [S, M] with seeds."""
    test: dict[str, np.ndarray]
    """The same on the test split; empty without one."""
    seconds: float
    """Wall time of the training, compilation left out."""
    compile_seconds: float
    """Wall time of the compilation."""
    replica_images: int
    """Training examples that all replicas were trained on, repeats counted; batch sizes as in `trace.hyper`."""
    execution: Execution
    """How the replica axis was executed and on how many devices; `str` says it in words."""
    stopped: Literal["callback", "patience"] | None = None
    """What ended the run before its last step, if anything did."""

    def best(self, on: str = "energy", seed: int | None = None) -> Best:
        """Returns the replica with the lowest score on the validation split (ties: the lower energy).

        Args:
            on: "energy" or one of the problem's metrics.
            seed: which seed's ladder to look at (an index into `seeds`); needed if the run has several.

        Raises:
            ValueError: no such score, or no such seed.
        """
        if on not in self.valid:
            raise ValueError(f"on={on!r} is not a score of this run; there are {', '.join(self.valid)}")
        ladders = self.state.key.ndim and self.state.key.shape[0]
        if ladders and (seed is None or not 0 <= seed < ladders):
            raise ValueError(f"the run has {ladders} seeds; give seed=0 .. {ladders - 1}, not {seed}")
        if seed is not None and not ladders:
            raise ValueError(f"the run has one seed only, so seed={seed} names none; leave it out")
        lead: tuple[int, ...] = () if seed is None else (seed,)
        # A diverged replica comes last, whatever its other scores say.
        healthy = np.isfinite(self.valid["energy"])
        ranked = [np.where(healthy, self.valid[name], np.inf)[lead] for name in ("energy", on)]
        index = (*lead, int(np.lexsort(ranked)[0]))
        if not np.isfinite(ranked[0]).any():
            warnings.warn(f"all {len(ranked[0])} replicas have diverged; none is the best", stacklevel=2)
        weights = tree.take((self.state.replicas.params, self.state.replicas.model_state), index)
        weights = self.engine.placed.gathered(weights)
        build = self.engine.problem.model
        return Best(
            index[-1],
            seed,
            {name: float(v[index]) for name, v in self.valid.items()},
            {name: float(v[index]) for name, v in self.test.items()},
            build(*weights) if build else weights,
        )
