"""Several real processes on the loopback interface, each its own Python, against one process with one device."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxpt.devices.placement import ProcessLost, clear_errors, distributed
from tests import in_processes
from tests.test_checkpoint import assert_same

SETTINGS = {"two of two devices each": (2, 2), "four of one device each": (4, 1)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What the runs come to here, on one device."""
    directory = tmp_path_factory.mktemp("alone")
    in_processes.equal(directory)
    return dict(np.load(directory / "process-0.npz"))


def start(directory, processes, devices):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.in_processes", directory, str(devices), coordinator, str(processes)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return [
        subprocess.Popen(
            [*command, str(k)], stderr=(directory / f"{k}.err").open("w"), stdout=subprocess.DEVNULL, env=environment
        )
        for k in range(processes)
    ]


def wait_for(folder, files, running, seconds):
    begun = time.monotonic()
    while len(list(folder.glob("*.json"))) < files:
        assert time.monotonic() < begun + seconds, f"no {files} files in {folder} after {seconds} s"
        assert all(process.poll() is None for process in running), "a process has ended"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_processes_equal_one_and_end_with_the_one_that_is_killed(setting, alone, tmp_path):
    """Rungs, energies, hyperparameters, weights, best replica, its file and mixture are the same to the bit.

    So is the step at which a callback of the last process, or patience, ends a run.

    Of two processes the first is killed, the coordinator; of four the last. What they saved together goes on in one.
    """
    number, devices = SETTINGS[setting]
    running = start(tmp_path, number, devices)
    said = lambda k: (tmp_path / f"{k}.err").read_text()
    try:
        try:
            wait_for(tmp_path / "run" / "checksums", 2, running, 400)
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(said(k)[-2000:] for k in range(number))) from None
        killed = 0 if number == 2 else number - 1
        running[killed].send_signal(signal.SIGKILL)
        since = time.monotonic()
        codes = [process.wait(timeout=60) for process in running]
        assert time.monotonic() - since < 60
    finally:
        for process in running:
            process.kill()
    for k in range(number):
        found = dict(np.load(tmp_path / f"process-{k}.npz"))
        assert set(found) == set(alone)
        for name, value in alone.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert ("training: 100%" in said(k)) == (k == 0), "one process shows the bar"
        unfit, pmapped, damaged = (tmp_path / f"refused-{k}").read_text().splitlines()
        assert unfit.startswith(
            "5 replicas do not split evenly over 4 devices; the nearest numbers of rungs that do: 4"
        )
        assert pmapped.startswith(f"pmap places replicas on the devices of one process, but there are {number}")
        says = "process 0 says: " if k else ""
        assert damaged.startswith(f"{says}{tmp_path}/damaged-0/settings.json is damaged (")
        if k != killed:
            assert codes[k] != 0
            assert "a process of this run is gone" in said(k) or "another task died" in said(k)
    steps = max(int(file.stem) for file in (tmp_path / "run" / "checksums").glob("*.json")) + 40
    resumed, whole = in_processes.grid(steps, directory=tmp_path / "run"), in_processes.grid(steps)
    assert_same((resumed.state, resumed.trace, resumed.valid), (whole.state, whole.trace, whole.valid))
    assert alone["grid trace.info.accepted"].sum() > 0
    assert alone["asked"].tolist() == [4]
    assert 8 <= alone["patient"][-1] < 2000
    assert (alone["stream trace.info.parents"] != np.arange(4)).any()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("host:1",), "processes and process must be given too"),
        (("host:1", 2), "process must be given too"),
        ((None, 2, 0), "coordinator must be given too"),
        (("host", 2, 0), "coordinator must be HOST:PORT"),
        (("host:1", 2, 2), "process must be 0 .. 1"),
        ((), "JAX detects no cluster here"),
    ],
)
def test_what_is_half_given_is_refused(given, said, monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", no_cluster)
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=said):
        distributed(*given)


def test_a_port_that_somebody_has_is_said_at_once():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"process 0 cannot listen at localhost:{port}"):
            distributed(f"localhost:{port}", 2, 0)


def no_cluster(*args, **settings):
    raise ValueError("coordinator_address should be defined.")


def test_the_environment_says_what_is_not_given(monkeypatch):
    found = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args, **settings: found.append(args))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "8")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    distributed()
    distributed(process=4)
    assert found == [("10.0.0.1:1234", 8, 3), ("10.0.0.1:1234", 8, 4)]
    monkeypatch.setenv("JAX_PROCESS_ID", "three")
    with pytest.raises(ValueError, match="process must be an integer, but JAX_PROCESS_ID is 'three'"):
        distributed()


def test_only_what_a_lost_process_causes_is_called_so(monkeypatch):
    def raising(text):
        with clear_errors():
            raise jax.errors.JaxRuntimeError(text)

    gloo = "UNKNOWN: Gloo AllGather failed: Read error [127.0.0.1]:17032: Connection reset by peer"
    with pytest.raises(jax.errors.JaxRuntimeError, match="Gloo"):
        raising(gloo)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ProcessLost, match="a process of this run is gone, as process 0 of 4 notices"):
        raising(gloo)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        raising("RESOURCE_EXHAUSTED: Out of memory while opening a connection")
