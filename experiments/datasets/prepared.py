"""Prepared sets: where they lie, whether they are whole, and their arrays, decoded once and kept beside them.

Decoding the PNGs of CIFAR-10 or EMNIST-letters takes 10 to 20 seconds; loading arrays takes less than one.
"""

import contextlib
import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from experiments.datasets import files
from experiments.datasets.errors import DataError

NOTE = "jaxpt.json"
"""What a set of ours was made of: official, hashes, stamp, fingerprint."""
ARRAYS = "jaxpt_arrays"
"""Folder with the decoded arrays."""
NAMES = ("train_image", "train_label", "test_image", "test_label")
BATCH = 1000
"""Examples decoded at a time; reading them one by one is ten times slower."""


def locate(root: Path, name: str) -> Path | None:
    """Returns the folder of a prepared set: `root` itself, or what lies below it by name; None if there is none.

    Args:
        root: a folder of prepared sets, or the folder of this one.
        name: as tensorflow-datasets has it: name, name/config, name:version; ours without the jaxpt_ before it.

    Raises:
        DataError: `root` is another set, or there are several configurations to choose from.
    """
    if (root / "dataset_info.json").is_file():
        found = _info(root).get("name")
        if name.split("/")[0].split(":")[0] not in (found, str(found).removeprefix("jaxpt_")):
            raise DataError(f"{root}: holds the data set {found}, expected {name}; give the folder of {name}")
        return root
    if not re.fullmatch(r"\w+(/[\w.+-]+)?(:[\d.]+)?", name):
        raise DataError(f"{name!r} is no name of a data set; expected NAME, NAME/CONFIG or NAME:VERSION")
    base, _, version = name.partition(":")
    for each in (f"jaxpt_{base}", base):
        folders = [path.parent for path in root.glob(f"{each}/{version or '*'}/dataset_info.json")]
        folders += [path.parent for path in root.glob(f"{each}/*/{version or '*'}/dataset_info.json")]
        if len(configs := sorted({path.parent.name for path in folders})) > 1:
            names = ", ".join(f"{base}/{config}" for config in configs)
            raise DataError(f"{root / each}: holds {len(configs)} data sets; choose one of {names}")
        if folders:
            return max(folders, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    return None


def title(path: Path) -> str:
    """Returns name, configuration and version of a prepared set."""
    info = _info(path)
    return " ".join(str(info[key]) for key in ("name", "configName", "version") if info.get(key))


def note(path: Path) -> dict[str, Any]:
    """Returns what is known of how a set was prepared; empty for one that is not ours, or is not there."""
    try:
        return json.loads((path / NOTE).read_text())
    except (OSError, ValueError):
        return {}


def write_note(path: Path, content: dict[str, Any]) -> None:
    """Writes the note, whole or not at all."""
    part = path / f"{NOTE}.part"
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path / NOTE)


