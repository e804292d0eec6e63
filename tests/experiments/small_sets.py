"""Small data sets as official files, as archives, on a server: what the tests of data sets share."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from functools import partial

import numpy as np

from experiments.datasets import official
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


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path, end):
    path.write_bytes(path.read_bytes()[:end])


def relabel(path, label):
    real_data.write_idx(path, np.full(60, label, np.uint8))


def parts_of(name):
    return (*official.SETS[name].train, *official.SETS[name].test)
