"""Data sets as a user has them: files in a folder, a server, prepared sets; and all that can be wrong with them."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from experiments import datasets
from experiments.datasets import DataError, official, prepared
from tests import real_data

COUNTS = {"train": 60, "test": 20}
SHAPES = {"emnist_letters": (28, 28, 1), "cifar10": (32, 32, 3), "mnist": (28, 28, 1)}
NAMES = sorted(SHAPES)


def drawn(name, split):
    """Random images [N, H, W, C], upright, and labels from 0; every class occurs."""
    rng = np.random.default_rng(len(name) + COUNTS[split])
    images = rng.integers(0, 256, (COUNTS[split], *SHAPES[name]), np.uint8)
    return images, rng.permutation(np.arange(COUNTS[split]) % len(official.SETS[name].classes)).astype(np.int32)


def write(name, folder, zipped=True):
    """The files of a set as its authors wrote them, from `drawn`."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "cifar10":
        images, labels = drawn(name, "train")
        parts = [*zip(np.split(images, 5), np.split(labels, 5), strict=True), drawn(name, "test")]
        for part, (image, label) in zip((*official.CIFAR10.train, *official.CIFAR10.test), parts, strict=True):
            planes = image.transpose(0, 3, 1, 2).reshape(len(label), -1)
            records = np.concatenate([label[:, None].astype(np.uint8), planes], 1)
            (folder / part.name).write_bytes(records.tobytes())
        return folder
    prefixes = {"mnist": ("train", "t10k"), "emnist_letters": ("emnist-letters-train", "emnist-letters-test")}[name]
    for prefix, split in zip(prefixes, COUNTS, strict=True):
        images, labels = drawn(name, split)
        if name == "emnist_letters":
            images, labels = images.swapaxes(1, 2), labels + 1
        ending = ".gz" if zipped else ""
        real_data.write_idx(folder / f"{prefix}-images-idx3-ubyte{ending}", images[..., 0])
        real_data.write_idx(folder / f"{prefix}-labels-idx1-ubyte{ending}", labels)
    return folder


def packed(name, folder, url="http://127.0.0.1:9"):
    """Writes the official archives of the small set into the folder; returns what would then be official."""
    files, known = write(name, folder / "parts"), official.SETS[name]
    paths = []
    for archive in known.archives:
        path = folder / archive.name
        if archive.name.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as z:
                for file in files.iterdir():
                    z.write(file, f"{known.folder}/{file.name}")
        elif archive.name.endswith(".tar.gz"):
            with tarfile.open(path, "w:gz") as t:
                t.add(files, known.folder)
        else:
            shutil.copyfile(files / archive.name, path)
        paths.append(path)
    read = lambda part: gzip.decompress(p.read_bytes()) if (p := files / f"{part.name}.gz").exists() else part_of(part)
    part_of = lambda part: (files / part.name).read_bytes()
    measured = lambda part: dataclasses.replace(
        part, size=len(read(part)), sha256=hashlib.sha256(read(part)).hexdigest(), gz_blob=None
    )
    small = dataclasses.replace(
        known,
        archives=tuple(
            official.Archive(f"{url}/{p.name}", p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest())
            for p in paths
        ),
        train=tuple(map(measured, known.train)),
        test=tuple(map(measured, known.test)),
        counts=(60, 20),
    )
    shutil.rmtree(files)
    return small


def left_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextlib.contextmanager
def serving(folder, handler=http.server.SimpleHTTPRequestHandler):
    """A real server on this machine; gives its address and the list of what it was asked for."""
    asked = []

    class Quiet(handler):
        def log_message(self, *arguments):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def run(*arguments, **settings):
    return subprocess.run(
        [sys.executable, "-m", "experiments.datasets", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **settings,
    )


def same_images(data, name):
    """Training and validation rows together are the training split, in its order; the test split is as it was."""
    images, labels = drawn(name, "train")
    whole = np.concatenate([data.valid["image"], data.train["image"]])
    rows = {image.tobytes(): row for row, image in enumerate(images)}
    order = [rows[image.tobytes()] for image in whole]
    assert sorted(order) == list(range(60))
    np.testing.assert_array_equal(np.concatenate([data.valid["label"], data.train["label"]]), labels[order])
    for leaf, expected in zip(("image", "label"), drawn(name, "test"), strict=True):
        np.testing.assert_array_equal(data.test[leaf], expected)


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
    assert not [path for path in left_in(home) if path.endswith(".part")]


class Cut(http.server.SimpleHTTPRequestHandler):
    """Promises a file and sends half of it."""

    def do_GET(self):
        content = (Path(self.directory) / self.path[1:]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])


