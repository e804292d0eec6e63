"""An ensemble as an object: which replicas, their scores, their disagreement, and its files."""

import dataclasses
import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxpt
from tests import conftest, loading_ensembles
from tests.loading_ensembles import logits

METRICS = {
    "error": lambda p, batch: jaxpt.zero_one_loss(p, batch["y"]),
    "nll": lambda p, batch: jaxpt.negative_log_likelihood(p, batch["y"]),
    "ece": jaxpt.calibration_error(lambda p, batch: (p, batch["y"])),
}


def fitted(problem, data, **options):
    engine = conftest.make_engine(problem, evaluation_batch=16, rule=jaxpt.Tempering(3.0))
    return jaxpt.fit(engine, data.train, data.valid, test=data.test, steps=15, progress=False, **options)


@pytest.fixture(scope="module")
def result(data):
    """Two seeds of four replicas."""
    problem = jaxpt.nnx_problem(conftest.SmallNet, conftest.loss, predict=logits)
    return fitted(problem, data, seeds=[3, 11])


def with_params(result, change):
    replicas = result.state.replicas
    state = result.state._replace(replicas=replicas._replace(params=jax.tree.map(change, replicas.params)))
    return jaxpt.Result(**{**vars(result), "state": state})


def each(result, seed, examples):
    """Probabilities of the four replicas of a seed, from their models."""
    found = sorted(result.coldest(4, seed), key=lambda one: one.replica)
    return np.array([jax.nn.softmax(one.model(examples["x"])) for one in found], np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_are_those_of_the_lowest_validation_energy(seed, result, data):
    found = result.ensemble(best=2, seed=seed)
    order = np.argsort(result.valid["energy"][seed])[:2]
    assert found.replicas == tuple(order)
    assert found.replicas[0] == result.best(seed=seed).replica
    np.testing.assert_array_equal(found.weights, [0.5, 0.5])
    np.testing.assert_allclose(found(data.test), each(result, seed, data.test)[order].mean(0), rtol=1e-5)
    for split in ("valid", "test"):
        energies = getattr(result, split)["energy"][seed, order]
        assert np.array_equal(np.array(found.scores[split]["energy"], np.float32), energies)


def test_a_diverged_replica_is_never_among_the_best(result):
    energy = result.valid["energy"].copy()
    energy[0, result.best(seed=0).replica] = np.nan
    found = jaxpt.Result(**{**vars(result), "valid": {"energy": energy}}).ensemble(best=3, seed=0)
    assert found.replicas == tuple(np.argsort(energy[0])[:3]), "NaN comes last"


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_that_are_fitted_are_those_of_ensemble_weights(seed, result, data):
    found = result.ensemble(weighted_on=data.valid, seed=seed)
    expected = np.asarray(jaxpt.ensemble_weights(result.engine, result.state, data.valid))[seed]
    order = [k for k in np.argsort(-expected) if expected[k] >= 1e-4]
    assert found.replicas == tuple(order), "the largest weight first"
    np.testing.assert_allclose(found.weights, expected[order] / expected[order].sum(), rtol=1e-6)
    mean = np.average(each(result, seed, data.test)[order], 0, found.weights)
    np.testing.assert_allclose(found(data.test), mean, rtol=1e-5)
    nll = found.evaluate(data.valid, METRICS)["nll"]
    assert nll <= result.ensemble(seed=seed).evaluate(data.valid, METRICS)["nll"] + 1e-4
    assert nll <= result.valid["energy"][seed].min() + 1e-4


def test_replicas_of_weight_nothing_are_left_out(result, data):
    ruined = with_params(result, lambda leaf: leaf.at[0, 1].set(jnp.nan))
    found = ruined.ensemble(weighted_on=data.valid, seed=0)
    assert 1 not in found.replicas
    np.testing.assert_allclose(found.weights.sum(), 1, rtol=1e-6)
    lost = with_params(result, lambda leaf: leaf.at[0].set(jnp.nan))
    with pytest.raises(ValueError, match="every replica has an energy that is not finite"):
        lost.ensemble(weighted_on=data.valid, seed=0)
    assert lost.ensemble(weighted_on=data.valid, seed=1).seed == 1, "the other seed is as it was"


@pytest.mark.parametrize("choice", [{}, {"coldest": 2}, {"best": 3}])
def test_its_scores_are_those_that_the_engine_computes(choice, result, data):
    """On a split of 40 in chunks of 16, the last of which overlaps; a metric of the whole split as well."""
    weights, found = np.zeros((2, 4)), []
    for seed in (0, 1):
        one = result.ensemble(**choice, seed=seed)
        weights[seed, list(one.replicas)] = 1
        found.append(one.evaluate(data.test, METRICS))
    expected = jaxpt.ensemble(result.engine, result.state, data.test, METRICS, weights=weights)
    for seed, name in itertools.product((0, 1), METRICS):
        assert type(found[seed][name]) is float
        np.testing.assert_allclose(found[seed][name], expected[name][seed], rtol=1e-5)


def test_disagreement_is_that_of_all_pairs(result, data):
    answers = each(result, 1, data.test).argmax(-1)
    pairs = [(a != b).mean() for a, b in itertools.combinations(answers, 2)]
    found = result.ensemble(seed=1).disagreement(data.test)
    np.testing.assert_allclose(found, np.mean(pairs), rtol=1e-5)
    assert found > 0
    two = result.ensemble(coldest=2, seed=1)
    expected = (answers[two.replicas[0]] != answers[two.replicas[1]]).mean()
    np.testing.assert_allclose(two.disagreement({"x": data.test["x"]}), expected, rtol=1e-5)


def test_disagreement_is_that_of_those_that_predict(result, data):
    answers = each(result, 0, data.test).argmax(-1)[[0, 2, 3]]
    pairs = [(a != b).mean() for a, b in itertools.combinations(answers, 2)]
    broken = with_params(result, lambda leaf: leaf.at[0, 1].set(jnp.nan))
    np.testing.assert_allclose(broken.ensemble(seed=0).disagreement(data.test), np.mean(pairs), rtol=1e-5)


def other_kind(result, kind, predict):
    """The first seed's ensemble with another kind of prediction."""
    made = jaxpt.nnx_problem(conftest.SmallNet, conftest.loss, predict=predict, prediction=kind)
    found = result.ensemble(seed=0)
    return dataclasses.replace(found, _how=found._how._replace(problem=made))


def test_disagreement_of_yes_and_no_and_of_labels_of_several_axes(result, data):
    outputs = np.array([np.log(row) for row in each(result, 0, data.test)])
    outputs = outputs - outputs.mean(-1, keepdims=True)  # logits up to a constant of each example
    centred = lambda model, batch: (lambda x: x - x.mean(-1, keepdims=True))(model(batch["x"]))
    yes = other_kind(result, "binary", centred)
    pairs = [((a > 0) != (b > 0)).mean() for a, b in itertools.combinations(outputs, 2)]
    np.testing.assert_allclose(yes.disagreement(data.test), np.mean(pairs), rtol=1e-5)
    words = other_kind(result, "classes", lambda model, batch: jnp.stack([x := model(batch["x"]), -x], 1))
    both = np.stack([outputs, -outputs], 2).argmax(-1)
    pairs = [(a != b).mean() for a, b in itertools.combinations(both, 2)]
    np.testing.assert_allclose(words.disagreement(data.test), np.mean(pairs), rtol=1e-5)


def test_disagreement_of_values_or_of_one_is_refused(result, data):
    with pytest.raises(ValueError, match='the problem has prediction="values"; compare the spread'):
        other_kind(result, "values", logits).disagreement(data.test)
    with pytest.raises(ValueError, match="two replicas or more, but the ensemble has 1"):
        result.ensemble(best=1, seed=0).disagreement(data.test)


@pytest.fixture(scope="module")
def saved(data, tmp_path_factory):
    """{file: its predictions before, and those of a fresh process}."""
    folder = tmp_path_factory.mktemp("ensembles")
    expected = {}
    for name, problem in loading_ensembles.problems().items():
        if name == "energy":
            ladder = jaxpt.Ladder(learning_rate=[0.1, 0.2, 0.3])
            found = jaxpt.fit(
                jaxpt.Engine(problem, lambda h: optax.sgd(h["learning_rate"]), ladder, every=2, batch_size=16),
                *data[:2],
                steps=4,
                progress=False,
            )
        else:
            found = fitted(problem, data)
        chosen = found.ensemble(weighted_on=data.valid) if name == "nnx" else found.ensemble(best=2)
        for end in ("saved", "saved.safetensors"):
            chosen.save(folder / f"{name}.{end}")
            expected[f"{name}.{end}"] = np.asarray(chosen(data.test))
    command = [sys.executable, "-m", "tests.loading_ensembles", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, {name: (before, np.load(folder / f"{name}.npy")) for name, before in expected.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnx", "linen", "energy"])
@pytest.mark.parametrize("end", ["saved", "saved.safetensors"])
def test_a_fresh_process_predicts_the_same_bits(name, end, saved):
    before, after = saved[1][f"{name}.{end}"]
    assert before.shape == (40, conftest.CLASSES)
    np.testing.assert_array_equal(before, after)


@pytest.mark.slow
def test_what_is_saved_is_described(saved):
    folder, _ = saved
    about = json.loads((folder / "linen.saved" / "model.json").read_text())
    assert about["ensemble"]["weights"] == [0.5, 0.5]
    assert about["ensemble"]["seed"] is None
    assert len(about["ensemble"]["scores"]["test"]["energy"]) == 2
    assert about["versions"]["jaxpt"] == jaxpt.__version__


def test_an_ensemble_comes_back_whole(result, data, tmp_path):
    before = result.ensemble(weighted_on=data.valid, seed=1)
    result.save_model(tmp_path / "mine", seed=0)
    before.save(tmp_path / "mine")  # in its place
    after = jaxpt.load_ensemble(tmp_path / "mine", result.engine.problem)
    assert (after.replicas, after.seed, after.scores) == (before.replicas, before.seed, before.scores)
    np.testing.assert_array_equal(after.weights, before.weights)
    equal = jax.tree.map(np.array_equal, (after.params, after.model_state), (before.params, before.model_state))
    assert jax.tree.all(equal), "structures agree as well"
    np.testing.assert_array_equal(after(data.test), before(data.test))
    assert after.evaluate(data.test, METRICS) == before.evaluate(data.test, METRICS)
    assert after.disagreement(data.test) == before.disagreement(data.test)
    after.save(tmp_path / "again")
    np.testing.assert_array_equal(
        jaxpt.load_ensemble(tmp_path / "again", result.engine.problem)(data.test), before(data.test)
    )


@pytest.mark.slow
def test_parameters_of_any_shape_come_back(tmp_path):
    """One array, arrays without elements, bfloat16; places in the file are found by numbers, not by names."""
    inits = {
        "one": lambda key: jax.random.normal(key, (3,)),
        "odd": lambda key: {"w": [jax.random.normal(key, (3,)), jnp.zeros((0, 3))], "b": jnp.bfloat16(1.5)},
    }
    sums = lambda params: sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(params))
    for name, init in inits.items():
        problem = jaxpt.energy_problem(lambda w, batch: sums(w) ** 2 + batch["x"], init)
        problem = problem._replace(predict=lambda w, rest, batch: sums(w) * batch["x"][:, None], prediction="values")
        engine = jaxpt.Engine(
            problem, conftest.sgd, jaxpt.Ladder(learning_rate=[1e-5, 2e-5, 3e-5]), every=2, batch_size=4
        )
        x = {"x": np.arange(8, dtype=np.float32)}
        before = jaxpt.fit(engine, x, x, steps=2, progress=False).ensemble()
        before.save(tmp_path / name)
        np.testing.assert_array_equal(jaxpt.load_ensemble(tmp_path / name, problem)(x), before(x))


class Wider(nnx.Module):
    """`SmallNet` with a dense layer of another size, without its BatchNorm, and one more layer."""

    def __init__(self, *, rngs):
        self.dense = nnx.Linear(conftest.FEATURES, 2 * conftest.CLASSES, rngs=rngs)
        self.more = nnx.Linear(2 * conftest.CLASSES, conftest.CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.more(self.dense(x))


def test_files_of_something_else_are_refused(result, tmp_path):
    problem = result.engine.problem
    result.ensemble(seed=0).save(tmp_path / "ensemble")
    result.save_model(tmp_path / "model", seed=0)
    with pytest.raises(ValueError, match=r"holds the model of one replica, not an ensemble; read it by jaxpt.load_mod"):
        jaxpt.load_ensemble(tmp_path / "model", problem)
    with pytest.raises(ValueError, match=r"holds an ensemble; read it by jaxpt.load_ensemble\(path, problem\)"):
        jaxpt.load_model(tmp_path / "ensemble")
    with pytest.raises(ValueError, match="does not exist"):
        jaxpt.load_ensemble(tmp_path / "nowhere", problem)
    with pytest.raises(ValueError, match=r"problem must be the jaxpt.Problem of the run"):
        jaxpt.load_ensemble(tmp_path / "ensemble", result.engine)
    with pytest.raises(ValueError, match="the problem has no predictions; give nnx_problem"):
        jaxpt.load_ensemble(tmp_path / "ensemble", problem._replace(predict=None))
    with pytest.raises(
        ValueError, match='holds an ensemble with prediction="classes", but the problem has prediction="v'
    ):
        jaxpt.load_ensemble(tmp_path / "ensemble", problem._replace(prediction="values"))
    jaxpt.load_ensemble(tmp_path / "ensemble", problem._replace(prediction="classes"))  # the default, by name
    other = jaxpt.nnx_problem(Wider, conftest.loss, predict=logits)
    with pytest.raises(ValueError, match="holds an ensemble of another problem; give the problem of the run") as found:
        jaxpt.load_ensemble(tmp_path / "ensemble", other)
    message = str(found.value)
    assert "dense.kernel: float32[6,3] in the file, float32[6,6] in the problem" in message
    assert "more.bias: none in the file, float32[3] in the problem" in message
    assert message.endswith("; and 3 more"), "of the BatchNorm's four arrays and of the layers'"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best": 5}, r"best must be 1 \.\. 4, the number of replicas, but it is 5"),
        ({"best": 0}, r"best must be 1 \.\. 4"),
        ({"best": True}, r"best must be 1 \.\. 4, the number of replicas, but it is True"),
        ({"best": 2, "coldest": 2}, "coldest and best are different ways to choose an ensemble's replicas"),
        ({"best": 2, "weighted_on": {}}, "best and weighted_on are different ways"),
        ({"best": 2, "ladder": "rate"}, "ladder='rate' says on which ladder replicas are coldest; leave it out with"),
        ({"weighted_on": {}}, "examples holds no arrays"),
    ],
)
def test_choices_that_do_not_fit_are_refused(options, message, result):
    with pytest.raises(ValueError, match=message):
        result.ensemble(**options, seed=0)


def test_metrics_that_are_none_are_refused(result, data):
    found = result.ensemble(seed=0)
    with pytest.raises(ValueError, match="metrics is empty"):
        found.evaluate(data.test, {})
    with pytest.raises(ValueError, match=r"metrics must be \{name: function"):
        found.evaluate(data.test, METRICS["error"])
    with pytest.raises(ValueError, match="examples holds no arrays"):
        found.evaluate(None, METRICS)


def test_splits_without_examples_are_refused(result, data):
    """Before there was a division by zero."""
    none = jax.tree.map(lambda leaf: leaf[:0], data.test)
    found = result.ensemble(seed=0)
    for scored in (
        lambda: found.evaluate(none, METRICS),
        lambda: found.disagreement(none),
        lambda: jaxpt.ensemble(result.engine, result.state, none, METRICS),
        lambda: jaxpt.ensemble_weights(result.engine, result.state, none),
        lambda: result.engine.evaluate(result.state, none),
    ):
        with pytest.raises(ValueError, match="there are no examples to average over"):
            scored()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:energy is not finite")
def test_a_diverged_replica_does_not_count_though_its_predictions_are_finite():
    """Its weight is about 1e21: predictions of 1e21 are finite, their squares are not."""

    class Slope(nnx.Module):
        def __init__(self, *, rngs):
            self.slope = nnx.Param(jnp.zeros(()))

    x = np.random.default_rng(0).normal(size=256).astype(np.float32)
    split = {"x": x, "y": 2 * x}
    problem = jaxpt.nnx_problem(
        Slope,
        lambda model, batch: (model.slope[...] * batch["x"] - batch["y"]) ** 2,
        predict=lambda model, batch: model.slope[...] * batch["x"],
        prediction="values",
    )
    clipped = lambda h: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(h["learning_rate"]))
    ladder = jaxpt.Ladder(learning_rate=[0.05, 0.1, 0.2, 1e21])
    engine = jaxpt.Engine(problem, clipped, ladder, jaxpt.Independent(), every=21, batch_size=32)
    result = jaxpt.fit(engine, split, split, steps=105, progress=False)
    assert np.isfinite(result.valid["energy"]).tolist() == [True, True, True, False]
    metrics = {"mse": lambda p, batch: (p - batch["y"]) ** 2}
    for members in (result.ensemble(), result.ensemble(coldest=4), result.ensemble(best=4)):
        assert members.evaluate(split, metrics)["mse"] < 0.01
        np.testing.assert_allclose(sorted(members.weights), [0, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    found = jaxpt.compare({"a": engine}, split, split, steps=105, seeds=[1], ensemble=metrics, progress=False)
    assert found.values("a", "mse", what="ensemble", split="valid") < 0.01
