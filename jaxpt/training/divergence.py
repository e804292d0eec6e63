"""Reports replicas whose energy has become non-finite, with replica, rung and step."""

import warnings

import numpy as np

from jaxpt.core.errors import Diverged
from jaxpt.core.state import Trace
from jaxpt.engine.engine import Engine

_NAMED = 4  # replicas that a message names; it counts the others


class DivergenceMonitor:
    """Searches a run's rows, in order, for energies that are not finite.

    Args:
        engine: its `diverged` is the policy.
        fresh: whether the rows begin with the run's first period.
    """

    def __init__(self, engine: Engine, fresh: bool = False):
        self._engine, self._fresh = engine, fresh
        self._lost: np.ndarray | None = None

    def look(self, trace: Trace, otherwise: str = "") -> None:
        """Warns of replicas that were healthy one period earlier and no longer are.

        Args:
            trace: further rows of the run, NumPy arrays.
            otherwise: text appended to the error's message.

        Raises:
            Diverged: a replica has diverged and the engine's policy is "stop"; or, in a fresh run, no replica of any
                seed has had a finite energy yet.
        """
        lost = ~np.isfinite(trace.valid["energy"])
        if not len(lost):
            return
        hopeless = np.isnan(trace.valid["energy"]).any() or not np.isfinite(trace.loss).all()
        if self._fresh and lost.all() and hopeless:  # an infinite energy alone may still become finite in training
            raise Diverged(self._never(trace, lost))
        from_the_start, self._fresh = self._fresh, False
        before = np.zeros_like(lost[0]) if self._lost is None else self._lost
        new = lost & ~np.concatenate([before[None], lost[:-1]])
        if self._engine.diverged == "respawn":
            new = lost  # a respawned replica that diverges again is reported again
        self._lost = lost[-1]
        if not new.any():
            return
        places = np.argwhere(new)
        said = [self._words(trace, place) for place in places[:_NAMED]]
        more = [f"and {len(places) - _NAMED} more"] if len(places) > _NAMED else []
        message = "energy is not finite: " + "; ".join(said + more)
        if self._engine.diverged == "stop":
            if from_the_start and lost.all(0).any():
                message += "; it has never been finite, so let init draw weights where the loss is finite"
            raise Diverged(f'{message}; the run stops, since diverged="stop"{otherwise}')
        then = {
            "keep": 'it goes on, and counts nowhere; diverged="respawn" would start it again from its neighbour',
            "respawn": "it goes on with the weights of the nearest healthy replica",
        }
        warnings.warn(f"{message} ({then[self._engine.diverged]})", stacklevel=3)

    def _never(self, trace: Trace, lost: np.ndarray) -> str:
        """Returns the error message for a run in which no energy was ever finite."""
        seeds = "" if lost.ndim == 2 else " of every seed"
        where = (
            "never been finite" if np.isfinite(trace.loss[0]).any() else "never been finite, nor has the training loss"
        )
        return (
            f"the energy of each of the {lost.shape[-1]} replicas{seeds} has {where}, by step {int(trace.step[-1])}; "
            "such replicas do not recover. Look for numbers in the data that are not finite, a loss that is infinite "
            "where init draws the weights, learning rates that are too high"
        )

    def _words(self, trace: Trace, place: np.ndarray) -> str:
        """Returns a phrase that names the replica, its rungs and the step."""
        period, *index = (int(i) for i in place)
        seed = f" of seed {index[0]}" if len(index) == 2 else ""
        rungs = ", ".join(f"rung {int(rung[tuple(place)])} of {name}" for name, rung in trace.rung.items())
        return f"replica {index[-1]}{seed} on {rungs} by step {int(trace.step[period])}"
