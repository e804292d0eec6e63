"""The experiments of the paper: their numbers, their presets, and each of them for a few steps on small sets."""

import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import image

from experiments import (
    cifar10_dropout,
    cifar10_learning_rate,
    diffusion,
    digits,
    emnist_dropout,
    emnist_learning_rate,
    resnet,
)
from experiments.options import command, paper_command
from tests.experiments import small_sets

EXPERIMENTS = {
    "emnist_dropout": emnist_dropout,
    "emnist_learning_rate": emnist_learning_rate,
    "cifar10_dropout": cifar10_dropout,
    "cifar10_learning_rate": cifar10_learning_rate,
    "resnet": resnet,
}
# arXiv 1909.04013 and its authors' code: coldest, hottest, C, burn-in, exchange every, switch, steps.
PAPER = {
    "emnist_dropout": (0.05, 0.12, 500, 25_000, 1_000, 62_000, 351_200),
    "emnist_learning_rate": (0.007, 0.012, 60_000, 25_000, 1_000, 62_000, 351_200),
    "cifar10_dropout": (0.47, 0.55, 2_000, 10_000, 600, 25_000, 140_800),
    "cifar10_learning_rate": (0.010, 0.015, 300_000, 25_000, 800, 25_000, 140_800),
    "resnet": (0.009, 0.014, 20, 32_000, 300, 32_000, 64_000),
}


def chosen(experiment, *arguments):
    """The options that a command line comes to."""
    seen = []
    paper_command(seen.append, experiment.preset, list(map(str, arguments)))
    return seen[0]


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_preset_has_the_papers_numbers(name):
    options = chosen(EXPERIMENTS[name], "--preset", "paper")
    times = (options.burn_in, options.every, options.switch, options.steps)
    assert (options.coldest, options.hottest, options.C, *times) == PAPER[name]
    assert (options.replicas, options.batch_size, options.learning_rate) == (8, 128, 0.1)
    assert options.probe is None, "the energy is the loss on the whole validation split"
    assert options.curve is None


def test_the_rest_of_the_papers_numbers():
    assert chosen(emnist_dropout, "--preset", "paper").later_learning_rate == 0.01
    assert chosen(cifar10_dropout, "--preset", "paper").later_learning_rate == 0.01
    assert chosen(emnist_learning_rate, "--preset", "paper").dropout_rate == 0.05
    assert chosen(cifar10_learning_rate, "--preset", "paper").dropout_rate == 0.4
    deep = chosen(resnet, "--preset", "paper", "--depth", 44)
    assert (deep.depth, deep.C, deep.momentum, deep.weight_decay) == (44, 30, 0.9, 1e-4)


@pytest.mark.parametrize("name", PAPER)
def test_the_quick_preset_is_the_default_and_shortens_in_proportion(name):
    paper, quick = (chosen(EXPERIMENTS[name], *given) for given in (("--preset", "paper"), ()))
    assert quick.preset == "quick"
    assert (quick.coldest, quick.hottest, quick.replicas, quick.C) == (
        paper.coldest,
        paper.hottest,
        paper.replicas,
        paper.C,
    )
    factor = paper.steps / quick.steps
    assert factor > 50
    for time in ("every", "burn_in", "switch"):
        assert abs(getattr(paper, time) / factor - getattr(quick, time)) <= 0.5


@pytest.mark.parametrize("arguments", [("--steps", 9, "--preset", "paper"), ("--preset", "paper", "--steps", 9)])
def test_an_option_goes_over_the_preset_wherever_it_stands(arguments):
    options = chosen(resnet, *arguments, "--depth", 44, "--C", 5)
    assert (options.steps, options.preset, options.C, options.every, options.depth) == (9, "paper", 5, 300, 44)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for name in ("emnist_letters", "cifar10"):
        small_sets.write(name, folder)
    return folder


SHORT = ("--steps", 8, "--every", 2, "--burn-in", 2, "--batch-size", 16, "--curve", 10, "--no-progress")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_on_small_data(name, sets, tmp_path, capsys):
    given = [*SHORT, "--switch", 4, "--probe", 4, "--replicas", 2, "--data-dir", sets, "--directory", tmp_path]
    arms = ["tempering", "independent"] if name == "emnist_dropout" else ["tempering"]  # one program less to compile
    given += ["--rule", *arms]
    if name == "resnet":
        given += ["--depth", 8]
    paper_command(EXPERIMENTS[name].main, EXPERIMENTS[name].preset, list(map(str, given)))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "not the official split" in summary["dataset"]
    assert summary["settings"]["steps"] == 8
    assert list(summary["arms"]) == arms
    with np.load(tmp_path / "trace.npz", allow_pickle=False) as trace:
        tempered = trace[f"tempering/hyper/{'dropout_rate' if 'dropout' in name else 'learning_rate'}"]
        assert trace["tempering/valid/error"].shape == (4, 1, 2)
        for arm in summary["arms"]:
            assert np.isfinite(trace[f"{arm}/loss"]).all()
    np.testing.assert_allclose(np.unique(tempered), PAPER[name][:2], rtol=1e-6)
    for arm in summary["arms"].values():
        assert set(arm["mixture"]) == {"all", "coldest 2"}
        assert arm["mixture"]["all"] == arm["mixture"]["coldest 2"], "two replicas: the coldest two are all"
        assert arm["test_error"]["per_seed"][0] * 20 / 100 == pytest.approx(
            round(arm["test_error"]["per_seed"][0] * 20 / 100), abs=1e-4
        ), "the table is about all 20 test images, not the 10 of the curve"
    for picture in ("errors.png", "exchanges-tempering.png"):
        assert image.imread(tmp_path / picture)[..., :3].std() > 0.02
    assert "mixture of all %" in capsys.readouterr().out


