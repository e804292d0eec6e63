"""A data set by name, in memory."""

from pathlib import Path

import numpy as np

from experiments.datasets import prepared, preparing, sources
from experiments.datasets.errors import DataError
from experiments.datasets.official import SETS
from jaxpt.core.data import Data
from jaxpt.saving.files import local_path


def load(name: str, *, data_dir: Path | None = None, seed: int = 0, valid: int | None = None) -> tuple[Data, str]:
    """Returns a data set and what it is.

    Leaves of each split: image uint8 [N, H, W, C], upright; label int32 [N], from 0.

    Args:
        name: emnist_letters, cifar10 or mnist; or any set with `image` and `label` that tensorflow-datasets has
            prepared as array_record (NAME, NAME/CONFIG, NAME:VERSION).
        data_dir: folder with the official archive, with its idx or .bin files, or with prepared sets. Without it:
            tensorflow-datasets' own folder, where what is not prepared yet is downloaded and prepared.
        seed: draws the validation split from the training split.
        valid: examples of the validation split; a tenth of the training split if not given.

    Returns:
        The data, and a line for a summary: it says "the official split" only if counts and hashes
        are the official ones.

    Raises:
        DataError: files missing, unreachable or damaged; or `valid` leaves no training split.
    """
    path = _prepared(name, local_path("data_dir", data_dir) if data_dir is not None else None)
    arrays = prepared.arrays(path)
    count = len(arrays["train_label"])
    valid = count // 10 if valid is None else valid
    if not 0 < valid < count:
        raise DataError(f"{name}: valid={valid} of {count:,} training examples; expected 1 .. {count - 1:,}")
    order = np.random.default_rng(seed).permutation(count)
    rows = {"valid": np.sort(order[:valid]), "train": np.sort(order[valid:])}
    splits = {
        split: {"image": arrays["train_image"][chosen], "label": arrays["train_label"][chosen]}
        for split, chosen in rows.items()
    }
    test = {"image": arrays["test_image"], "label": arrays["test_label"]}
    return Data(splits["train"], splits["valid"], test), _describe(name, path, (count, len(test["label"])))


def _prepared(name: str, data_dir: Path | None) -> Path:
    """Returns the folder of the prepared set, having prepared it if need be."""
    root, wanted = data_dir or preparing.default_dir(), SETS.get(name)
    if data_dir is not None and not data_dir.is_dir():
        raise DataError(f"{data_dir}: there is no such folder; give one that holds {name}")
    if wanted and data_dir is not None and (source := sources.find(wanted, data_dir)):
        if preparing.is_current(wanted, source, data_dir):
            return preparing.place(wanted, data_dir)
        return preparing.prepare(name, data_dir, data_dir)
    if path := prepared.locate(root, name):
        return path
    if wanted and data_dir is None:
        return preparing.prepare(name)
    raise DataError(
        f"{root}: expected {name} prepared by tensorflow-datasets, found none; "
        + (
            sources.remedy(wanted)
            if wanted
            else f"ours are {', '.join(SETS)}; prepare others with tfds.builder({name!r}, file_format='array_record')"
            ".download_and_prepare(), or give their folder"
        )
    )


def _describe(name: str, path: Path, counts: tuple[int, int]) -> str:
    """Returns what a set is, for a summary."""
    examples, wanted = f"{counts[0]:,} / {counts[1]:,} examples", SETS.get(name)
    if wanted is None:
        return f"{prepared.title(path)} as prepared by tensorflow-datasets, {examples}"
    if counts != wanted.counts:
        return f"{name}, {examples}, not the official split"
    if not prepared.note(path).get("official"):
        return f"{name}, {examples}, not known to be the official split"
    return f"{name}, {examples}, the official split"
