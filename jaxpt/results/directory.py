"""Reads a run's directory from its files alone, also during the run: no code of the run, no lock, no change."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpt.core.arguments import is_number
from jaxpt.core.decimals import shortest
from jaxpt.saving import lock, settings
from jaxpt.saving.files import is_stray


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The contents of a run's directory.

    Attributes:
        path: the directory.
        settings: its settings.json; None if that is missing or damaged.
        steps: optimiser steps of the latest call of `fit`; None if not noted.
        ended_by: what ended the run before these steps: "callback" or "patience"; None: nothing, or it is not noted.
        periods: number of periods recorded.
        last: the last period's line in periods.jsonl; None without one.
        lowest: for each seed the line, the seed and the replica with the lowest energy of all periods; seed None in a
            run with one.
        pace: seconds per step in the later half of the run; None if unknown.
        seconds: training time so far; None if unknown.
        checkpoints: for each whole checkpoint its step, seconds, energy and number of seeds without a finite energy,
            ascending; the energy is None if all are without.
        holder: what the lock says of the process that holds it; None: none does.
        troubles: what is missing or damaged, in words.
    """

    path: Path
    settings: dict[str, Any] | None
    steps: int | None
    ended_by: str | None
    periods: int
    last: dict[str, Any] | None
    lowest: list[tuple[dict[str, Any], int | None, int]]
    pace: float | None
    seconds: float | None
    checkpoints: list[dict[str, Any]]
    holder: dict[str, Any] | None
    troubles: list[str]

    @property
    def is_run(self) -> bool:
        """Whether the directory holds anything of a run."""
        return self.settings is not None or self.last is not None or self.holder is not None

    @property
    def step(self) -> int:
        """Optimiser steps done in the periods recorded."""
        return 0 if self.last is None else int(self.last["step"])

    @property
    def state(self) -> str:
        """The state: "running", "finished", "ended early", "stopped", or "begun" if no period is recorded."""
        if self.holder is not None:
            return "running"
        if self.last is None:
            return "begun"
        if self.steps is not None and self.step >= self.steps:
            return "finished"
        return "stopped" if self.ended_by is None else "ended early"

    @property
    def seconds_left(self) -> float | None:
        """Training time left at this pace; None if unknown."""
        if self.steps is None or self.pace is None:
            return None
        return max(0, self.steps - self.step) * self.pace


def runs_below(path: Path) -> list[str]:
    """Returns the folders in a folder that hold a run: those of the arms of `compare`, or of their groups of seeds."""
    ours = lambda file: isinstance((_json(file, []) or {}).get("format"), int)  # noqa: E731
    files = (file for depth in ("*", "*/*") for file in path.glob(f"{depth}/settings.json"))
    return sorted(file.parent.relative_to(path).as_posix() for file in files if ours(file))


_PARTS = ("engine", "rule", "search", "cooldown", "fixed", "ladders", "seeds", "versions")
"""Parts of settings.json that are objects where they are there."""


def look(path: Path) -> RunDirectory:
    """Returns the contents of a directory, which need not hold a run.

    Raises:
        ValueError: it is not a directory.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a directory; give the directory that was given to fit")
    troubles: list[str] = []
    holder = lock.holder(path)
    known = _json(path / "settings.json", troubles)
    if known is not None and not isinstance(known.get("format"), int):
        troubles.append("settings.json is not that of a run")
        known = None
    if known is not None:
        spoilt = [name for name in _PARTS if not isinstance(known.get(name, {}), dict)]
        if "ladders" not in spoilt and not all(isinstance(one, dict) for one in known.get("ladders", {}).values()):
            spoilt.append("ladders")
        troubles += [f"settings.json is damaged: {name} is no object" for name in spoilt]
        known = {name: value for name, value in known.items() if name not in spoilt}
    if known is not None and known.get("format") != settings.FORMAT:
        troubles.append(
            f"settings.json is of format {known.get('format')!r}, but this release reads format {settings.FORMAT}; "
            "use the release that made the run"
        )
    course = _Course()
    for line in lines(path / "periods.jsonl", troubles):
        course.add(line)
    kept = _checkpoints(path, holder is not None, troubles)
    noted = _json(path / "run.json", troubles) if (path / "run.json").exists() or course.last else None
    steps, ended_by = (noted.get("steps"), noted.get("ended_by")) if noted else (None, None)
    if holder is not None and course.last is None:  # it has not written them yet
        troubles = [one for one in troubles if not one.endswith("is missing")]
    return RunDirectory(
        path,
        known,
        steps if isinstance(steps, int) else None,
        ended_by if ended_by in ("callback", "patience") else None,
        course.periods,
        course.last,
        course.lowest,
        course.pace,
        course.seconds,
        kept,
        holder,
        troubles,
    )


_SENTINEL = 1e37
"""Earlier releases wrote an energy of 3.4e38 for a seed that had none, and the mean over the seeds."""


def lines(path: Path, troubles: list[str]) -> Iterator[dict[str, Any]]:
    """Yields a file's periods; at the first damaged line it ends, and adds to `troubles`.

    A last line without its end is left out: it is being written.
    """
    if not path.exists():
        troubles.append(f"{path.name} is missing")
        return
    shape = None
    try:
        file = path.open("rb")
    except OSError as error:
        troubles.append(f"{path.name} cannot be read: {error.strerror}")
        return
    with file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                return
            try:
                found = json.loads(line)
                shape = _checked(found, number, shape)
            except (ValueError, TypeError, KeyError, AttributeError):
                troubles.append(f"{path.name} is damaged from line {number + 1} on, and the rest of it is left out")
                return
            yield found


def _checked(line: Mapping[str, Any], number: int, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Returns the shape of a line's energies, [M] or [S, M]; raises if it is not a line like the first, of this period.

    Raises:
        ValueError, TypeError, KeyError or AttributeError: it is not.
    """
    energy = np.shape(np.array(line["valid"]["energy"], np.float64))
    numbers = [line["loss"], *(values for name in ("rung", "hyper", "valid", "test") for values in line[name].values())]
    swaps = np.array([line["attempted"], line["accepted"]], np.float64)
    if (
        line["period"] != number
        or not isinstance(line["step"], int)
        or not isinstance(line.get("seconds"), int | float | None)
        or energy != (energy if shape is None else shape)
        or any(np.shape(np.array(values, np.float64)) != energy for values in numbers)
        or swaps.shape[1:-1] != energy[:-1]
    ):
        raise ValueError("another period, or not as the first")
    return energy