@pytest.mark.slow
def test_diffusion_on_small_data(sets, tmp_path, capsys):
    names = ("weight_decay",)
    given = [
        "--data-dir",
        sets,
        "--directory",
        tmp_path,
        "--hyperparameters",
        *names,
        "--seeds",
        2,
        *SHORT[:8],
        "--no-progress",
    ]
    paper_command(diffusion.main, diffusion.preset, list(map(str, given)))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["hyperparameters"]) == list(names)
    answers = {"temperature-like", "not temperature-like", "undecided"}
    with np.load(tmp_path / "trace.npz", allow_pickle=False) as trace:
        for name, entry in summary["hyperparameters"].items():
            assert entry["found"] in answers
            assert trace[f"{name}/displacement"].shape == (4, 2, 3)
            np.testing.assert_allclose(entry["final_displacement"], trace[f"{name}/displacement"][-1].mean(0))
            common = trace[f"{name}/displacement"]
    paper_command(diffusion.main, diffusion.preset, [*map(str, given), "--own-burn-in"])
    with np.load(tmp_path / "trace.npz", allow_pickle=False) as trace:
        own = trace["weight_decay/displacement"]
    np.testing.assert_allclose(own[..., 0], common[..., 0], rtol=1e-4)  # the coldest value's burn-in was the common one
    assert (own[..., 2] != common[..., 2]).all()
    assert image.imread(tmp_path / "diffusion.png")[..., :3].std() > 0.02
    assert "| weight_decay" in capsys.readouterr().out


@pytest.mark.slow
def test_another_set_of_another_shape_is_read(tmp_path):
    """MNIST: 10 classes and 28x28 pixels through the network for letters."""
    small_sets.write("mnist", tmp_path)
    given = [*SHORT, "--switch", 4, "--replicas", 1, "--rule", "independent", "--dataset", "mnist"]
    given += ["--data-dir", tmp_path, "--directory", tmp_path / "run"]
    paper_command(emnist_dropout.main, emnist_dropout.preset, list(map(str, given)))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["dataset"].startswith("mnist, 60 / 20 examples, not the official split")


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        (("--coldest", 0.5), 2, "must be below --hottest"),
        (("--coldest", 0, "--spacing", "geometric"), 2, "a geometric spacing needs positive ends, but they are 0.0"),
        (("--data-dir", "no/such/folder"), 1, "no such folder"),
        (("--curve", 0), 2, "--curve 0 must be at least 1"),
        (("--sample", 0), 2, "--sample 0 must be at least 1"),
        (("--learning-rate", 0), 2, "--learning-rate 0.0 must be positive"),
        (("--C", "inf"), 2, "--C inf is not a finite number"),
        (("--coldest-k", 0), 2, "--coldest-k 0 must be at least 1"),
    ],
)
def test_a_mistake_ends_in_one_line(option, code, message, sets, capsys):
    with pytest.raises(SystemExit) as stop:
        paper_command(emnist_dropout.main, emnist_dropout.preset, ["--data-dir", str(sets), *map(str, option)])
    assert stop.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.slow
def test_help_shows_the_presets_values():
    command = [sys.executable, "-m", "experiments.resnet", "--depth", "44", "--preset", "paper", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "64000" in done.stdout
    assert "--data-dir" in done.stdout


def test_diffusion_studies_what_the_paper_names():
    options = chosen(diffusion)
    found = diffusion.studies(options)
    assert list(found) == list(options.hyperparameters)
    assert [name for name, study in found.items() if study.expected != "temperature-like"] == ["weight_decay"]
    for study in found.values():
        assert len(set(study.values)) == 3
        study.optimizer(dict.fromkeys(found, 0.1)).init({"w": 0.0})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--steps", 8, "--every", 8), "two records at least"),
        (("--batch-size", 24), "multiple of 16"),
        (("--seeds", 0), "--seeds 0 must be at least 1"),
        (("--hyperparameters",), "--hyperparameters needs one at least"),
    ],
)
def test_diffusion_refuses_before_it_trains(option, message, sets, capsys):
    with pytest.raises(SystemExit) as stop:
        paper_command(diffusion.main, diffusion.preset, ["--data-dir", str(sets), *map(str, option)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_what_diverged_is_said_to_have_diverged(tmp_path, capsys):
    given = ["--steps", 4, "--every", 1, "--burn-in", 0, "--probe", 400, "--replicas", 2, "--seeds", 2]
    given += ["--coldest", 1e9, "--hottest", 1e10, "--rule", "independent", "--no-progress", "--directory", tmp_path]
    command(digits.main, digits.Options, list(map(str, given)))
    (arm,) = json.loads((tmp_path / "summary.json").read_text())["arms"].values()
    for score in (arm["test_error"], arm["validation_error"], arm["mixture"]["all"]["test_error"]):
        assert score == {"per_seed": [None, None], "mean": None, "ci95": [None, None]}
    assert "| independent | diverged" in capsys.readouterr().out
