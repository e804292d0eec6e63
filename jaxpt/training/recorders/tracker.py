"""What the recorders for experiment trackers share: a tracker's runs, their settings, and the rows of each."""

import abc
import ast
import dataclasses
import json
import math
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from jaxpt.core.extras import versions
from jaxpt.core.state import Trace
from jaxpt.saving import files
from jaxpt.saving.settings import rule_in_words
from jaxpt.training.recorders.base import Guard, Recorder, Run

Per: TypeAlias = Literal["ladder", "replica"]
Rows: TypeAlias = Iterable[tuple[int, dict[str, float]]]
"""(optimiser step, {name: number}) of each period."""

FILE = "trackers.json"
"""File in a run's directory: {tracker and project: {part: id of the tracker's run}}."""
FIRST = -1
"""A step before all others."""


class Part(NamedTuple):
    """The part of a run that one run of the tracker holds.

    Attributes:
        label: its name: "ladder" or "replica_03"; with seeds "seed_0" or "seed_0_replica_03".
        seed: index of its seed; None in a run with one seed.
        replica: its replica; None: all replicas of the ladder.
    """

    label: str
    seed: int | None
    replica: int | None


class Tracker(Recorder):
    """A recorder that keeps a run's periods in an experiment tracker.

    Args:
        name: name of the tracker's runs; by default that of the run's directory.
        per: "ladder" or "replica".
        config: further settings to show with each of them.

    Raises:
        ValueError: an argument has another type or value.
    """

    service: ClassVar[str]
    """Name of the tracker, for messages."""
    group: str | None
    """What the tracker's runs of a run have in common; None if there is only one."""

    def __init__(self, name: str | None, per: Per, config: Mapping[str, Any] | None):
        if per not in ("ladder", "replica"):
            raise ValueError(
                f'per must be "ladder", one run for all its replicas, or "replica", one for each, but it is {per!r}'
            )
        if config is not None and not (isinstance(config, Mapping) and all(isinstance(key, str) for key in config)):
            raise ValueError(f"config must be a dict of settings by their names, but it is {config!r}")
        self._name, self._per, self._config = optional("name", name), per, dict(config or {})

    @abc.abstractmethod
    def begin(self, part: Part, known: str | None, name: str | None, config: dict[str, Any]) -> tuple[str, int]:
        """Begins a run of the tracker, or resumes the one with the id `known`; returns its id and its last step."""

    @abc.abstractmethod
    def write(self, label: str, rows: Rows) -> None:
        """Writes further rows to the tracker's run of this part."""

    @abc.abstractmethod
    def end(self, error: BaseException | None) -> None:
        """Ends the tracker's runs; `error` is what ended the run, if anything did."""

    @property
    @abc.abstractmethod
    def target(self) -> str:
        """The place that the tracker's runs belong to; another place gets runs of its own."""

    @property
    def key(self) -> str:
        """The name that the ids of the tracker's runs have in the run's directory."""
        return f"{self.target}, per {self._per}"

    def open(self, run: Run) -> None:
        """Begins the tracker's runs, or resumes those of the directory and writes the rows that they lack."""
        self._writing = Guard(self.service, Exception)
        self._error: BaseException | None = None
        self._period, self._ladders = 0, list(run.engine.ladders)
        self._names = [name for ladder in run.engine.ladders.values() for name in ladder.values]
        self._parts = list(_parts(run, self._per))
        self._last: dict[str, int] = {}
        # A run that begins anew may have other settings, so it never continues the tracker's runs of an earlier one.
        known = {} if run.trace is None or run.directory is None else _noted(run.directory).get(self.key, {})
        shared, name = parameters(run) | self._config, self._name or (run.directory and run.directory.name) or None
        self.group = (name or secrets.token_hex(4)) if len(self._parts) > 1 else None
        ids = {}
        with self._writing:
            for part in self._parts:
                config = shared | _of_part(run, part)
                named = name if part.label == "ladder" else f"{name}-{part.label}" if name else part.label
                ids[part.label], self._last[part.label] = self.begin(part, known.get(part.label), named, config)
            if run.directory is not None:
                held = _noted(run.directory) | {self.key: ids}
                files.write(run.directory / FILE, json.dumps(held, indent=1))
        if run.trace is not None:
            self.add(run.trace, (math.nan, math.nan), 0)

    def add(self, trace: Trace, seconds: tuple[float, float], images: int) -> None:
        """Writes further rows, see `Recorder`."""
        shares = np.linspace(*seconds, len(trace.step) + 1)[1:]
        for part in self._parts:
            if self._writing.failed:
                return
            made = columns(trace, part, self._names, self._ladders)
            # Rows known only from a checkpoint have no time; the period comes last, so a row that has it is whole.
            made["seconds"] = [value if math.isfinite(value) else None for value in shares.tolist()]
            made["period"] = list(range(self._period, self._period + len(trace.step)))
            with self._writing:
                self.write(part.label, _rows(trace.step, made, self._last[part.label]))
        self._period += len(trace.step)

    def fail(self, error: BaseException) -> None:
        """Notes what ended the run."""
        self._error = error

    def close(self) -> None:
        """Ends the tracker's runs: finished, interrupted or failed."""
        if not self._writing.failed:
            with self._writing:
                self.end(self._error)