def fingerprint(path: Path) -> str:
    """Returns a hash of all files of a prepared set, less those that we put beside it.

    Raises:
        OSError: they cannot be read.
    """
    total = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file() and not file.name.startswith((".", NOTE)):
            with file.open("rb") as f:
                total.update(f"{file.name} {hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def is_whole(path: Path) -> bool:
    """Whether a set of ours is, to the bit, what was prepared."""
    return path.is_dir() and note(path).get("fingerprint") == fingerprint(path)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns {train_image, train_label, test_image, test_label}: uint8 [N, H, W, C] and int32 [N].

    The first time they are decoded and kept in the folder, if it can be written, tied to the fingerprint.

    Raises:
        DataError: the set is damaged, lacks a training or test split, or its images and labels are not such arrays.
    """
    try:
        print_now = fingerprint(path)
        known = note(path).get("fingerprint", print_now)
        if known != print_now:
            raise DataError(f"{path}: has changed since it was prepared, it is damaged; remove it and prepare it anew")
        result = _kept(path / ARRAYS, print_now)
        if result is None:
            result = _decode(path)
            with contextlib.suppress(OSError), files.alone(path):  # a folder that cannot be written costs time only
                keep(result, path, print_now)
    except OSError as error:
        raise DataError(
            f"{error.filename or path}: {error.strerror or error}; remove {path} and prepare it anew"
        ) from error
    return result


def _info(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / "dataset_info.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path / 'dataset_info.json'}: cannot be read ({error}); remove {path} and prepare it anew"
        ) from error


def _kept(folder: Path, mark: str) -> dict[str, np.ndarray] | None:
    """Returns the kept arrays if they were made of this very set and are as they were written."""
    try:
        index = json.loads((folder / "index.json").read_text())
        if index["fingerprint"] != mark:
            return None
        for name in NAMES:
            with (folder / f"{name}.npy").open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != index["sha256"][name]:
                    return None
        return {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in NAMES}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(result: dict[str, np.ndarray], path: Path, mark: str) -> None:
    """Keeps the arrays of a prepared set beside it, in place of what was kept.

    Raises:
        OSError: the folder cannot be written.
    """
    with files.part(path, ARRAYS) as new:
        made, hashes = new / ARRAYS, {}
        made.mkdir()
        for name, array in result.items():
            np.save(made / f"{name}.npy", array, allow_pickle=False)
            with (made / f"{name}.npy").open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        (made / "index.json").write_text(json.dumps({"fingerprint": mark, "sha256": hashes}, indent=2) + "\n")
        if (path / ARRAYS).exists():
            shutil.rmtree(path / ARRAYS)
        made.rename(path / ARRAYS)


def _decode(path: Path) -> dict[str, np.ndarray]:
    """Reads all examples through tensorflow-datasets."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    splits, features = list(builder.info.splits), builder.info.features
    test = "test" if "test" in splits else "validation"
    if "train" not in splits or test not in splits:
        raise DataError(f"{path}: has the splits {splits}, expected train, and test or validation; choose another set")
    if not {"image", "label"} <= set(features or ()):
        raise DataError(
            f"{path}: has the features {list(features or ())}, expected image and label; choose another set"
        )
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(
            f"{path}: its format {builder.info.file_format.value} needs TensorFlow; prepare it with "
            f"tfds.builder(..., file_format='array_record')"
        )
    result: dict[str, np.ndarray] = {}
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)  # it recommends OpenCV, which is 60 MB for a second
    try:
        for split, name in (("train", "train"), (test, "test")):
            result |= _decode_split(builder, split, name)
    except DataError:
        raise
    except Exception as error:  # whatever a damaged file makes of the many libraries below
        raise DataError(f"{path}: cannot be read ({error}); remove it and prepare it anew") from error
    finally:
        absl.setLevel(level)
    if builder.info.name.startswith("emnist"):  # tensorflow-datasets leaves EMNIST as it is in the files
        result |= {name: result[name].swapaxes(1, 2).copy() for name in ("train_image", "test_image")}
    first = result["train_label"].min()
    return result | {name: result[name] - first for name in ("train_label", "test_label")}


def _decode_split(builder: Any, split: str, name: str) -> dict[str, np.ndarray]:
    source = builder.as_data_source(split)
    count, expected = len(source), builder.info.splits[split].num_examples
    if count != expected or not count:
        raise DataError(
            f"{builder.data_path}: {split} holds {count:,} examples, expected {expected:,}; prepare it anew"
        )
    image, label = None, np.empty(count, np.int32)
    for begin in range(0, count, BATCH):
        rows = range(begin, min(begin + BATCH, count))
        for row, example in zip(rows, source.__getitems__(list(rows)), strict=True):
            pixels = np.asarray(example["image"])
            image = np.empty((count, *pixels.shape), np.uint8) if image is None else image
            if pixels.dtype != np.uint8 or pixels.shape != image.shape[1:] or np.ndim(example["label"]):
                raise DataError(
                    f"{builder.data_path}: {split} example {row} is {pixels.dtype} {pixels.shape}, label of shape "
                    f"{np.shape(example['label'])}; expected uint8 {image.shape[1:]} and one label; choose another set"
                )
            image[row], label[row] = pixels, example["label"]
    assert image is not None
    return {f"{name}_image": image, f"{name}_label": label}
