import dataclasses
import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxpt
from tests import conftest
from tests.conftest import make_engine
from tests.test_checkpoint import bowl


def logits(model, batch):
    return model(batch["x"])


def predicting(adapter, *args, **options):
    return adapter(*args, conftest.loss, metrics={"error": conftest.error}, predict=logits, **options)


@pytest.fixture(scope="module")
def result(data):
    problem = predicting(jaxpt.nnx_problem, conftest.NnxNet)
    engine = make_engine(problem, rule=jaxpt.Tempering(3.0), burn_in=10)
    return jaxpt.fit(engine, data.train, data.valid, test=data.test, steps=43, seeds=[3, 11], progress=False)


@pytest.mark.slow
def test_validation_is_the_energy(result):
    assert result.best("validation", 0).replica == result.best("energy", 0).replica
    metric = ("validation", jaxpt.Metric(lambda model, batch: batch["y"], higher_is_better=False))
    engine = dataclasses.replace(result.engine, problem=result.engine.problem._replace(metrics=(metric,)))
    valid = {**result.valid, "validation": -result.valid["energy"]}
    named = jaxpt.Result(**{**vars(result), "engine": engine, "valid": valid})
    assert named.best("validation", 0).replica == np.argmax(result.valid["energy"][0]), "but a metric's name counts"


def test_the_coldest_are_those_on_the_coldest_rungs(result, data):
    for seed in (0, 1):
        found = result.coldest(3, seed)
        assert [one.rung for one in found] == [{"learning_rate+dropout_rate": k} for k in range(3)]
        ladder = result.engine.ladders["learning_rate+dropout_rate"]
        for k, one in enumerate(found):
            assert one.hyper["learning_rate"] == ladder.values["learning_rate"][k]
            assert one.valid["energy"] == result.valid["energy"][seed, one.replica]
            measured = float(np.mean(conftest.loss(one.model, data.valid)))
            np.testing.assert_allclose(measured, one.valid["energy"], rtol=1e-5)


def test_the_mixture_predicts_as_its_replicas_do_in_the_mean(result, data):
    mixture = result.ensemble(coldest=2, seed=1)
    each = [jax.nn.softmax(one.model(data.test["x"])) for one in result.coldest(2, 1)]
    assert mixture.replicas == tuple(one.replica for one in result.coldest(2, 1))
    np.testing.assert_allclose(mixture({"x": data.test["x"]}), np.mean(each, 0), rtol=1e-5)
    everybody = result.ensemble(seed=0)(data.test)
    metrics = {"error": lambda p, batch: jaxpt.zero_one_loss(p, batch["y"])}
    expected = jaxpt.ensemble(result.engine, result.state, data.test, metrics)["error"][0]
    np.testing.assert_allclose(np.mean(jaxpt.zero_one_loss(everybody, data.test["y"])), expected, rtol=1e-6)


def test_the_mixture_goes_on_without_a_replica_that_diverged(result, data):
    broken = jax.tree.map(lambda leaf: leaf.at[0, 1].set(jnp.nan), result.state.replicas.params)
    state = result.state._replace(replicas=result.state.replicas._replace(params=broken))
    found = jaxpt.Result(**{**vars(result), "state": state}).ensemble(seed=0)(data.test)
    healthy = [jax.nn.softmax(one.model(data.test["x"])) for one in result.coldest(4, 0) if one.replica != 1]
    np.testing.assert_allclose(found, np.mean(healthy, 0), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.coldest(5, 0), r"coldest must be 1 .. 4"),
        (lambda r: r.coldest(0, 0), r"coldest must be 1 .. 4"),
        (lambda r: r.coldest(2), r"give seed=0 .. 1"),
        (lambda r: r.ensemble(seed=2), r"give seed=0 .. 1"),
        (lambda r: r.coldest(1, 0, ladder="rate"), r"none of the engine's"),
        (lambda r: r.lineage(9, 0), r"replica must be one of 0 .. 3"),
        (lambda r: r.save_model("x", replica=4, seed=0), r"replica must be one of 0 .. 3"),
    ],
)
def test_what_is_not_there_is_said(call, message, result):
    with pytest.raises(ValueError, match=message):
        call(result)


def test_the_summary_is_a_dict_for_json_and_a_text(result):
    found = result.summary()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    assert found["seeds"] == 2
    assert [best["replica"] for best in found["best"]] == [result.best(seed=seed).replica for seed in (0, 1)]
    ladder = found["ladders"]["learning_rate+dropout_rate"]
    offered = result.trace.info.attempted.sum()
    assert ladder["exchanges"] == 6
    np.testing.assert_allclose(ladder["accepted"], result.trace.info.accepted.sum() / offered)
    text = str(found)
    assert repr(found) == text
    assert "4 replicas, 2 seeds, 43 steps" in text
    assert f"{ladder['accepted']:.0%} of the swaps accepted" in text
    assert f"best replica {found['best'][1]['replica']} of seed 1, on rung" in text
    assert f"energy {found['best'][1]['valid']['energy']:.4g}" in text


