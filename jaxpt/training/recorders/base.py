"""What writes a run's rows down: the class to derive from, and how errors of a file are met."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

from jaxpt.core.state import Trace
from jaxpt.engine.spec import Spec


class Run(NamedTuple):
    """What a recorder is told of a run before its first row.

    Attributes:
        engine: whose ladders and rule give the names of what is recorded.
        steps: optimiser steps that were asked for.
        directory: of the run; None without one.
        trace: the rows of earlier calls, NumPy arrays, when the run is resumed; None: there are none.
    """

    engine: Spec
    steps: int
    directory: Path | None
    trace: Trace | None


class Recorder:
    """Gets the rows of a run, dispatch after dispatch; `fit(recorders=[...])` calls it in the first process only.

    >>> class Console(jaxpt.Recorder):
    ...     def add(self, trace, seconds, images):
    ...         print(trace.step[-1], trace.valid["energy"][-1].min() < 10)
    >>> found = jaxpt.fit(engine, train, valid, steps=10, recorders=[Console()], progress=False)
    10 True

    A recorder with a state begins anew in `open`, so the same object serves one run after the other.
    """

    def check(self, directory: Path | None) -> None:
        """Raises ValueError if the recorder cannot work for a run with this directory; called before anything else."""

    def open(self, run: Run) -> None:
        """Begins a run, or goes on with one: what `run.trace` holds has been recorded before."""

    def add(self, trace: Trace, seconds: tuple[float, float], images: int) -> None:
        """Records further rows.

        Args:
            trace: the rows, NumPy arrays [periods, (seeds,) replicas].
            seconds: of training, before and after them.
            images: training examples that they stand for.
        """
        raise NotImplementedError(f"{type(self).__name__} has no add(); see jaxpt.Recorder")

    def close(self) -> None:
        """Ends the run, also where an error ended it."""


class Guard:
    """Makes a warning of a file's first error, after which nothing is written: the run is worth more than its log."""

    def __init__(self, path: Path):
        self._path = path
        self.failed = False

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> bool:
        if not isinstance(error, OSError):
            return False
        self.failed = True
        why = error.strerror or error
        warnings.warn(f"{self._path} cannot be written, and the run goes on without: {why}", stacklevel=5)
        return True
