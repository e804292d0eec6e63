"""Runs in Weights & Biases and MLflow, read back from what these packages have written, offline."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.training.recorders import tracker
from tests.test_checkpoint import bowl

SERVICES = ["wandb", "mlflow"]


class Kept(NamedTuple):
    """What a tracker holds of one of its runs."""

    points: dict[str, dict[int, float]]
    """{metric: {step: value}}."""
    settings: dict[str, Any]
    ended: Any
    """Exit code of the last process, or status."""


def in_wandb(directory):
    """{id: run} in the order of its processes; each step is there once."""
    pytest.importorskip("wandb")
    from jaxpt.training.recorders.wandb import records

    found = {}
    for path in sorted(directory.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.parent.name):
        kept = found.setdefault(path.stem, Kept({}, {}, []))
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                step = record.history.step.num
                assert row["_step"] == step
                for name in row.keys() - {"_step", "_timestamp", "_runtime"}:
                    points = kept.points.setdefault(name, {})
                    assert step not in points, "a step is written once"
                    points[step] = float(row[name])
            elif kind in ("run", "config"):
                config = record.run.config if kind == "run" else record.config
                kept.settings.update({one.key: json.loads(one.value_json) for one in config.update})
            elif kind == "exit":
                kept.ended.append(record.exit.exit_code)
    return {name.removeprefix("run-"): kept for name, kept in found.items()}


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """One database for all tests: to make its tables takes seconds."""
    pytest.importorskip("mlflow")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def in_mlflow(uri, ids):
    """{id: run}; each step is there once."""
    from mlflow import MlflowClient

    client, found = MlflowClient(uri), {}
    for id in ids:
        run, points = client.get_run(id), {}
        for name in run.data.metrics:
            history = client.get_metric_history(id, name)
            assert len({point.step for point in history}) == len(history), "a step is written once"
            points[name] = {point.step: point.value for point in history}
        found[id] = Kept(points, {**run.data.params, **run.data.tags}, run.info.status)
    return found


@pytest.fixture(params=SERVICES)
def service(request, tmp_path):
    """(a function that makes a recorder, a function that returns {label: run} of a directory)."""
    if request.param == "wandb":
        pytest.importorskip("wandb")
        make = lambda **options: jaxpt.WandB("tests", mode="offline", **options)
        read = lambda directory, ids: in_wandb(directory)
    else:
        uri = request.getfixturevalue("store")
        make = lambda **options: jaxpt.MLflow("tests", tracking_uri=uri, **options)
        read = lambda directory, ids: in_mlflow(uri, ids)

    def found(directory, per="ladder"):
        noted = json.loads((directory / "trackers.json").read_text())
        (ids,) = (ids for place, ids in noted.items() if place.startswith(request.param) and place.endswith(per))
        held = read(directory, ids.values())
        return {label: held[id] for label, id in ids.items()}

    return make, found


def assert_shows(kept, name, trace, expected):
    """A metric has the numbers of a column of the trace, at each of its steps."""
    assert kept.points[name].keys() == set(trace.step.tolist())
    np.testing.assert_allclose([kept.points[name][step] for step in trace.step.tolist()], expected, rtol=1e-6)


@pytest.mark.slow
def test_a_longer_run_has_every_period_once_and_says_what_its_trace_does(service, tmp_path):
    make, found = service
    options = {"directory": tmp_path / "run", "progress": False}
    jaxpt.fit(bowl(), steps=12, **options)  # without the recorder: it gets these rows later
    jaxpt.fit(bowl(), steps=16, recorders=[make(name="mine", config={"about": {"data": "none"}})], **options)
    result = jaxpt.fit(bowl(), steps=20, recorders=[make()], **options)
    (kept,), trace = found(tmp_path / "run").values(), result.trace
    energy = trace.valid["energy"]
    for k in range(3):
        assert_shows(kept, f"valid/energy/replica_{k:02d}", trace, energy[:, k])
        assert_shows(kept, f"hyper/temperature/replica_{k:02d}", trace, trace.hyper["temperature"][:, k])
        assert_shows(kept, f"rung/temperature/replica_{k:02d}", trace, trace.rung["temperature"][:, k])
    assert_shows(kept, "valid/energy/best", trace, energy.min(-1))
    assert_shows(kept, "valid/energy/mean", trace, energy.mean(-1))
    assert_shows(kept, "loss/mean", trace, trace.loss.mean(-1))
    assert_shows(kept, "period", trace, range(10))
    assert_shows(kept, "diverged", trace, np.zeros(10))
    offered = trace.info.attempted.sum(-1)
    shares = dict(zip(trace.step.tolist(), trace.info.accepted.sum(-1) / np.maximum(offered, 1), strict=True))
    held = kept.points["exchange/temperature/accepted"]
    assert held == {step: share for (step, share), n in zip(shares.items(), offered, strict=True) if n}
    assert sorted(kept.points["seconds"]) == [14, 16, 18, 20], "the others are known from the checkpoint only"
    assert int(kept.settings["every"]) == 2
    assert kept.settings["rule"]["kind"] if "rule" in kept.settings else kept.settings["rule/kind"] == "Tempering"
    assert int(kept.settings.get("resumed/steps", kept.settings["steps"])) == 20
    assert kept.ended in ([0, 0], "FINISHED")


KILLED = """
import os, signal, sys
import jaxpt
from tests.test_checkpoint import bowl
recorder = eval(sys.argv[1])
def kill(status):
    if status.step >= 14:
        os.kill(os.getpid(), signal.SIGKILL)