def energies(line: Mapping[str, Any]) -> np.ndarray:
    """Returns a line's energies [S, M], infinite where a replica has diverged."""
    found = np.atleast_2d(np.array(line["valid"]["energy"], np.float64))  # None becomes NaN
    return np.where(np.isfinite(found), found, np.inf)


def replica(line: Mapping[str, Any], seed: int | None, number: int) -> dict[str, Any]:
    """Returns a replica's place and scores in one period."""

    def one(values: Any) -> Any:
        value = (values if seed is None else values[seed])[number]
        return shortest(np.float32(value)) if isinstance(value, float) else value

    parts = {
        part: {name: one(values) for name, values in line[part].items()} for part in ("rung", "hyper", "valid", "test")
    }
    return {"replica": number, "seed": seed, "step": line["step"], **parts}


def seed_of(line: Mapping[str, Any], place: int) -> int | None:
    """Returns the index of a seed; None in a run with one."""
    return place if isinstance(line["valid"]["energy"][0], list) else None


class _Course:
    """What the lines of a run come to, one after another."""

    def __init__(self) -> None:
        self.periods = 0
        self.last: dict[str, Any] | None = None
        self.lowest: list[tuple[dict[str, Any], int | None, int]] = []
        self._energy: Any = np.inf
        self._times: list[tuple[int, float]] = []

    def add(self, line: dict[str, Any]) -> None:
        """Adds the next line."""
        self.periods += 1
        self.last = line
        if line.get("seconds") is not None:
            self._times.append((line["step"], line["seconds"]))
        energy = energies(line)
        if not self.lowest:
            self.lowest = [(line, seed_of(line, place), int(row.argmin())) for place, row in enumerate(energy)]
            self._energy = energy.min(-1)
            return
        for place in np.flatnonzero(energy.min(-1) < self._energy):
            self.lowest[place] = (line, seed_of(line, int(place)), int(energy[place].argmin()))
        self._energy = np.minimum(self._energy, energy.min(-1))

    @property
    def seconds(self) -> float | None:
        """The latest time known."""
        return self._times[-1][1] if self._times else None

    @property
    def pace(self) -> float | None:
        """Seconds per step in the later half of the lines that have a time."""
        if not self._times:
            return None
        begin = self._times[(len(self._times) - 1) // 2] if len(self._times) > 1 else (0, 0.0)
        (step, second), (last, end) = begin, self._times[-1]
        return (end - second) / (last - step) if last > step else None


def _json(file: Path, troubles: list[str]) -> dict[str, Any] | None:
    """Returns a file's object; None if it is missing or damaged, which is added to `troubles`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        troubles.append(f"{file.name} is missing")
        return None
    except (OSError, ValueError) as error:
        troubles.append(f"{file.name} cannot be read: {error}")
        return None
    if not isinstance(found, dict):
        troubles.append(f"{file.name} is damaged")
        return None
    return found


def _checkpoints(path: Path, running: bool, troubles: list[str]) -> list[dict[str, Any]]:
    """Returns the whole checkpoints; their bytes are compared with the checksums only when a run goes on from them."""
    sums, folder, found = path / "checksums", path / "checkpoints", []
    steps = sorted(int(file.stem) for file in sums.glob("*.json") if file.stem.isdecimal())
    for step in steps:
        # A run that is going on may just have removed it.
        written = _json(sums / f"{step}.json", [] if running else troubles) or {}
        lost = [name for name in written if not is_stray(name) and not (folder / name).exists()]
        if lost and not running:  # a run removes the checkpoints that it no longer keeps
            troubles.append(f"the checkpoint of step {step} lacks {lost[0]}, and cannot be used")
        if written and not lost:
            about = _json(folder / str(step) / "_CHECKPOINT_METADATA", []) or {}
            metrics = _json(folder / str(step) / "metrics" / "metrics", []) or {}
            progress = about.get("custom_metadata")
            seconds = progress.get("seconds") if isinstance(progress, dict) else None
            energy: Any = metrics.get("energy")
            known = is_number(energy) and float(energy) < _SENTINEL
            lost = metrics.get("lost_seeds", 0)
            found.append({"step": step, "energy": energy if known else None, "lost_seeds": lost, "seconds": seconds})
    others = [int(one.name) for one in folder.glob("*") if one.name.isdecimal() and int(one.name) not in steps]
    if others and not running:
        troubles.append(f"the checkpoint of step {max(others)} is incomplete; the next run removes it")
    return found