class Flipped(http.server.SimpleHTTPRequestHandler):
    """Sends a file with one byte changed."""

    def do_GET(self):
        content = bytearray((Path(self.directory) / self.path[1:]).read_bytes())
        content[len(content) // 2] ^= 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)


class Gone(http.server.SimpleHTTPRequestHandler):
    """Knows nothing."""

    def do_GET(self):
        self.send_error(404)


@pytest.mark.parametrize("handler", [Cut, Flipped, Gone])
def test_a_download_that_fails_names_the_address_and_leaves_nothing(handler, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "home"))
    with serving(tmp_path / "site", handler) as (url, _):
        monkeypatch.setitem(official.SETS, "cifar10", packed("cifar10", tmp_path / "site", url))
        with pytest.raises(DataError, match=rf"^{url}/cifar-10-binary.tar.gz: .*--from FOLDER"):
            datasets.load("cifar10")
    assert not (tmp_path / "home").exists()


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up_within_ten_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "home"))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setitem(official.SETS, "mnist", packed("mnist", tmp_path / "site", url))
        begin = time.monotonic()
        with pytest.raises(DataError, match="no answer within 8 seconds"):
            datasets.load("mnist")
        assert time.monotonic() - begin < 10
    assert not (tmp_path / "home").exists()


def test_a_port_where_nothing_listens(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setitem(official.SETS, "emnist_letters", packed("emnist_letters", tmp_path / "site", url))
    with pytest.raises(DataError, match=rf"{url}/gzip.zip: cannot be downloaded .*refused.*--from FOLDER"):
        datasets.load("emnist_letters")
    assert not (tmp_path / "home").exists()


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path, end):
    path.write_bytes(path.read_bytes()[:end])