def test_a_summary_of_nothing_healthy_is_still_json(result):
    valid = {name: np.full_like(v, np.nan, dtype=float) for name, v in result.valid.items()}
    broken = jaxpt.Result(**{**vars(result), "valid": valid, "stopped": "patience"})
    with pytest.warns(UserWarning, match="have diverged"):
        found = broken.summary()
    assert json.loads(json.dumps(found, allow_nan=False))["best"][0]["valid"]["energy"] is None
    assert "energy diverged" in str(found)
    assert "43 steps, ended by patience" in str(found)


def test_the_frame_has_a_row_per_period_seed_and_replica(result):
    pytest.importorskip("pandas")
    frame, trace = result.frame(), result.trace
    assert len(frame) == 9 * 2 * 4
    assert list(frame.columns[:4]) == ["period", "step", "seed", "replica"]
    row = frame[(frame["step"] == 20) & (frame["seed"] == 1) & (frame["replica"] == 2)]
    assert len(row) == 1
    row = row.iloc[0]
    assert row["period"] == 3
    assert row["loss"] == trace.loss[3, 1, 2]
    assert row["valid/error"] == trace.valid["error"][3, 1, 2]
    assert row["test/energy"] == trace.test["energy"][3, 1, 2]
    assert row["rung/learning_rate+dropout_rate"] == trace.rung["learning_rate+dropout_rate"][3, 1, 2]
    assert row["hyper/dropout_rate"] == trace.hyper["dropout_rate"][3, 1, 2]


def test_the_lineage_is_that_of_the_best(result):
    best = result.best(seed=1)
    path = result.lineage(seed=1)
    expected = jaxpt.lineage(result.trace, best.replica, 1)
    np.testing.assert_array_equal(path.hyper["learning_rate"], expected.hyper["learning_rate"])
    assert result.lineage(0, seed=1).replica[0] == 0


@pytest.mark.parametrize("kind", ["orbax", "safetensors"])
def test_a_saved_model_is_what_nnx_update_takes(kind, result, data, tmp_path):
    if kind == "safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / "deep" / ("best.safetensors" if kind == "safetensors" else "best")
    result.save_model(path, seed=0)
    result.save_model(path, replica=2, seed=1)  # in its place
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode & 0o777 == plain.stat().st_mode & 0o777 or path.is_dir(), "readable as others are"
    model = conftest.NnxNet(rngs=nnx.Rngs(7))
    nnx.update(model, jaxpt.load_model(path))
    model.eval()
    expected = jaxpt.Result(**{**vars(result), "valid": only(result.valid, 2)}).best(seed=1).model
    np.testing.assert_array_equal(model(data.test["x"]), expected(data.test["x"]))
    assert isinstance(model.norm.mean, nnx.BatchStat), "batch statistics came along"
    np.testing.assert_array_equal(model.norm.mean[...], expected.norm.mean[...])
    if kind == "orbax":
        about = json.loads((path / "model.json").read_text())
        assert (about["replica"], about["seed"], about["step"]) == (2, 1, 43)
        assert np.float32(about["valid"]["energy"]) == result.valid["energy"][1, 2]
        assert about["versions"]["jaxpt"] == jaxpt.__version__


def only(valid, replica):
    """Scores by which one replica is the best of each seed."""
    return {name: np.where(np.arange(4) == replica, v, 100.0) for name, v in valid.items()}


@pytest.mark.slow
def test_a_linen_model_comes_back_as_its_variables(data, tmp_path):
    example = np.zeros((1, conftest.FEATURES), np.float32)
    problem = predicting(jaxpt.linen_problem, conftest.LinenNet(), example=example)
    engine = make_engine(problem, rule=jaxpt.Independent())
    found = jaxpt.fit(engine, data.train, data.valid, steps=5, progress=False)
    found.save_model(tmp_path / "best")
    variables = jaxpt.load_model(tmp_path / "best")
    assert set(variables) == {"params", "batch_stats"}
    mine = conftest.LinenNet().apply(variables, data.test["x"], train=False)
    np.testing.assert_allclose(mine, found.best().model(data.test["x"]), rtol=1e-6)


