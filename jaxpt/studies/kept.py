"""Keeps what was tuned with a run's directory, so that a script that is started again runs the same programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxpt.core.data import Data
from jaxpt.core.errors import CheckpointError, in_words
from jaxpt.engine.engine import Engine
from jaxpt.results.summary import device
from jaxpt.saving import settings
from jaxpt.saving.files import write

FILE = "tuned.json"
_FORMAT = 1
_COMPARED = ("versions", "engine", "replicas", "data", "programs")  # of the description that checkpoints keep


def where(engine: Engine) -> str:
    """Returns the kind and the number of the devices, in words."""
    placed = engine.placed
    several = "" if placed.num_devices == 1 else f"{placed.num_devices} x "
    return several + device(placed.first_device)


def circumstances(engine: Engine, data: Data, key: jax.Array) -> dict[str, Any]:
    """Returns all that the speed of a run depends on, ready for JSON: devices, versions, shapes, programs, settings.

    Values of hyperparameters, seeds and examples are not among it.

    Args:
        engine: the engine as the user gave it.
        data: the splits, as arrays or shapes.
        key: the key of a seed, or the keys of several.
    """
    described = settings.describe(engine, engine.abstract(key), key, engine.abstract_data(data))
    return {
        "device": where(engine),
        "placement": engine.placed.by,
        "rule": type(engine.rule).__name__,
        "seeds": key.shape[0] if key.ndim else 1,
        "prng": str(jax.random.key_impl(key)),
        "given": {
            "replica_axis": engine.replica_axis,
            "replicas_at_once": engine.replicas_at_once,
            "evaluation_batch": engine.evaluation_batch,
        },
        **{name: described[name] for name in _COMPARED},
    }


def find(directory: Path, now: dict[str, Any]) -> dict[str, Any] | None:
    """Returns what was kept under the same circumstances, None if nothing was.

    Raises:
        CheckpointError: the file is damaged, or of another release.
    """
    same = [one for one in _read(directory) if one["circumstances"] == now]
    return same[0]["tuned"] if same else None


def keep(directory: Path, now: dict[str, Any], tuned: dict[str, Any]) -> None:
    """Adds a choice to the file; those of other devices stay.

    Raises:
        CheckpointError: the file cannot be written.
    """
    others = [one for one in _read(directory) if one["circumstances"] != now]
    with in_words(f"{directory / FILE} cannot be written; give another directory"):
        directory.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT, "choices": [*others, {"circumstances": now, "tuned": tuned}]}
        write(directory / FILE, json.dumps(content, indent=1) + "\n")


def _read(directory: Path) -> Sequence[dict[str, Any]]:
    file = directory / FILE
    if not file.exists():
        return []
    with in_words(f"{file} cannot be read; remove it to tune again"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise CheckpointError(
                f"{file} is in format {content['format']}, but this release reads and writes format {_FORMAT}; remove "
                "it to tune again"
            )
        return [{"circumstances": one["circumstances"], "tuned": one["tuned"]} for one in content["choices"]]