def relabel(path, label):
    real_data.write_idx(path, np.full(60, label, np.uint8))


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "zipped", "file", "damage", "said"),
    [
        ("mnist", True, f"{IMAGES}.gz", lambda p: cut(p, -100), "truncated or damaged"),
        ("mnist", True, f"{IMAGES}.gz", lambda p: flip(p, 3000), "truncated or damaged"),
        ("mnist", False, IMAGES, lambda p: cut(p, -100), "its header says"),
        ("mnist", False, IMAGES, lambda p: cut(p, 7), "its header says"),
        ("mnist", False, IMAGES, lambda p: cut(p, 0), "begins with ''"),
        ("mnist", False, IMAGES, lambda p: flip(p, 2), "expected 00000803"),
        ("mnist", False, LABELS, lambda p: real_data.write_idx(p, np.zeros(59, np.uint8)), "59 labels"),
        ("mnist", False, LABELS, lambda p: relabel(p, 10), r"labels 10 .. 10, expected 0 .. 9"),
        ("mnist", False, LABELS, lambda p: p.unlink(), "missing"),
        ("cifar10", False, "data_batch_3.bin", lambda p: cut(p, -100), "expected a multiple of 3,073"),
        ("cifar10", False, "data_batch_3.bin", lambda p: p.unlink(), "missing"),
        ("cifar10", False, "data_batch_3.bin", lambda p: p.write_bytes(bytes(30_730_000)), "official size but sha256"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(name, zipped, file, damage, said, tmp_path):
    damage(write(name, tmp_path, zipped) / file)
    before = left_in(tmp_path)
    with pytest.raises(DataError, match=said) as error:
        datasets.load(name, data_dir=tmp_path)
    assert file in str(error.value)
    assert f"prepare {name} --from FOLDER" in str(error.value)
    assert "\n" not in str(error.value)
    assert left_in(tmp_path) == before


@pytest.mark.parametrize("damage", [lambda p: flip(p, 3000), lambda p: cut(p, -1)])
@pytest.mark.parametrize("name", ["cifar10", "emnist_letters"])
def test_a_damaged_archive_is_named_with_the_remedy(name, damage, tmp_path, monkeypatch):
    small = packed(name, tmp_path)
    monkeypatch.setitem(official.SETS, name, small)
    damage(tmp_path / small.archives[0].name)
    with pytest.raises(DataError, match=rf"{small.archives[0].name}: .*sha256.*--from FOLDER"):
        datasets.load(name, data_dir=tmp_path)
    assert left_in(tmp_path) == [small.archives[0].name]


def test_a_prepared_set_that_was_damaged_is_named(tmp_path):
    folder = datasets.prepare("mnist", write("mnist", tmp_path / "files"), tmp_path / "sets")
    shutil.rmtree(tmp_path / "files")
    (record,) = folder.glob("*-train.array_record*")
    flip(record, 2000)
    with pytest.raises(DataError, match=f"{folder}: has changed since it was prepared.*prepare it anew"):
        datasets.load("mnist", data_dir=tmp_path / "sets")


def test_changed_files_are_prepared_anew_and_the_same_ones_are_not(tmp_path):
    datasets.load("mnist", data_dir=write("mnist", tmp_path, zipped=False))
    (note,) = tmp_path.rglob(prepared.NOTE)
    first = note.stat().st_ino, note.parent.stat().st_ino
    datasets.load("mnist", data_dir=tmp_path)
    assert (note.stat().st_ino, note.parent.stat().st_ino) == first
    os.utime(tmp_path / LABELS, (1, 1))
    datasets.load("mnist", data_dir=tmp_path)
    assert note.parent.stat().st_ino == first[1], "newer, but of the same content"
    relabel(tmp_path / LABELS, 7)
    data, _ = datasets.load("mnist", data_dir=tmp_path)
    assert set(data.train["label"]) == {7}
    assert not list(tmp_path.glob(".*"))


def test_what_is_not_there_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    cases = {
        "found none of them": lambda: datasets.prepare("cifar10", tmp_path),
        "expected mnist prepared": lambda: datasets.load("mnist", data_dir=tmp_path),
        "no such folder": lambda: datasets.load("mnist", data_dir=tmp_path / "nowhere"),
        "array_record": lambda: datasets.load("imagenette"),
        "no name of a data set": lambda: datasets.load("../mnist"),
        "only emnist_letters, cifar10, mnist": lambda: datasets.prepare("imagenette"),
    }
    for said, act in cases.items():
        with pytest.raises(DataError, match=said):
            act()
    assert left_in(tmp_path) == []


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


def parts_of(name):
    return (*official.SETS[name].train, *official.SETS[name].test)


def test_the_command_ends_in_one_line_on_an_error(tmp_path):
    done = run("prepare", "mnist", "--from", tmp_path / "nowhere", "--to", tmp_path / "sets")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path / 'nowhere'}: expected")
    assert done.stderr.count("\n") == 1
    assert left_in(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"that can be written.*--to FOLDER"):
        datasets.prepare("mnist", write("mnist", tmp_path / "mnist"), tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGKILL))]
)
def test_a_process_killed_in_the_middle_leaves_nothing_half_written(number, tmp_path):
    folder, to = tmp_path / "files", tmp_path / "sets"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (20_000, 28, 28), np.uint8)
    for prefix in ("train", "t10k"):
        real_data.write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
        real_data.write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.zeros(len(images), np.uint8))
    command = [sys.executable, "-m", "experiments.datasets", "prepare", "mnist", "--from", folder, "--to", to]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(to.rglob("*array_record*")):
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) != 0
    assert not list(to.glob("jaxpt_mnist")), "no set"
    if number != signal.SIGKILL:
        assert not to.exists()
        return
    write("mnist", folder, zipped=False)  # what an outright kill left is hidden, and goes with the next preparation
    datasets.prepare("mnist", folder, to)
    assert os.listdir(to) == ["jaxpt_mnist"]


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
    not real_data.PACKS.is_dir(), reason="no packs of real data: JAXPT_REAL_DATA names no folder that is there"
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
