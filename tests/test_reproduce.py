"""The reproduction of the paper's panels: what it saves, how it goes on, and what its tables say of known numbers."""

import dataclasses
import gc
import json
import os
import signal
import sys
import time

import numpy as np
import pytest
from flax import nnx
from matplotlib import image

import jaxpt
from benchmarks import reproduce, reproduce_tables
from benchmarks.reproduce_tables import PANELS
from experiments import compare, diffusion, digits, report
from experiments.options import RuleName
from jaxpt.results import plots
from tests.experiments import small_sets


def quick(tmp_path, sets, **others):
    given = {"panels": ("emnist_dropout",), "arms": ("independent",), "shorten": 40_000, "data_dir": sets}
    given["batch_size"] = 16
    return reproduce.Options(out=tmp_path / "out", work=tmp_path / "work", progress=False, **given | others)


def ended(options):
    with pytest.raises(SystemExit) as stop:
        reproduce.main(options)
    return stop.value.code


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    small_sets.write("emnist_letters", folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:JAX has started already")
def test_a_panel_is_saved_goes_on_and_takes_more_seeds(tmp_path, sets, capsys, monkeypatch):
    adjusted = reproduce.adjusted  # three replicas instead of the paper's eight
    monkeypatch.setattr(reproduce, "adjusted", lambda *given: dataclasses.replace(adjusted(*given), replicas=3))
    assert ended(quick(tmp_path, sets, seeds=1, budget=1e-9)) == 75, "a spent budget ends it as a signal would"
    file = tmp_path / "out" / "emnist_dropout.json"
    assert not file.exists()
    assert ended(quick(tmp_path, sets, seeds=1)) == 0
    assert {(r["arm"], r["seed"]) for r in json.loads(file.read_text())["rows"]} == {("independent", 0)}
    assert ended(quick(tmp_path, sets, seeds=2)) == 0
    content = json.loads(file.read_text())
    rows = {(r["arm"], r["seed"]): r for r in content["rows"]}
    assert set(rows) == {("independent", 0), ("independent", 1)}
    assert {"command", "date", "device", "versions", "settings", "dataset"} <= set(content)
    assert content["seeds"] == [0, 1]
    for row in rows.values():
        assert len(row["curve"]) == len(content["curve_step"]) == row["steps"] == 9
        assert row["replica_images"] > 0
        assert row["test_error"] * 20 / 100 == pytest.approx(round(row["test_error"] * 20 / 100), abs=1e-4)
    assert not list((tmp_path / "work").rglob("settings.json")), "checkpoints go when their arm is done"
    assert "| LeNet, EMNIST, dropout | 2 " in capsys.readouterr().out
    older = json.loads(file.read_text())
    del older["settings"]["spacing"]  # as a file from before there was such an option
    file.write_text(json.dumps(older))
    before = file.stat().st_mtime_ns
    assert ended(quick(tmp_path, sets, seeds=2)) == 0
    assert file.stat().st_mtime_ns == before, "there was nothing left to do"
    for picture in ("curves", "intervals"):
        assert image.imread(tmp_path / "out" / f"emnist_dropout-{picture}.png")[..., :3].std() > 0.02
    with pytest.raises(ValueError, match=r"another run .*steps was 9, now 4"):
        reproduce.main(quick(tmp_path, sets, seeds=3, shorten=80_000))


class OneLayer(nnx.Module):
    """In LeNet's place, which test_paper.py trains: means of 4x4 pixels, dropout, a dense layer."""

    def __init__(self, classes, channels, *, rngs):
        self.dropout, self.out = jaxpt.Dropout("dropout_rate", rngs=rngs), nnx.Linear(64 * channels, classes, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(len(x), 8, 4, 8, 4, -1).mean((2, 4))
        return self.out(self.dropout(x.reshape(len(x), -1)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:JAX has started already")
def test_figure_1_is_saved_hyperparameter_by_hyperparameter_and_drawn(tmp_path, sets, capsys, monkeypatch):
    monkeypatch.setattr(diffusion, "LeNetEMNIST", OneLayer)
    with pytest.raises(ValueError, match="--batch-size 8 must be a multiple of 16"):
        reproduce.main(quick(tmp_path, sets, figure=1, batch_size=8))
    given = {"figure": 1, "seeds": 2, "shorten": 7_000}  # steps / 7,000 is no whole number of periods
    assert ended(quick(tmp_path, sets, **given)) == 0
    file = tmp_path / "out" / "diffusion.json"
    content = json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    rows = content["rows"]
    assert [row["hyperparameter"] for row in rows] == list(diffusion.Options().hyperparameters)
    said = capsys.readouterr().out
    for row in rows:
        assert np.shape(row["displacement"]) == (len(row["steps"]), 2, 3)
        assert {row["early_step"], row["late_step"]} <= set(row["steps"])
        last = np.array(row["displacement"][-1], float).mean(0)
        np.testing.assert_allclose(last, np.array(row["final_displacement"], float), atol=1e-4)
        assert f"| {row['hyperparameter']} " in said
    assert image.imread(tmp_path / "out" / "diffusion.png")[..., :3].std() > 0.02
    assert "## Figure 1" in (tmp_path / "out" / "README.md").read_text()
    kept = content["rows"][1:]
    file.write_text(json.dumps({**content, "rows": kept}))
    assert ended(quick(tmp_path, sets, **given)) == 0
    again = json.loads(file.read_text())["rows"]
    assert again[:-1] == kept, "only what was missing is done"
    assert again[-1]["displacement"] == rows[0]["displacement"]


@pytest.fixture
def content():
    """Two seeds; tempering is 1 and 3 points better, and gets to the grid's error at steps 20 and never."""

    def row(arm, seed, error, mixed, curve):
        return {
            "arm": arm,
            "seed": seed,
            "test_error": error,
            "mixture": {"all": {"test": mixed}},
            "acceptance_rate": 0.5 if arm == "tempering" else None,
            "curve": curve,
            "seconds": 60,
            "seeds_at_once": 1,
        }

    rows = [row("independent", 0, 10.0, 9.0, [30, 20, 10]), row("independent", 1, 12.0, 9.0, [30, 12, 5])]
    rows += [row("tempering", 0, 9.0, 8.5, [30, 10, 9]), row("tempering", 1, 9.0, 8.5, [30, 20, 9])]
    settings = {"steps": 30, "every": 10, "burn_in": 0, "batch_size": 128}
    about = {"settings": settings, "device": "cpu, 2 cores", "dataset": "letters"}
    return {"rows": rows, "curve_step": [10, 20, 30], **about}


def test_differences_are_paired_and_steps_counted(content):
    np.testing.assert_allclose(reproduce_tables.paired(content, "tempering"), [-1, -3])
    np.testing.assert_allclose(reproduce_tables.paired(content, "independent", "all"), [-1, -3])
    np.testing.assert_array_equal(reproduce_tables.reached(content, "tempering"), [20, np.nan])
    np.testing.assert_array_equal(reproduce_tables.reached(content, "independent"), [30, 30])
    page = reproduce_tables.panel_table(PANELS["resnet20"], content)
    # Student's t for two seeds: 12.706 times the standard error, which is 1.
    assert "-2.00 [-14.71, +10.71]" in page
    assert "20 in 1 of 2" in page
    assert "9.25 with exchanges, 9.5 without" in page
    assert "4 minutes in all" in page


def test_the_overview_has_a_column_for_each_arm_that_was_run(content, tmp_path):
    for name in ("resnet20", "resnet44"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        content["rows"] += [{**row, "arm": "pbt"} for row in content["rows"][:2]]
    head, _, *lines = reproduce_tables.overview(tmp_path).splitlines()
    columns = [title.strip() for title in head.split("|")[3:-1]]
    assert columns == ["grid search", "tempering", "PBT", "grid search's mixture", "tempering in the paper"]
    shown = [[cell.strip() for cell in line.split("|")[3:-1]] for line in lines]
    assert shown[0][:3] == ["11.00 [-1.71, 23.71]", "-2.00 [-14.71, +10.71]", "-"]
    assert shown[1][2] == "+0.00 [+0.00, +0.00]"


def test_a_seed_of_one_arm_only_is_not_compared(content):
    content["rows"] = content["rows"][:3]
    np.testing.assert_allclose(reproduce_tables.paired(content, "tempering"), [-1])
    content["rows"][2]["test_error"] = None
    assert reproduce_tables.show(reproduce_tables.paired(content, "tempering")) == "diverged"
    assert reproduce_tables.show(np.array([])) == "-"


def test_every_panel_has_an_experiment_and_every_arm_a_name(tmp_path):
    for panel in PANELS.values():
        chosen = reproduce.panel_options(panel, quick(tmp_path, None, shorten=None, preset="paper"))
        assert chosen.steps >= 64_000
        assert panel.fixed > panel.tempered
    assert set(reproduce.ARMS) == set(reproduce_tables.NAMES)
    assert reproduce.chunks([0, 1, 2], 2) == [[0, 1], [2]]
    assert reproduce.chunks([0, 1, 2], None) == [[0, 1, 2]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:JAX has started already")
def test_rules_are_compared_by_one_command(tmp_path, capsys):
    given = ["--experiment", "digits", "--rules", "pbt", "independent", "--seeds", "2", "--steps", "4"]
    given += ["--every", "2", "--burn-in", "0", "--replicas", "2", "--no-progress", "--directory", str(tmp_path)]
    compare.start(given)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["arms"]) == ["pbt", "independent"]
    assert summary["settings"]["seeds"] == 2
    assert {arm["replica_images"] for arm in summary["arms"].values()} == {4 * 64 * 2 * 2}
    assert image.imread(tmp_path / "comparison.png")[..., :3].std() > 0.02
    out = capsys.readouterr().out
    assert "pbt-independent:" in out
    assert "compute: 1,024 training images per arm" in out
    for page in ("report-pbt.html", "report-independent.html"):
        assert page in out
        assert (tmp_path / page).stat().st_size > 10_000


def test_help_shows_the_options_of_the_comparison_and_of_the_experiment(capsys):
    with pytest.raises(SystemExit) as stop:
        compare.start(["--experiment", "resnet", "--help"])
    assert not stop.value.code
    shown = " ".join(capsys.readouterr().out.split())
    for said in ("What is trained", "--experiment", "--rules", "--seeds", "Options of --experiment resnet", "--depth"):
        assert said in shown


@pytest.mark.parametrize("given", [["--rule", "deo"], ["--rule=deo"]])
def test_the_arms_of_one_experiment_are_not_those_of_a_comparison(given, capsys):
    with pytest.raises(SystemExit) as stop:
        compare.start(["--rules", "deo", "independent", *given])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--rules" in said


def test_differences_are_drawn_if_the_baseline_is_there():
    errors = {"best replica": {"deo": np.array([2.0, 3.0]), "pbt": np.array([3.5, 4.5])}}
    assert len(plots.comparison_picture(errors, "independent").axes) == 1
    errors["best replica"]["independent"] = np.array([3.0, 4.0])
    left, right = plots.comparison_picture(errors, "independent").axes
    assert [line.get_xdata()[0] for line in left.lines if line.get_marker() == "D"] == [2.5, 4.0, 3.5]
    np.testing.assert_allclose([line.get_xdata()[0] for line in right.lines if line.get_marker() == "D"], [-1, 0.5])


def test_arms_of_different_seeds_are_not_drawn_side_by_side():
    with pytest.raises(ValueError, match=r"best replica they have: deo 3, independent 2"):
        plots.comparison_picture({"best replica": {"deo": np.ones(3), "independent": np.ones(2)}}, "independent")


def test_an_unknown_rule_or_experiment_is_refused(capsys):
    for given in (["--rules", "greedy"], ["--experiment", "imagenet"]):
        with pytest.raises(SystemExit) as stop:
            compare.start(given)
        assert stop.value.code == 2
        assert given[1] in capsys.readouterr().err
    assert set(compare.Options().rules) <= set(RuleName.__args__)
    assert {field.name for field in dataclasses.fields(compare.Options)} == {"experiment", "rules", "seeds"}


def test_a_baseline_alone_has_no_differences_to_draw():
    values = np.array([1.0, 2.0])
    for arms, halves in (({"grid": values}, 1), ({"grid": values, "pbt": values}, 2), ({"pbt": values}, 1)):
        assert len(plots.comparison_picture({"best replica": arms}, "grid").axes) == halves


def test_fresh_seeds_begin_where_they_are_asked_to():
    assert list(digits.Options(seeds=3, first_seed=1000).all_seeds()) == [1000, 1001, 1002]


def test_rates_that_decay_fall_to_zero():
    engine = digits.prepare(digits.Options(decay=True, steps=100)).engine
    rates = [float(engine.schedule({"learning_rate": 0.2}, step)["learning_rate"]) for step in (0, 50, 100)]
    np.testing.assert_allclose(rates, [0.2, 0.1, 0.0], atol=1e-8)
    assert digits.prepare(digits.Options()).engine.schedule is None


def test_folders_in_commands_are_by_their_last_name(monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["/a/experiments/digits.py", "--directory=/a/b", "--data-dir", "/c/d", "--steps", "3"]
    )
    assert report.provenance()["command"] == "-m experiments.digits --directory=b --data-dir d --steps 3"


@pytest.mark.slow
def test_a_signal_whose_exception_is_lost_comes_again(monkeypatch):
    """What a handler raises while garbage is collected is ignored, by JAX's own callback too."""
    lost = []

    def callback(phase, info):
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    reproduce.ends_after(None)
    try:
        gc.callbacks.append(callback)
        gc.collect()
        assert isinstance(lost[0].exc_value, jaxpt.Interrupted)
        with pytest.raises(jaxpt.Interrupted):
            time.sleep(60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
