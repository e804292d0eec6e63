"""A disk that fills up while a checkpoint is written: one clear error, and what was there stays."""

import contextlib
import subprocess
import sys
import textwrap

import pytest

import jaxpt
from tests.test_checkpoint import assert_same_result, bowl, go_on

PROGRAM = """
import resource, sys
import jaxpt, jaxpt.saving.checkpoint
from tests.test_checkpoint import go_on
if sys.argv[2] == "quota":
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    go_on(sys.argv[1], steps=20)
except jaxpt.CheckpointError as error:
    print(error)
    sys.exit(3)
"""


def run_full(directory, how):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(directory), how]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def fill(file):
    """Writes until there is no space left."""
    with open(file, "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 4096)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["quota", "tmpfs"])
def test_a_full_disk(how, tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    if how == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(directory)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("this process may not mount a tmpfs")
    try:
        go_on(directory, steps=12, save_every=3)
        if how == "tmpfs":
            fill(directory / "filler")
        # A log that cannot be written on is completed by the next run; run.json says what the last call asked for.
        logs = ("filler", "lock", "periods.jsonl", "run.json")
        before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name not in logs}
        done = run_full(directory, how)
        assert done.returncode == 3, done.stderr[-2000:]
        assert "the checkpoint of step 20 cannot be written to " in done.stdout
        why = {"quota": "File too large", "tmpfs": "No space left on device"}[how]
        assert done.stdout.endswith(f"; the one of step 12 is whole: {why}\n")
        assert {path: path.read_bytes() for path in before} == before
        if how == "tmpfs":
            (directory / "filler").unlink()
        assert_same_result(go_on(directory), jaxpt.fit(bowl(), steps=16, progress=False))
    finally:
        if how == "tmpfs":
            subprocess.run(["umount", str(directory)], check=False)
