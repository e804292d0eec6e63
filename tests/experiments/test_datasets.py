"""Data sets as a user has them: official files in a folder, archives, downloads, prepared sets, real data."""

import dataclasses
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import datasets
from experiments.datasets import DataError, official, prepared
from tests import real_data
from tests.experiments.small_sets import (
    COUNTS,
    NAMES,
    SHAPES,
    flip,
    packed,
    parts_of,
    relabel,
    run,
    same_images,
    serving,
    write,
)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A folder of small MNIST files, prepared."""
    folder = write("mnist", tmp_path_factory.mktemp("mnist"))
    datasets.load("mnist", data_dir=folder)
    return folder


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_official_files_in_a_folder_become_upright_images_and_labels_from_0(name, zipped, tmp_path):
    data, description = datasets.load(name, data_dir=write(name, tmp_path, zipped))
    for split, count in zip(data, (54, 6, 20), strict=True):
        assert split["image"].shape == (count, *SHAPES[name])
        assert split["image"].dtype == np.uint8
        assert split["label"].shape == (count,)
        assert split["label"].dtype == np.int32
    same_images(data, name)
    assert description == f"{name}, 60 / 20 examples, not the official split"


@pytest.mark.parametrize("name", NAMES)
def test_decoding_the_prepared_set_gives_what_was_kept(name, tmp_path):
    folder = write(name, tmp_path)
    kept, _ = datasets.load(name, data_dir=folder)
    (arrays,) = tmp_path.rglob(prepared.ARRAYS)
    shutil.rmtree(arrays)
    decoded, _ = datasets.load(name, data_dir=folder)
    same_images(decoded, name)
    np.testing.assert_array_equal(kept.train["image"], decoded.train["image"])
    assert (arrays / "train_image.npy").exists(), "kept again"


def test_kept_arrays_that_are_damaged_or_of_another_set_are_not_used(tmp_path):
    folder = write("mnist", tmp_path)
    datasets.load("mnist", data_dir=folder)
    (file,) = tmp_path.rglob("test_image.npy")
    flip(file, -5)
    same_images(datasets.load("mnist", data_dir=folder)[0], "mnist")
    index = file.parent / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"fingerprint": "another"}))
    np.save(file, np.zeros((20, 28, 28, 1), np.uint8))
    same_images(datasets.load("mnist", data_dir=folder)[0], "mnist")


def test_the_validation_split_is_drawn_by_seed(mnist):
    draws = [datasets.load("mnist", data_dir=mnist, seed=seed)[0] for seed in (0, 0, 1)]
    for split in ("train", "valid"):
        first, again, other = (getattr(draw, split)["image"] for draw in draws)
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
    assert len(datasets.load("mnist", data_dir=mnist, valid=10)[0].valid["label"]) == 10
    for valid in (0, 60, -1):
        with pytest.raises(DataError, match=r"valid=.*expected 1 \.\. 59"):
            datasets.load("mnist", data_dir=mnist, valid=valid)


@pytest.mark.parametrize("name", NAMES)
def test_an_archive_of_the_official_hash_is_the_official_split(name, tmp_path, monkeypatch):
    monkeypatch.setitem(official.SETS, name, packed(name, tmp_path))
    data, description = datasets.load(name, data_dir=tmp_path)
    same_images(data, name)
    assert description == f"{name}, 60 / 20 examples, the official split"


def test_official_counts_alone_are_not_the_official_split(tmp_path, monkeypatch):
    known = official.SETS["emnist_letters"]
    monkeypatch.setitem(official.SETS, "emnist_letters", dataclasses.replace(known, counts=(60, 20)))
    _, description = datasets.load("emnist_letters", data_dir=write("emnist_letters", tmp_path))
    assert description == "emnist_letters, 60 / 20 examples, not known to be the official split"


@pytest.mark.parametrize("name", NAMES)
def test_the_archive_is_downloaded_once(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "site").mkdir()
    home = tmp_path / "home"
    monkeypatch.setenv("TFDS_DATA_DIR", str(home))
    with serving(tmp_path / "site") as (url, asked):
        monkeypatch.setitem(official.SETS, name, packed(name, tmp_path / "site", url))
        data, description = datasets.load(name)
        assert len(asked) == len(official.SETS[name].archives)
    same_images(data, name)
    assert "the official split" in description
    err = capsys.readouterr().err
    assert "100%" in err
    again, _ = datasets.load(name)  # the server is gone
    np.testing.assert_array_equal(again.train["image"], data.train["image"])
    assert not list(home.rglob("*.part"))


def test_changed_files_are_prepared_anew_and_the_same_ones_are_not(tmp_path):
    datasets.load("mnist", data_dir=write("mnist", tmp_path, zipped=False))
    (note,) = tmp_path.rglob(prepared.NOTE)
    first = note.stat().st_ino, note.parent.stat().st_ino
    datasets.load("mnist", data_dir=tmp_path)
    assert (note.stat().st_ino, note.parent.stat().st_ino) == first
    os.utime(tmp_path / "train-labels-idx1-ubyte", (1, 1))
    datasets.load("mnist", data_dir=tmp_path)
    assert note.parent.stat().st_ino == first[1], "newer, but of the same content"
    relabel(tmp_path / "train-labels-idx1-ubyte", 7)
    data, _ = datasets.load("mnist", data_dir=tmp_path)
    assert set(data.train["label"]) == {7}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_the_command_prints_where_the_set_lies_and_load_takes_that_path(tmp_path):
    write("emnist_letters", tmp_path / "files")
    done = run("prepare", "emnist_letters", "--from", tmp_path / "files", "--to", tmp_path / "sets")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path == tmp_path / "sets" / "jaxpt_emnist_letters" / "1.0.0"
    assert sorted(os.listdir(tmp_path / "files")) == sorted(f"{p.name}.gz" for p in parts_of("emnist_letters"))
    for data_dir in (path, tmp_path / "sets"):
        same_images(datasets.load("emnist_letters", data_dir=data_dir)[0], "emnist_letters")
    with pytest.raises(DataError, match="holds the data set jaxpt_emnist_letters, expected cifar10"):
        datasets.load("cifar10", data_dir=path)


def prepare_own(folder, **settings):
    """A tiny set by tensorflow-datasets as anyone's builder may make it."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class TinyTiles(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("2.1.0")
        name = "tiny_tiles"
        pkg_dir_path = None

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=settings.get("shape", (5, 4, 3))),
                settings.get("label", "label"): tfds.features.ClassLabel(num_classes=3),
                "id": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(n) for split, n in settings.get("splits", COUNTS).items()}

        def _generate_examples(self, count):
            for row in range(count):
                file, height = io.BytesIO(), 5 + (row % 2 if "shape" in settings else 0)
                Image.fromarray(np.full((height, 4, 3), row, np.uint8)).save(file, "PNG")
                file.seek(0)
                yield row, {"image": file, settings.get("label", "label"): row % 3, "id": str(row)}

    TinyTiles(data_dir=folder, file_format="array_record").download_and_prepare()


