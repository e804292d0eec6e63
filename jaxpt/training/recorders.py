"""A run's periods in files, as they come: lines of JSON, and scalars for TensorBoard."""

import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpt.core.extras import extra
from jaxpt.core.state import Trace
from jaxpt.engine.engine import Engine

_REPLICAS = 16  # whose hyperparameters have a scalar each
_POINTS = 64  # of a curve in one dispatch; TensorBoard draws about a thousand of a whole run


class Lines:
    """DIRECTORY/periods.jsonl: one line of strict JSON per period, flushed after every dispatch.

        {"period": 3, "step": 80, "seconds": 1.7, "loss": [M], "valid": {"energy": [M], ...}, "test": {...},
         "rung": {ladder: [M]}, "hyper": {name: [M]}, "ladder": its name, "attempted": [M-1], "accepted": [M-1], "C": 1}

    C is there if the rule has one, and "parents": [M] if it copies weights. With S seeds the lists are [S][M], and C is
    [S]. Numbers that are not finite are null. `seconds` are of training so far; periods of one dispatch share its time
    evenly, and those of which only a checkpoint knows have null. What an error kept from being written is made up for
    when the run is resumed.

    Args:
        path: of the file. It may hold lines of an earlier process: those past the trace are cut off, a half one too.
        engine: whose ladders give the names.
        trace: the rows so far, which the file is to hold; None: there are none.
    """

    def __init__(self, path: Path, engine: Engine, trace: Trace | None = None):
        self._ladders = list(engine.ladders)
        self._period = 0
        self._writing = _Writing(path)
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
        }
        lists = {name: jax.tree.map(_numbers, value) for name, value in columns.items() if value is not None}
        turns = np.asarray(info.ladder).reshape(len(trace.step), -1)[:, 0]
        names = sorted(self._ladders)
        for row, (step, turn) in enumerate(zip(trace.step.tolist(), turns.tolist(), strict=True)):
            about = {"period": self._period, "step": step, "ladder": names[turn]}
            yield json.dumps(about | {name: _at(value, row) for name, value in lists.items()}, allow_nan=False) + "\n"
            self._period += 1


class Scalars:
    """DIRECTORY/tensorboard: scalars of every period, by tensorboardX; of a dispatch of more than 64 periods, of 64.

    Best is the replica with the lowest energy in that period; with seeds, scalars are means over them. Hyperparameters
    of the ladders are shown for each replica of the first seed, 16 at most, and for the best.

    Args:
        directory: where the event file goes; those of an earlier process stay.
        engine: whose ladders are shown.
        trace: the rows so far, which earlier files hold; what they hold beyond these is taken back. None: no rows.

    Raises:
        ModuleNotFoundError: tensorboardX is not installed.
    """

    def __init__(self, directory: Path, engine: Engine, trace: Trace | None = None):
        event_file = extra("tensorboardX.event_file_writer", "tensorboard", "tensorboard=True")
        self._events = extra("tensorboardX.proto.event_pb2", "tensorboard", "tensorboard=True")
        self._summaries = extra("tensorboardX.proto.summary_pb2", "tensorboard", "tensorboard=True")
        self._names = [name for ladder in engine.ladders.values() for name in ladder.values]
        self._ladders = sorted(engine.ladders)
        self._writing = _Writing(directory)
        done = 0 if trace is None else int(trace.step[-1])
        with self._writing:
            directory.mkdir(parents=True, exist_ok=True)
            # Written right here, not through a queue, so that a flush is one; the name is new even within a second.
            self._file = event_file.EventsWriter(str(directory / "events"), f".{time.time_ns()}")
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            self._file.write_event(self._events.Event(step=done + 1, session_log=start, wall_time=time.time()))

    def add(self, trace: Trace, seconds: tuple[float, float], images: int) -> None:
        """Writes further rows, see `Recorder`."""
        if self._writing.failed:
            return
        columns = self._columns(trace)
        now = time.time()
        make = self._summaries.Summary
        with self._writing:
            last, every = len(trace.step) - 1, math.ceil(len(trace.step) / _POINTS)
            for row in range(last % every, last + 1, every):
                found = {tag: values[row] for tag, values in columns.items() if math.isfinite(values[row])}
                if row == last and images:
                    found["speed/replica images per second"] = images / (seconds[1] - seconds[0])
                summary = make(value=[make.Value(tag=tag, simple_value=value) for tag, value in found.items()])
                self._file.write_event(self._events.Event(step=int(trace.step[row]), wall_time=now, summary=summary))
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if not self._writing.failed:
            with self._writing:
                self._file.close()

    def _columns(self, trace: Trace) -> dict[str, list[float]]:
        """Returns {tag: one number per row}; NaN where there is none."""
        energy = np.asarray(trace.valid["energy"], np.float64)
        healthy = np.isfinite(energy)
        order = np.where(healthy, energy, np.inf).argmin(-1)[..., None]

        def best(values: Any) -> np.ndarray:
            return _mean(np.take_along_axis(np.asarray(values, np.float64), order, -1)[..., 0])

        columns: dict[str, Any] = {"training/loss, mean": _mean(trace.loss)}
        for split, scores in (("validation", trace.valid), ("test", trace.test)):
            for name, values in scores.items():
                columns |= {f"{split}/{name}, best": best(values), f"{split}/{name}, mean": _mean(values)}
        turns = np.asarray(trace.info.ladder).reshape(len(energy), -1)[:, 0]
        offered = np.asarray(trace.info.attempted).reshape(len(energy), -1).sum(-1)
        accepted = np.asarray(trace.info.accepted).reshape(len(energy), -1).sum(-1)
        for turn, ladder in enumerate(self._ladders):
            with np.errstate(invalid="ignore"):
                columns[f"exchange/{ladder}, accepted"] = np.where(turns == turn, accepted / offered, np.nan)
            if trace.info.C is not None:
                columns[f"exchange/{ladder}, C"] = np.where(turns == turn, _mean(trace.info.C), np.nan)
        for name in self._names:
            under: Any = np.asarray(trace.hyper[name], np.float64)
            columns[f"{name}/best"] = best(under)
            first = under.reshape(len(under), -1, under.shape[-1])[:, 0]
            columns |= {f"{name}/replica {k:02d}": first[:, k] for k in range(min(_REPLICAS, first.shape[-1]))}
        return {tag: column.tolist() for tag, column in columns.items()}


class _Writing:
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


def _whole_lines(path: Path, most: int) -> tuple[int, int]:
    """Returns how many whole lines a file begins with, at most so many, and their size in bytes."""
    size = 0
    with path.open("rb") as file:
        for count, line in enumerate(file):
            if count == most or not (line.startswith(b'{"period": %d,' % count) and line.endswith(b"}\n")):
                return count, size
            size += len(line)
    return (0 if not size else count + 1), size


def _mean(values: Any) -> np.ndarray:
    """Returns each row's mean over all that is finite; NaN where nothing is."""
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    known = np.isfinite(values)
    count = known.sum(-1)
    return np.where(count, np.sum(values, -1, where=known) / np.maximum(count, 1), np.nan)


def _numbers(leaf: Any) -> list[Any]:
    """Returns an array as lists, with None for what JSON has no number for."""
    leaf = np.asarray(leaf)
    if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
        held = leaf.astype(object)
        held[~np.isfinite(leaf)] = None
        return held.tolist()
    return leaf.tolist()


def _at(lists: Any, row: int) -> Any:
    """Returns one row of a dict of lists, or of a list."""
    return {name: values[row] for name, values in lists.items()} if isinstance(lists, dict) else lists[row]