def test_parameters_of_any_shape_come_back(tmp_path):
    def init(key):
        return {"w": [jax.random.normal(key, (2,)), jnp.zeros((0, 3))], "b": jnp.bfloat16(1.5)}

    problem = jaxpt.energy_problem(lambda p: jnp.sum(p["w"][0] ** 2) + p["b"].astype(jnp.float32) ** 2, init)
    engine = jaxpt.Engine(problem, conftest.sgd, jaxpt.Ladder(learning_rate=[0.1, 0.2]), every=2)
    found = jaxpt.fit(engine, steps=2, progress=False)
    paths = [tmp_path / "model", *([tmp_path / "model.safetensors"] if importlib.util.find_spec("safetensors") else [])]
    for path in paths:
        found.save_model(path)
        loaded, best = jaxpt.load_model(path), found.best().model
        assert set(loaded) == {"w", "b"}
        assert loaded["b"].dtype == jnp.bfloat16
        assert loaded["b"] == best["b"]
        np.testing.assert_array_equal(loaded["w"][0], best["w"][0])
        assert loaded["w"][1].shape == (0, 3)


def test_parameters_that_are_one_array_come_back(tmp_path):
    found = jaxpt.fit(bowl(), steps=4, progress=False)
    for name in ("model", "model.safetensors")[: 2 if importlib.util.find_spec("safetensors") else 1]:
        found.save_model(tmp_path / name, replica=1)
        np.testing.assert_array_equal(jaxpt.load_model(tmp_path / name), found.state.replicas.params[1])


def test_other_peoples_folders_and_broken_models_are_refused(result, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="no model that save_model wrote, so it stays"):
        result.save_model(tmp_path / "mine", seed=0)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    with pytest.raises(ValueError, match="holds no model as save_model writes it"):
        jaxpt.load_model(tmp_path / "mine")
    (tmp_path / "mine" / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"it is the directory of a run: use jaxpt\.load_run"):
        jaxpt.load_model(tmp_path / "mine")
    (tmp_path / "mine" / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(ValueError, match=r"it is a checkpoint of Orbax: restore it with orbax\.checkpoint"):
        jaxpt.load_model(tmp_path / "mine")
    with pytest.raises(ValueError, match="does not exist"):
        jaxpt.load_model(tmp_path / "nowhere")
    result.save_model(tmp_path / "best", seed=0)
    described = tmp_path / "best" / "model.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "format": 2}))
    with pytest.raises(ValueError, match="in format 2, but this release reads format 1"):
        jaxpt.load_model(tmp_path / "best")


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("pandas", "pandas", lambda r, path: r.frame()),
        ("matplotlib", "plots", lambda r, path: r.plot()),
        ("matplotlib", "plots", lambda r, path: r.report(path / "r.html")),
        ("safetensors", "safetensors", lambda r, path: r.save_model(path / "m.safetensors", seed=0)),
        ("arviz", "arviz", lambda r, path: r.inference_data()),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package, extra, call, result, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf'needs {package}.*pip install "jaxpt\[{extra}\]"'):
        call(result, tmp_path)


def test_nothing_is_unpickled_from_a_model_file(result, tmp_path):
    result.save_model(tmp_path / "best", seed=0)
    seen, watching = [], True
    sys.addaudithook(lambda event, args: seen.append(args) if watching and event == "pickle.find_class" else None)
    jaxpt.load_model(tmp_path / "best")
    watching = False
    assert not seen


def test_names_that_would_be_one_in_the_file_are_refused(tmp_path):
    """`fit` refuses them before its first step (tests/test_models.py); whoever saves by hand is refused as well."""
    weights = {"a": {"b": jnp.ones(2)}, "a.b": jnp.zeros(2)}
    for name in ("model", "model.safetensors"):
        with pytest.raises(ValueError, match=r"two arrays would share a name in the file: a\.b; rename"):
            jaxpt.saving.model_files.save_model(tmp_path / name, weights, (), {})
        assert not (tmp_path / name).exists()


def test_a_model_whose_saving_was_cut_off_is_not_read_and_may_be_saved_again(result, tmp_path, monkeypatch):
    result.save_model(tmp_path / "model", seed=0)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.v1.save_pytree", killed)
        with pytest.raises(KeyboardInterrupt):
            result.save_model(tmp_path / "model", seed=1)
    with pytest.raises(ValueError, match="not all of it"):
        jaxpt.load_model(tmp_path / "model")
    result.save_model(tmp_path / "model", seed=1)
    jaxpt.load_model(tmp_path / "model")


def test_pictures_of_a_metric_with_a_slash_are_written(result, tmp_path):
    renamed = {
        name: getattr(result.trace, name) | {"top/5": getattr(result.trace, name)["error"]}
        for name in ("valid", "test")
    }
    found = jaxpt.Result(**vars(result) | {"trace": result.trace._replace(**renamed)})
    found.plot(tmp_path)
    assert (tmp_path / "score-top_5.png").stat().st_size > 1000
