"""The main job as a user runs it: a process of its own, files looked at afterwards."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from matplotlib import image

import jaxpt
from experiments import datasets, report
from experiments import digits as experiment
from experiments.models import SmallConvNet
from experiments.options import command

pytestmark = pytest.mark.users_compiler  # its programs run for longer than they compile


def digits(*arguments):
    """Runs the command and returns it finished, its output as text."""
    command = [sys.executable, "-m", "experiments.digits", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def on_a_terminal(*arguments):
    """Runs the command with its stderr on a terminal; returns exit code, stdout, and what the terminal saw."""
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 120))
    command = [sys.executable, "-m", "experiments.digits", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, text=True)
    os.close(end)
    seen = []

    def read():
        try:
            while chunk := os.read(terminal, 65536):
                seen.append(chunk)
        except OSError:  # how a terminal on Linux says that nobody writes to it any more
            pass

    reader = threading.Thread(target=read)
    reader.start()
    output, _ = process.communicate(timeout=300)
    reader.join()
    os.close(terminal)
    return process.returncode, output, b"".join(seen).decode()


SHORT = ("--steps", 60, "--burn-in", 20, "--every", 10, "--replicas", 3, "--seeds", 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("digits") / "made" / "by it"
    code, output, terminal = on_a_terminal(*SHORT, "--directory", directory)
    assert code == 0, terminal
    return output, terminal, directory


def test_the_split_is_fixed_and_disjoint():
    once, twice = datasets.digits(), datasets.digits()
    jax.tree.map(np.testing.assert_array_equal, once, twice)
    sizes = [len(split["label"]) for split in once]
    assert sizes == [1077, 360, 360]
    assert all(
        (np.bincount(split["label"], minlength=10) > 0.09 * size).all() for split, size in zip(once, sizes, strict=True)
    )
    images = np.concatenate([split["image"].reshape(-1, 64) for split in once])
    assert images.min() == 0
    assert images.max() == 1


def test_the_network_has_the_weights_that_its_docstring_says():
    # 3*3*1*16 + 16, 3*3*16*32 + 32, 2*2*32*64 + 64, 64*10 + 10
    params = nnx.state(nnx.eval_shape(lambda: SmallConvNet(rngs=nnx.Rngs(0))), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 160 + 4640 + 8256 + 650 == 13_706


@pytest.mark.slow
def test_summary_says_all_that_every_experiment_says(finished):
    _, _, directory = finished
    summary = json.loads((directory / "summary.json").read_text())
    about = {"experiment", "dataset", "command", "date", "device", "versions", "seeds", "settings"}
    assert set(summary) == {*about, "arms", "differences"}
    assert {"jax", "jaxpt", "flax", "optax"} <= set(summary["versions"])
    assert summary["settings"]["steps"] == 60
    assert list(summary["arms"]) == ["tempering", "independent"]
    for name, arm in summary["arms"].items():
        for score in ("test_error", "validation_error"):
            values = arm[score]["per_seed"]
            assert len(values) == 2
            np.testing.assert_allclose(arm[score]["mean"], np.mean(values))
            assert arm[score]["ci95"][0] <= arm[score]["mean"] <= arm[score]["ci95"][1]
            assert all(0 <= v <= 100 for v in values)
        assert list(arm["mixture"]) == ["all", "coldest 3"]
        for mixed in arm["mixture"].values():
            assert all(0 <= v <= 100 for v in mixed["test_error"]["per_seed"])
        assert arm["steps"] == 60
        assert arm["wall_seconds"] > 0
        assert arm["replica_images_per_second"] > 0
        assert arm["round_trips"] >= 0
        assert (arm["acceptance_rate"] is None) == (name == "independent")
    arms = summary["arms"]
    difference = summary["differences"]["tempering-independent"]
    np.testing.assert_allclose(
        difference["mean"],
        arms["tempering"]["test_error"]["mean"] - arms["independent"]["test_error"]["mean"],
        atol=1e-9,
    )


@pytest.mark.slow
def test_the_trace_tells_how_the_summary_came_about(finished):
    _, _, directory = finished
    summary = json.loads((directory / "summary.json").read_text())
    with np.load(directory / "trace.npz", allow_pickle=False) as trace:
        arrays = dict(trace)
    attempted, accepted = (arrays[f"tempering/info/{name}"] for name in ("attempted", "accepted"))
    assert attempted.sum(-1).tolist() == [[0, 0], [0, 0], *[[1, 1]] * 4], "no exchange up to step 20, then one a period"
    np.testing.assert_allclose(accepted.sum() / attempted.sum(), summary["arms"]["tempering"]["acceptance_rate"])
    for name, arm in summary["arms"].items():
        assert arrays[f"{name}/valid/error"].shape == (6, 2, 3)
        for seed, replica in enumerate(arm["best_replica"]):
            final = arrays[f"{name}/valid/error"][-1, seed]
            assert final[replica] == final.min(), "chosen on validation"
            test_error = 100 * arrays[f"{name}/test/error"][-1, seed, replica]
            np.testing.assert_allclose(test_error, arm["test_error"]["per_seed"][seed], rtol=1e-6)
    before = slice(0, 3)  # both arms are the same run until the first exchange, at the end of the third period
    np.testing.assert_array_equal(arrays["tempering/loss"][before], arrays["independent/loss"][before])


@pytest.mark.slow
def test_it_prints_a_table_a_bar_and_draws(finished):
    output, terminal, directory = finished
    assert "| tempering" in output
    assert "| independent" in output
    assert "tempering-independent:" in output
    assert "tempering: 100%" in terminal
    assert "independent: 100%" in terminal
    for name in ("errors.png", "exchanges-tempering.png"):
        assert image.imread(directory / name)[..., :3].std() > 0.02


def test_curves_follow_the_choice_on_validation():
    """Two periods, one seed, three replicas; the last has diverged, whatever its error says."""
    energy = np.array([[[2, 1, np.nan]], [[1, 2, np.inf]]])
    valid = {"error": np.array([[[0.2, 0.1, 0.0]], [[0.1, 0.1, 0.0]]]), "energy": energy}
    test = {"error": np.array([[[0.3, 0.4, 0.1]], [[0.5, 0.2, 0.1]]])}
    curve = report.chosen_curve(SimpleNamespace(trace=SimpleNamespace(valid=valid, test=test)))
    np.testing.assert_allclose(curve, [[40.0], [50.0]])


def ended(*arguments):
    """The exit code of the command in this process, where it must end before anything is trained."""
    with pytest.raises(SystemExit) as stop:
        command(experiment.main, experiment.Options, list(map(str, arguments)))
    return stop.value.code


def test_help_explains_every_option(capsys):
    assert ended("--help") == 0
    shown = capsys.readouterr().out
    for option in ("replicas", "steps", "every", "burn-in", "seeds", "rule", "directory", "no-progress"):
        assert f"--{option}" in shown


def numbers(summary):
    """What a summary says but for times and the command."""
    arms = {
        name: {key: value for key, value in arm.items() if "second" not in key} for name, arm in summary["arms"].items()
    }
    return {**summary, "arms": arms, "command": None, "date": None}


@pytest.mark.slow
def test_a_run_that_is_ended_goes_on_to_the_same_summary(finished, tmp_path):
    arguments = [*map(str, SHORT), "--save-minutes", "0.001", "--no-progress", "--directory", str(tmp_path)]
    command = [sys.executable, "-m", "experiments.digits", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("tempering/checksums/*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "was interrupted by SIGTERM after step " in said
    assert said.endswith("the same command with --resume goes on\n")
    assert not (tmp_path / "summary.json").exists()

    again = digits(*SHORT, "--directory", tmp_path)
    assert again.returncode == 2
    assert "holds an unfinished run (tempering" in again.stderr
    resumed = digits(*SHORT, "--resume", "--directory", tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, finished[2])]
    assert numbers(summaries[0]) == numbers(summaries[1])
    with np.load(tmp_path / "trace.npz") as mine, np.load(finished[2] / "trace.npz") as theirs:
        assert set(mine) == set(theirs)
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])


@pytest.mark.slow
def test_one_arm_of_one_replica_without_a_bar(tmp_path):
    few = ("--replicas", 1, "--seeds", 1, "--rule", "independent", "--no-progress")
    code, _, terminal = on_a_terminal(*SHORT, *few, "--directory", tmp_path)
    assert code == 0, terminal
    assert "%|" not in terminal
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["arms"]) == ["independent"]
    assert summary["differences"] == {}
    assert summary["arms"]["independent"]["test_error"]["ci95"] == [None, None]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--replicas", 1), "at least two rungs"),
        (("--seeds", 0), "--seeds 0 must be at least 1"),
        (("--coldest", 0.2), "must be below --hottest"),
        (("--dropout-rate", 1.5), "dropout_rate must lie between 0 and 1"),
        (("--rule",), "--rule needs one arm"),
        (("--process", 1), "coordinator and processes must be given too"),
        (("--process", 2, "--processes", 2, "--coordinator", "host:1"), "process must be 0 .. 1"),
    ],
)
def test_a_bad_option_ends_in_one_line(option, message, capsys):
    assert ended(*option) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_placement_by_its_name():
    found = {name: experiment.Options(placement=name).placed() for name in ("auto", "single", "shard_map", "pmap")}
    devices = jax.devices()
    shards = jaxpt.placement.shard_map(devices)
    assert found == {
        "auto": "auto",
        "single": jaxpt.placement.single(),
        "shard_map": shards,
        "pmap": jaxpt.placement.pmap(devices),
    }


@pytest.mark.filterwarnings("ignore:JAX has started already")
def test_a_directory_that_cannot_be_written_is_said_before_training(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert ended(*SHORT, "--directory", tmp_path / "file" / "below") == 2
    said = capsys.readouterr().err
    assert "cannot be written" in said
    assert "Traceback" not in said
