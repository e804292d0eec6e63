"""The base class of recorders, and the handling of file errors."""

import abc
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from jaxpt.core.state import Trace
from jaxpt.engine.spec import Spec


class Run(NamedTuple):
    """A run's description, given to recorders before the first row.

    Attributes:
        engine: its ladders and rule determine the names that are recorded.
        steps: optimiser steps requested.
        directory: the run's directory; None without one.
        trace: the rows of earlier calls if the run is resumed, NumPy arrays; None: there are none.
        seed: the seed of a run with one ladder.
        seeds: the seeds of a run with several; None: it has one.
    """

    engine: Spec
    steps: int
    directory: Path | None
    trace: Trace | None
    seed: int = 0
    seeds: tuple[int, ...] | None = None


class Recorder(abc.ABC):
    """Receives the rows of a run after each dispatch; `fit(recorders=[...])` calls it in the first process only.

    >>> class Console(jaxpt.Recorder):
    ...     def add(self, trace, seconds, images):
    ...         print(trace.step[-1], trace.valid["energy"][-1].min() < 10)
    >>> found = jaxpt.fit(engine, train, valid, steps=10, recorders=[Console()], progress=False)
    10 True

    A recorder with a state must reset it in `open`, so that one object can serve several runs in turn.
    """

    @property
    def place(self) -> Path | None:
        """The file or folder in which each run replaces the last one's records; None: there is none such."""
        return None

    def check(self, directory: Path | None) -> None:  # noqa: B027  by default either will do
        """Raises ValueError if the recorder cannot work for a run with this directory; called before anything else."""

    def open(self, run: Run) -> None:  # noqa: B027  by default there is nothing to open
        """Begins or resumes a run; the rows in `run.trace` were recorded by earlier calls."""

    @abc.abstractmethod
    def add(self, trace: Trace, seconds: tuple[float, float], images: int) -> None:
        """Records further rows.

        Args:
            trace: the rows, NumPy arrays [periods, (seeds,) replicas].
            seconds: training time before and after these rows.
            images: training examples used in these rows.
        """

    def fail(self, error: BaseException) -> None:  # noqa: B027  most recorders end in the same way
        """Called before `close` if an error ends the run; `Interrupted` is one."""

    def close(self) -> None:  # noqa: B027  nor to close
        """Ends the recording; also called after an error."""


class Guard:
    """Turns a log's first error into a warning; nothing is written afterwards. A failing log must not end a run.

    Args:
        what: the file or the service that is written to, for the message.
        errors: the errors that are turned into warnings; others are raised.
    """

    def __init__(self, what: Any, errors: type[Exception] = OSError):
        self._what, self._errors = what, errors
        self.failed = False

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> bool:
        if not isinstance(error, self._errors):
            return False
        self.failed = True
        why = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        warnings.warn(f"{self._what} cannot be written, and the run goes on without: {why}", stacklevel=5)
        return True
