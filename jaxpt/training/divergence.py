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
        self._lost = lost[-1]
        if self._engine.diverged == "respawn":
            self._respawned(trace, lost, new)
        elif new.any():
            message = self._message(trace, new)
            if self._engine.diverged == "stop":
                if from_the_start and lost.all(0).any():
                    message += "; it has never been finite, so let init draw weights where the loss is finite"
                raise Diverged(f'{message}; the run stops, since diverged="stop"{otherwise}')
            advice = 'it goes on, and counts nowhere; diverged="respawn" would start it again from its neighbour'
            warnings.warn(f"{message} ({advice})", stacklevel=3)

    def _respawned(self, trace: Trace, lost: np.ndarray, new: np.ndarray) -> None:
        """Warns of replicas that were copied over, each time, and once of those that were not."""
        parents = np.asarray(trace.info.parents)
        copied = lost & (parents != np.arange(parents.shape[-1]))
        alone = lost.all(-1, keepdims=True)
        for which, then in (
            (copied, "it goes on with the weights of the nearest healthy replica"),
            (new & ~copied & ~alone, "it gets the weights of the nearest healthy replica when the search has ended"),
            (new & ~copied & alone, "no replica is healthy, so it stays lost"),
        ):
            if which.any():
                warnings.warn(f"{self._message(trace, which)} ({then})", stacklevel=4)

    def _message(self, trace: Trace, which: np.ndarray) -> str:
        """Returns a message that names some of the replicas."""
        places = np.argwhere(which)
        said = [self._words(trace, place) for place in places[:_NAMED]]
        more = [f"and {len(places) - _NAMED} more"] if len(places) > _NAMED else []
        return "energy is not finite: " + "; ".join(said + more)

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
