"""A run's periods as scalars for TensorBoard."""

import math
import os
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

from jaxpt.core.extras import extra
from jaxpt.core.state import Trace
from jaxpt.saving.files import local_path
from jaxpt.training.recorders.base import Guard, Recorder, Run

_REPLICAS = 16  # most replicas whose hyperparameters are written
_POINTS = 64  # most points of a curve per dispatch; TensorBoard draws about a thousand of a whole run


class TensorBoard(Recorder):
    """Writes scalars of every period with tensorboardX; at most 64 periods of each dispatch.

    "Best" is the replica with the lowest energy in that period. With seeds, scalars are means over seeds.
    Hyperparameters of the ladders are shown for the best replica and for the first 16 replicas of the first seed.

    Event files of an earlier process stay; their points beyond the run's trace are withdrawn.

    Args:
        directory: directory of the event file; by default DIRECTORY/tensorboard.

    Raises:
        ModuleNotFoundError: tensorboardX is not installed.
        ValueError: directory is a URL.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None):
        self._event_file = extra("tensorboardX.event_file_writer", "tensorboard", "TensorBoard()")
        self._events = extra("tensorboardX.proto.event_pb2", "tensorboard", "TensorBoard()")
        self._summaries = extra("tensorboardX.proto.summary_pb2", "tensorboard", "TensorBoard()")
        self._directory = None if directory is None else local_path("directory", directory)

    @property
    def place(self) -> Path | None:
        """The directory that was given."""
        return self._directory

    def check(self, directory: Path | None) -> None:
        """Raises ValueError if neither the run nor the recorder has a directory."""
        if directory is None and self._directory is None:
            raise ValueError("TensorBoard() writes to DIRECTORY/tensorboard; give fit(directory=...), or a directory")

    def open(self, run: Run) -> None:
        """Begins an event file."""
        directory = self._directory or cast(Path, run.directory) / "tensorboard"
        self._names = [name for ladder in run.engine.ladders.values() for name in ladder.values]
        self._ladders = sorted(run.engine.ladders)
        self._writing = Guard(directory)
        done = 0 if run.trace is None else int(run.trace.step[-1])
        with self._writing:
            directory.mkdir(parents=True, exist_ok=True)
            # Writes directly, not through a queue, so that flush() really flushes; names differ even within a second.
            self._file = self._event_file.EventsWriter(str(directory / "events"), f".{time.time_ns()}")
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
        """Returns {tag: one number per row}; NaN where a row has no number."""
        energy = np.asarray(trace.valid["energy"], np.float64)
        healthy = np.isfinite(energy)
        order = np.where(healthy, energy, np.inf).argmin(-1)[..., None]

        def best(values: Any) -> np.ndarray:
            return _mean(np.take_along_axis(np.asarray(values, np.float64), order, -1)[..., 0])

        columns: dict[str, Any] = {"training/loss, mean": _mean(trace.loss)}
        if trace.cooldown is not None:
            columns["training/cooldown"] = np.asarray(trace.cooldown, np.float64)
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


def _mean(values: Any) -> np.ndarray:
    """Returns each row's mean over its finite values; NaN if it has none."""
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    known = np.isfinite(values)
    count = known.sum(-1)
    return np.where(count, np.sum(values, -1, where=known) / np.maximum(count, 1), np.nan)
