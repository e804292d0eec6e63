"""A run's periods as lines of JSON."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from jaxpt.core.state import Trace
from jaxpt.saving.files import local_path
from jaxpt.training.recorders.base import Guard, Recorder, Run


class JsonLines(Recorder):
    """DIRECTORY/periods.jsonl: one line of strict JSON per period, flushed after every dispatch.

        {"period": 3, "step": 80, "seconds": 1.7, "loss": [M], "valid": {"energy": [M], ...}, "test": {...},
         "rung": {ladder: [M]}, "hyper": {name: [M]}, "ladder": its name, "attempted": [M-1], "accepted": [M-1], "C": 1}

    "C" is present if the rule has one, "parents": [M] if it copies weights, and "reported", such as
    {"acceptance": [M]}, if the optimiser reports numbers. With S seeds the lists are [S][M], and C is [S]. Numbers that
    are not finite are null. `seconds` is the training time so far: periods of one dispatch share its time evenly, and
    periods known only from a checkpoint have null. Lines that an error prevented are written when the run is resumed.

    The file may hold lines of an earlier process. Lines past the run's trace, and an incomplete last line, are cut off.

    Args:
        path: path of the file; by default DIRECTORY/periods.jsonl, which a run with a directory always writes.

    Raises:
        ValueError: path is a URL.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None):
        self.path = None if path is None else local_path("path", path)

    @property
    def place(self) -> Path | None:
        """The path that was given."""
        return self.path

    def check(self, directory: Path | None) -> None:
        """Raises ValueError if there is neither a path nor a directory."""
        if directory is None and self.path is None:
            raise ValueError("JsonLines() writes to DIRECTORY/periods.jsonl; give fit(directory=...), or a path")

    def open(self, run: Run) -> None:
        """Opens the file, and cuts or completes it to match the rows of the run."""
        path = self.path or cast(Path, run.directory) / "periods.jsonl"
        self._ladders, trace = list(run.engine.ladders), run.trace
        self._period = 0
        self._writing = Guard(path)
        with self._writing:
            rows = 0 if trace is None else len(trace.step)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._period, size = _whole_lines(path, rows)
            os.truncate(path, size)
            self._file = path.open("a", encoding="utf-8")
            if trace is not None and self._period < rows:
                missing = self._period
                self.add(jax.tree.map(lambda leaf: leaf[missing:], trace), (math.nan, math.nan), 0)

    def add(self, trace: Trace, seconds: tuple[float, float], images: int) -> None:
        """Writes further rows, see `Recorder`."""
        if self._writing.failed:
            return
        with self._writing:
            for line in self._lines(trace, seconds):
                self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if not self._writing.failed:
            with self._writing:
                self._file.close()

    def _lines(self, trace: Trace, seconds: tuple[float, float]) -> Iterator[str]:
        info = trace.info
        shares = np.linspace(*seconds, len(trace.step) + 1)[1:]
        columns = {
            "seconds": np.round(shares, 6),
            "loss": trace.loss,
            "valid": trace.valid,
            "test": trace.test,
            "rung": trace.rung,
            "hyper": trace.hyper,
            "attempted": info.attempted,
            "accepted": info.accepted,
            "C": info.C,
            "parents": info.parents,
            "cooldown": trace.cooldown,
            "reported": trace.reported,
        }
        lists = {name: jax.tree.map(_numbers, value) for name, value in columns.items() if value is not None}
        turns = np.asarray(info.ladder).reshape(len(trace.step), -1)[:, 0]
        names = sorted(self._ladders)
        for row, (step, turn) in enumerate(zip(trace.step.tolist(), turns.tolist(), strict=True)):
            about = {"period": self._period, "step": step, "ladder": names[turn]}
            yield json.dumps(about | {name: _at(value, row) for name, value in lists.items()}, allow_nan=False) + "\n"
            self._period += 1


def _whole_lines(path: Path, most: int) -> tuple[int, int]:
    """Returns the number of whole lines at the start of a file, at most `most`, and their size in bytes."""
    size = 0
    with path.open("rb") as file:
        for count, line in enumerate(file):
            if count == most or not (line.startswith(b'{"period": %d,' % count) and line.endswith(b"}\n")):
                return count, size
            size += len(line)
    return (0 if not size else count + 1), size


def _numbers(leaf: Any) -> list[Any]:
    """Returns an array as lists, with None for NaN and infinity, which JSON cannot hold."""
    leaf = np.asarray(leaf)
    if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
        held = leaf.astype(object)
        held[~np.isfinite(leaf)] = None
        return held.tolist()
    return leaf.tolist()


def _at(lists: Any, row: int) -> Any:
    """Returns one row of a dict of lists, or of a list."""
    return {name: values[row] for name, values in lists.items()} if isinstance(lists, dict) else lists[row]