def test_any_prepared_set_by_name(tmp_path, monkeypatch):
    prepare_own(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name, data_dir in (("tiny_tiles", None), ("tiny_tiles:2.1.0", tmp_path), ("tiny_tiles", tmp_path)):
        data, description = datasets.load(name, data_dir=data_dir, valid=15)
        assert [split["image"].shape for split in data] == [(45, 5, 4, 3), (15, 5, 4, 3), (20, 5, 4, 3)]
        for split in data:
            np.testing.assert_array_equal(split["image"][:, 0, 0, 0] % 3, split["label"])
        assert description == "tiny_tiles 2.1.0 as prepared by tensorflow-datasets, 60 / 20 examples"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label": "kind"}, "expected image and label"),
        ({"splits": {"train": 6}}, "expected train, and test or validation"),
        ({"shape": (None, 4, 3)}, "expected uint8"),
    ],
)
def test_a_prepared_set_that_does_not_fit_is_said(settings, said, tmp_path):
    prepare_own(tmp_path, **settings)
    with pytest.raises(DataError, match=said):
        datasets.load("tiny_tiles", data_dir=tmp_path)


needs_packs = pytest.mark.skipif(
    not real_data.PACKS.is_dir(),
    reason="no packs of real data: JAXPT_REAL_DATA names their folder",
)


@needs_packs
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "counts", "verdict"),
    [
        ("cifar10", (45_000, 5_000, 10_000), "the official split"),
        ("mnist", (54_000, 6_000, 10_000), "the official split"),
        ("emnist_letters", (112_383, 12_487, 15_607), "not the official split"),
    ],
)
def test_the_real_data(name, counts, verdict, tmp_path):
    real_data.WRITERS[name](tmp_path)
    data, description = datasets.load(name, data_dir=tmp_path)
    assert tuple(len(split["label"]) for split in data) == counts
    assert description == f"{name}, {counts[0] + counts[1]:,} / {counts[2]:,} examples, {verdict}"
    for split in data:
        assert set(split["label"]) == set(range(len(official.SETS[name].classes)))
    if name == "cifar10":  # from our arrays back to the official file
        planes = data.test["image"].transpose(0, 3, 1, 2).reshape(10_000, -1)
        content = np.concatenate([data.test["label"][:, None].astype(np.uint8), planes], 1).tobytes()
        assert hashlib.sha256(content).hexdigest() == official.CIFAR10.test[0].sha256
    if name == "emnist_letters":  # an upright "l" or "i" is taller than wide, a "w" or "m" is not
        ink = data.test["image"][..., 0] > 100
        height, width = ink.any(2).sum(1), ink.any(1).sum(1)
        tall = {letter: (height > width)[data.test["label"] == ord(letter) - ord("a")].mean() for letter in "lw"}
        assert tall["l"] > 0.8 > 0.4 > tall["w"]
