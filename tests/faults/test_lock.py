"""Two runs in one directory: the second one is told of the first, and nobody who is dead is in the way."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

import jaxpt
from jaxpt.saving.checkpoint import Checkpoints
from jaxpt.saving.lock import lock
from tests.test_checkpoint import go_on

# Trains for a little, then holds the directory; its fork outlives it, as a data loader's worker may.
HOLDER = """
import os, sys, time
from pathlib import Path
from tests.test_checkpoint import go_on
from jaxpt.saving.checkpoint import Checkpoints
go_on(sys.argv[1], steps=8)
store = Checkpoints(sys.argv[1])
fork = os.fork()
if fork:
    print(fork, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A directory that another process holds; that process and its fork."""
    directory = tmp_path_factory.mktemp("held") / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, directory], stdout=subprocess.PIPE, text=True)
    fork = int(holder.stdout.readline())
    yield directory, holder, fork
    holder.kill()
    os.kill(fork, signal.SIGKILL)


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_second_is_told_of_the_first_and_goes_on_when_that_is_killed(held):
    directory, holder, fork = held
    before, signed = contents(directory), json.loads((directory / "lock").read_text())
    who = rf"in use by another run, process {holder.pid} on {socket.gethostname()} since {signed['since'][:10]} "
    with pytest.raises(jaxpt.CheckpointError, match=who):
        go_on(directory)
    assert contents(directory) == before
    holder.kill()  # not waited for: who starts the next run need not
    os.kill(fork, 0)
    assert go_on(directory, steps=12).state.step == 12
    assert json.loads((directory / "lock").read_text())["process"] == os.getpid()


def test_a_run_that_ended_or_was_refused_holds_nothing(tmp_path):
    go_on(tmp_path, steps=4)
    with pytest.raises(ValueError, match="a run of 4 steps already") as first:
        go_on(tmp_path, steps=2)
    (tmp_path / "checkpoints" / "1000").mkdir()
    (tmp_path / "checkpoints" / "1002").mkdir()
    with pytest.raises(jaxpt.CheckpointError, match="without checksums") as second:
        Checkpoints(tmp_path)
    (tmp_path / "checkpoints" / "1000").rmdir()
    (tmp_path / "checkpoints" / "1002").rmdir()
    Checkpoints(tmp_path).close()
    assert first.tb is not second.tb, "whoever keeps the errors keeps no lock"


def test_what_the_file_says_is_no_lock(tmp_path, monkeypatch):
    """Not the text of a process that is gone, nor a text that says nothing; two locks in one process are two."""
    monkeypatch.setattr("jaxpt.saving.lock._PATIENCE", 0)
    for text in (json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": "today"}), "", "{", "[]"):
        (tmp_path / "lock").write_text(text)
        with lock(tmp_path):
            (tmp_path / "lock").write_text(text)
            said = "process .* since today" if "since" in text else "which does not say who it is"
            with pytest.raises(jaxpt.CheckpointError, match=said):
                lock(tmp_path)


@pytest.mark.parametrize("error", [OSError(38, "Function not implemented"), OSError(37, "No locks available")])
def test_a_file_system_without_locks_is_used_without(error, tmp_path, monkeypatch):
    def refuse(file, how):
        raise error

    monkeypatch.setattr("fcntl.flock", refuse)
    with lock(tmp_path), lock(tmp_path):
        pass