def optional(what: str, value: Any) -> str | None:
    """Returns a name that may be left out; raises ValueError if it is not a text, or empty."""
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise ValueError(f"{what} must be a text that is not empty, or None, but it is {value!r}")
    return value


def parameters(run: Run) -> dict[str, Any]:
    """Returns the settings of a run as {name: number, text, list, or a dict of them}."""
    engine = run.engine
    fields = {field.name: getattr(engine, field.name) for field in dataclasses.fields(engine)}
    simple = {name: value for name, value in fields.items() if isinstance(value, int | float | str)}
    parts = {"rule": engine.rule, "search": engine.beginning, "cooldown": engine.ending}
    return {
        **simple,
        "burn_in": int(engine.burn_in),
        "steps": run.steps,
        "replicas": engine.num_replicas,
        "seeds": list(run.seeds) if run.seeds is not None else [run.seed],
        **{name: _read(rule_in_words(part)) for name, part in parts.items() if part is not None},
        "fixed": {name: float(value) for name, value in engine.fixed.items()},
        "ladder": {
            name: {key: np.asarray(values).tolist() for key, values in ladder.values.items()}
            for name, ladder in engine.ladders.items()
        },
        "versions": versions(),
    }


def columns(trace: Trace, part: Part, names: list[str], ladders: list[str]) -> dict[str, list[float | None]]:
    """Returns {name: a number for each row} for a part of a run; None where a row has no such number.

    Numbers that are not finite are NaN. A ladder has a column NAME/replica_03 for each replica; NAME/best for the
    replica with the lowest energy in that period; and for losses and scores NAME/mean, over replicas that have not
    diverged.

    Args:
        trace: the rows.
        part: the part.
        names: hyperparameters of the ladders.
        ladders: names of the ladders.
    """
    seed = slice(None) if part.seed is None else part.seed

    def one(leaf: Any) -> np.ndarray:
        return np.asarray(leaf, np.float64)[:, seed]

    scores = {"loss": trace.loss}
    scores |= {f"valid/{plain(name)}": leaf for name, leaf in trace.valid.items()}
    scores |= {f"test/{plain(name)}": leaf for name, leaf in trace.test.items()}
    places = {f"hyper/{plain(name)}": trace.hyper[name] for name in names}
    places |= {f"rung/{plain(name)}": leaf for name, leaf in trace.rung.items()}
    if trace.info.parents is not None:
        places["parent"] = trace.info.parents
    single = {} if trace.cooldown is None else {"cooldown": np.asarray(trace.cooldown, np.float64)}
    if part.replica is not None:
        own = {name: one(leaf)[:, part.replica] for name, leaf in (scores | places).items()}
        return {name: _listed(column) for name, column in (own | single).items()}
    energy = one(trace.valid["energy"])
    healthy = np.isfinite(energy)
    best = np.where(healthy, energy, np.inf).argmin(-1)
    found = {}
    for name, leaf in (scores | places).items():
        held = one(leaf)
        found[f"{name}/best"] = held[np.arange(len(held)), best]
        if name in scores:
            found[f"{name}/mean"] = _mean(held)
        found |= {f"{name}/replica_{k:02d}": held[:, k] for k in range(held.shape[-1])}
    found |= {"best_replica": best, "diverged": (~healthy).sum(-1), **single}
    return {name: _listed(column) for name, column in found.items()} | _exchanges(trace, seed, sorted(ladders))