jaxpt.fit(bowl(), steps=24, directory=sys.argv[2], recorders=[recorder], save_every=3, keep_best=True,
          callbacks=[kill], progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVICES)
def test_a_killed_run_goes_on_without_gaps_and_doubles(name, tmp_path, request):
    pytest.importorskip(name)
    directory = tmp_path / "run"
    if name == "wandb":
        made = "jaxpt.WandB('tests', mode='offline')"
    else:
        made = f"jaxpt.MLflow('tests', tracking_uri={request.getfixturevalue('store')!r})"
    root = Path(jaxpt.__file__).parents[1]
    command = [sys.executable, "-c", KILLED, made, directory]
    env = os.environ | {"PYTHONPATH": str(root)}
    env.pop("WANDB_SERVICE", None)  # W&B's helper of this process, which would keep the killed run open
    killed = subprocess.run(command, env=env, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    saved = sorted(int(path.stem) for path in (directory / "checksums").glob("*.json"))
    assert saved[-1] in (6, 12), "periods past the checkpoint have been recorded"
    result = jaxpt.fit(bowl(), steps=24, directory=directory, recorders=[eval(made)], save_every=3, keep_best=True)
    (ids,) = json.loads((directory / "trackers.json").read_text()).values()
    held = in_wandb(directory) if name == "wandb" else in_mlflow(request.getfixturevalue("store"), ids.values())
    (kept,) = held.values()
    assert_shows(kept, "valid/energy/replica_01", result.trace, result.trace.valid["energy"][:, 1])
    assert_shows(kept, "period", result.trace, range(12))


@pytest.mark.slow
def test_a_dispatch_of_many_periods_has_all_of_them(service, tmp_path):
    """MLflow takes 1000 numbers in a call, fewer than these."""
    make, found = service
    result = jaxpt.fit(bowl(), steps=200, directory=tmp_path / "run", recorders=[make()], progress=False)
    (kept,) = found(tmp_path / "run").values()
    assert_shows(kept, "period", result.trace, range(100))
    assert_shows(kept, "valid/energy/replica_02", result.trace, result.trace.valid["energy"][:, 2])


SQUARES = jaxpt.energy_problem(lambda w: jnp.sum(w**2), lambda key: jax.random.normal(key, (2,)))


def descent(h):
    return optax.sgd(h["learning_rate"])


@pytest.mark.slow
def test_replicas_of_seeds_have_their_own_runs_with_parents_and_cooldown(service, tmp_path):
    make, found = service
    ladder = jaxpt.Ladder(learning_rate=[0.01, 0.1])
    engine = jaxpt.Engine(SQUARES, descent, ladder, jaxpt.PBT(), every=2, cooldown=0.5)
    options = {"seeds": [3, 5], "directory": tmp_path / "run", "progress": False}
    result = jaxpt.fit(engine, steps=12, recorders=[make(per="replica")], **options)
    held, trace = found(tmp_path / "run", "replica"), result.trace
    assert list(held) == [f"seed_{seed}_replica_0{k}" for seed in range(2) for k in range(2)]
    for place, kept in enumerate(held.values()):
        index = (slice(None), *divmod(place, 2))
        assert_shows(kept, "valid/energy", trace, trace.valid["energy"][index])
        assert_shows(kept, "hyper/learning_rate", trace, trace.hyper["learning_rate"][index])
        assert_shows(kept, "parent", trace, trace.info.parents[index])
        assert_shows(kept, "cooldown", trace, trace.cooldown)
        assert int(kept.settings["seed"]) == [3, 5][place // 2]
        begin = kept.settings.get("begins_with", {}).get("learning_rate") or kept.settings["begins_with/learning_rate"]
        assert float(begin) == pytest.approx([0.01, 0.1][place % 2])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*diverged")
def test_a_diverged_replica_is_no_number_and_counts_in_no_mean(service, tmp_path):
    make, found = service
    engine = jaxpt.Engine(SQUARES, descent, jaxpt.Ladder(learning_rate=[0.1, 1e6]), jaxpt.Independent(), every=2)
    result = jaxpt.fit(engine, steps=12, directory=tmp_path / "run", recorders=[make()], progress=False)
    (kept,), energy = found(tmp_path / "run").values(), result.trace.valid["energy"].copy()
    healthy = np.isfinite(energy)
    assert healthy[:, 0].all()
    assert not healthy[-1, 1]
    assert_shows(kept, "valid/energy/replica_01", result.trace, np.where(healthy, energy, np.nan)[:, 1])
    assert_shows(kept, "valid/energy/mean", result.trace, np.where(healthy[:, 1], energy.mean(-1), energy[:, 0]))
    assert_shows(kept, "diverged", result.trace, (~healthy).sum(-1))


@pytest.mark.slow
def test_an_interrupted_run_is_marked_and_a_resumed_one_is_finished(service, tmp_path):
    make, found = service
    options = {"steps": 12, "directory": tmp_path, "keep_best": True, "progress": False}
    stop = lambda status: os.kill(os.getpid(), signal.SIGTERM) if status.step == 6 else None
    with pytest.raises(jaxpt.Interrupted):
        jaxpt.fit(bowl(), recorders=[make(name="run")], callbacks=[stop], **options)
    assert found(tmp_path)["ladder"].ended in ([75], "KILLED")
    result = jaxpt.fit(bowl(), recorders=[make(name="run")], **options)
    kept = found(tmp_path)["ladder"]
    assert kept.ended in ([75, 0], "FINISHED")
    assert_shows(kept, "valid/energy/best", result.trace, result.trace.valid["energy"].min(-1))


@pytest.mark.slow
def test_a_run_that_begins_anew_gets_a_new_run_of_the_tracker(service, tmp_path):
    make, found = service

    def end(status):
        raise KeyError("an error of the caller's")

    with pytest.raises(KeyError):
        jaxpt.fit(bowl(), steps=12, directory=tmp_path, recorders=[make()], callbacks=[end], progress=False)
    (before,) = json.loads((tmp_path / "trackers.json").read_text()).values()
    assert found(tmp_path)["ladder"].ended in ([1], "FAILED")
    for part in ("checkpoints", "checksums"):  # as if it had been killed before the first was written
        shutil.rmtree(tmp_path / part)
    result = jaxpt.fit(bowl(3), steps=12, directory=tmp_path, recorders=[make()], progress=False)
    (after,) = json.loads((tmp_path / "trackers.json").read_text()).values()
    assert before != after
    assert_shows(found(tmp_path)["ladder"], "period", result.trace, range(4))


@pytest.mark.slow
def test_wandb_that_fails_does_not_end_the_run(tmp_path):
    pytest.importorskip("wandb")
    recorder = jaxpt.WandB("tests", mode="offline")
    options = {"steps": 8, "directory": tmp_path, "recorders": [recorder], "keep_best": True, "progress": False}
    finish = lambda status: recorder._runs["ladder"].finish()  # W&B refuses what comes after it
    said = "Weights & Biases cannot be written, and the run goes on without: Run .* is finished"
    with pytest.warns(UserWarning, match=said):
        assert jaxpt.fit(bowl(), callbacks=[finish], **options).state.step == 8


@pytest.mark.slow
def test_mlflow_that_fails_does_not_end_the_run(monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    recorder = jaxpt.MLflow("tests", tracking_uri="http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="MLflow cannot be written, and the run goes on without: .*127.0.0.1"):
        assert jaxpt.fit(bowl(), steps=8, recorders=[recorder]).state.step == 8


@pytest.mark.slow
def test_wrong_arguments_are_refused_before_anything_runs(tmp_path):
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    for make in (jaxpt.WandB, jaxpt.MLflow):
        with pytest.raises(ValueError, match=r'per must be "ladder", .* or "replica", .* but it is \'seed\''):
            make(per="seed")
        with pytest.raises(ValueError, match="config must be a dict of settings"):
            make(config=["a"])
        with pytest.raises(ValueError, match="name must be a text that is not empty"):
            make(name="")
        with pytest.raises(ValueError, match="must be the name of"):
            make(None)
        with pytest.raises(ValueError, match="tags must be a"):
            make(tags="a")
    with pytest.raises(ValueError, match="mode must be"):
        jaxpt.WandB(mode="off")
    with pytest.raises(ValueError, match=r"W&B refuses .*cannot contain characters"):
        jaxpt.WandB("mine/yours")
    with pytest.raises(ValueError, match=r"two recorders keep the same runs \(wandb default/mine, per ladder\); leave"):
        jaxpt.fit(bowl(), steps=4, directory=tmp_path, recorders=[jaxpt.WandB("mine"), jaxpt.WandB("mine", tags=["b"])])
    two = [jaxpt.WandB("mine", mode="disabled"), jaxpt.WandB("mine", mode="disabled")]
    assert jaxpt.fit(bowl(), steps=4, recorders=two, progress=False).state.step == 4
    with pytest.raises(ValueError, match=r"MLflow cannot use tracking_uri='ftp:here'; give one such as"):
        jaxpt.fit(bowl(), steps=4, recorders=[jaxpt.MLflow(tracking_uri="ftp:here")])


@pytest.mark.parametrize(("package", "make"), [("wandb", "WandB"), ("mlflow", "MLflow")])
def test_a_missing_package_is_reported_before_the_first_step(package, make, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf'{make}\(\) needs {package}.*"jaxpt\[{package}\]"'):
        getattr(jaxpt, make)()


def test_names_of_metrics_are_such_as_all_trackers_take():
    assert tracker.plain("top,5 a/b.c") == "top_2c_5_20_a_2f_b_2e_c"
    assert tracker.plain("learning_rate+dropout_rate-2") == "learning_rate-dropout_rate-2"
