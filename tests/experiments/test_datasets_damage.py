"""Data that is missing, unreachable or damaged, and processes that are killed: one error, and nothing half-written."""

import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from experiments import datasets
from experiments.datasets import DataError, official
from tests import real_data
from tests.experiments.small_sets import cut, flip, left_in, packed, relabel, run, serving, write


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


@pytest.mark.parametrize("error", [TimeoutError("timed out"), urllib.error.URLError(TimeoutError("timed out"))])
def test_whichever_clock_ends_the_waiting_it_is_called_so(error, tmp_path, monkeypatch):
    def asked(*_, **__):
        raise error

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setattr(urllib.request, "urlopen", asked)
    with pytest.raises(DataError, match="no answer within 8 seconds"):
        datasets.load("mnist")


def test_a_port_where_nothing_listens(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setitem(official.SETS, "emnist_letters", packed("emnist_letters", tmp_path / "site", url))
    with pytest.raises(DataError, match=rf"{url}/gzip.zip: cannot be downloaded .*refused.*--from FOLDER"):
        datasets.load("emnist_letters")
    assert not (tmp_path / "home").exists()


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_process_killed_in_the_middle_leaves_nothing_half_written(number, tmp_path):
    folder, to = tmp_path / "files", tmp_path / "sets"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (20_000, 28, 28), np.uint8)
    for prefix in ("train", "t10k"):
        real_data.write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
        real_data.write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.zeros(len(images), np.uint8))
    # What starts the tests may ignore SIGINT (a shell's background job does), and children inherit that.
    heeding = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('experiments.datasets', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", heeding, "prepare", "mnist", "--from", folder, "--to", to]
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