def _exchanges(trace: Trace, seed: Any, ladders: list[str]) -> dict[str, list[float | None]]:
    """Returns the share of accepted swaps and C of each ladder, in the periods in which it exchanged."""
    info, found = trace.info, {}
    turns = np.asarray(info.ladder)[:, seed] if np.ndim(info.ladder) > 1 else np.asarray(info.ladder)
    offered, accepted = (np.asarray(leaf)[:, seed].sum(-1) for leaf in (info.attempted, info.accepted))
    for turn, name in enumerate(ladders):
        mine = (turns == turn) & (offered > 0)
        found[f"exchange/{plain(name)}/accepted"] = _listed(accepted / np.maximum(offered, 1), mine)
        if info.C is not None:
            factor = np.asarray(info.C, np.float64)
            found[f"exchange/{plain(name)}/C"] = _listed(factor[:, seed] if factor.ndim > 1 else factor, mine)
    return found


def _mean(values: np.ndarray) -> np.ndarray:
    """Returns each row's mean over its finite values; NaN if it has none."""
    known = np.isfinite(values)
    count = known.sum(-1)
    return np.where(count, np.sum(values, -1, where=known) / np.maximum(count, 1), np.nan)


def _listed(values: Any, there: Any = True) -> list[float | None]:
    """Returns numbers as a list: NaN for those that are not finite, None for those that are not there."""
    values = np.asarray(values, np.float64)
    held = np.where(np.isfinite(values), values, np.nan).astype(object)
    held[~np.broadcast_to(there, held.shape)] = None
    return held.tolist()


def _rows(steps: Any, made: Mapping[str, list[float | None]], last: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields the rows past the step `last`."""
    for row, step in enumerate(np.asarray(steps).tolist()):
        if step > last:
            found = {name: values[row] for name, values in made.items()}
            yield step, {name: value for name, value in found.items() if value is not None}


def plain(name: str) -> str:
    """Returns a name with letters, digits, `_` and `-` only, which all trackers take.

    The "+" of coupled hyperparameters becomes "-"; in other names the character's number shows: "top 5", "top_20_5".
    """
    return re.sub(r"[^\w-]", lambda found: f"_{ord(found[0]):x}_", name.replace("+", "-"))


def _parts(run: Run, per: Per) -> Iterator[Part]:
    """Yields the parts of a run that get a run of the tracker each."""
    for seed in [None] if run.seeds is None else range(len(run.seeds)):
        if per == "ladder":
            yield Part("ladder" if seed is None else f"seed_{seed}", seed, None)
        else:
            before = "" if seed is None else f"seed_{seed}_"
            yield from (Part(f"{before}replica_{k:02d}", seed, k) for k in range(run.engine.num_replicas))


def _of_part(run: Run, part: Part) -> dict[str, Any]:
    """Returns the settings of one part: its seed, and the values with which its replica begins."""
    about: dict[str, Any] = {"seed": run.seed if part.seed is None or run.seeds is None else run.seeds[part.seed]}
    if part.seed is not None:
        about["seed_index"] = part.seed
    if part.replica is not None:
        about["replica"] = part.replica
        about["begins_with"] = {
            name: float(np.asarray(values)[part.replica])
            for ladder in run.engine.ladders.values()
            for name, values in ladder.values.items()
        }
    return about


def _noted(directory: Path) -> dict[str, dict[str, str]]:
    """Returns the ids in a run's directory; none if the file is missing or damaged."""
    try:
        held = json.loads((directory / FILE).read_text(encoding="utf-8"))
        return {str(place): {str(label): str(id) for label, id in ids.items()} for place, ids in held.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _read(words: Any) -> Any:
    """Returns settings in words with numbers as numbers."""
    if isinstance(words, Mapping):
        return {name: _read(value) for name, value in words.items()}
    try:
        return ast.literal_eval(words)
    except (ValueError, SyntaxError):
        return words
