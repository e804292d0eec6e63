"""Metrics with a direction, metrics of whole splits, and what a prediction is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import f1_score, roc_auc_score

import jaxpt
from jaxpt.models.scores import is_higher_better

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 3)).astype(np.float32)
Y = np.argmax(X + 0.7 * RNG.normal(size=X.shape), 1).astype(np.int32)
DATA = {"x": X, "y": Y}
logits = lambda model, batch: model(batch["x"])


def classifier(outputs=3, loss=None, **options):
    loss = loss or (lambda m, b: jaxpt.cross_entropy(m(b["x"]), b["y"]))
    return jaxpt.nnx_problem(lambda rngs: nnx.Linear(3, outputs, rngs=rngs), loss, **options)


def run(problem, data=DATA, steps=4, rates=(0.001, 0.1, 1.0), **options):
    engine = jaxpt.Engine(
        problem,
        lambda h: optax.sgd(h["learning_rate"]),
        jaxpt.Ladder(learning_rate=rates),
        jaxpt.Independent(),
        every=2,
        batch_size=16,
        evaluation_batch=32,
        **options,
    )
    return jaxpt.fit(engine, data, data, test=data, steps=steps, progress=False)


DIRECTIONS = {
    **dict.fromkeys(("accuracy", "top5_accuracy", "macro-F1", "AUC", "R2", "episode_return", "mean IoU"), True),
    **dict.fromkeys(("error", "energy", "valid/nll", "RMSE", "cross_entropy_loss", "error_rate", "ppl"), False),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_name_tells_the_direction(name):
    metrics = {} if name == "energy" else {name: logits}
    assert is_higher_better(classifier(metrics=metrics), name) == DIRECTIONS[name]
    if metrics:
        other = classifier(metrics={name: jaxpt.Metric(logits, not DIRECTIONS[name])})
        assert is_higher_better(other, name) != DIRECTIONS[name], "what is said goes before the name"


@pytest.mark.parametrize("name", ["hits", "accuracy_error", "energy2", "x"])
def test_a_name_that_tells_nothing_asks_for_the_direction(name):
    found = run(classifier(metrics={name: lambda m, b: ~jaxpt.zero_one_loss(m(b["x"]), b["y"])}))
    assert found.valid[name].shape == (3,), "it is recorded"
    with pytest.raises(ValueError, match=rf"is more or less of '{name}' better\? .* jaxpt.Metric"):
        found.best(name)
    with pytest.raises(ValueError, match="is more or less of"):
        found.save_model("nowhere", on=name)


def test_the_best_replica_is_the_best_in_the_metric_s_direction():
    hit = lambda m, b: ~jaxpt.zero_one_loss(m(b["x"]), b["y"])
    metrics = {"accuracy": hit, "hits": jaxpt.Metric(hit, higher_is_better=True), "error": lambda m, b: ~hit(m, b)}
    found = run(classifier(metrics=metrics), steps=20)
    assert np.ptp(found.valid["accuracy"]) > 0
    for name in ("accuracy", "hits"):
        assert found.best(name).valid[name] == found.valid[name].max()
    assert found.best("error").valid["error"] == found.valid["error"].min()
    assert found.best("accuracy").replica == found.best("error").replica


def moments(model, batch):
    p, t = model(batch["x"])[:, 0], batch["x"][:, 1]
    return {"p": p, "t": t, "pp": p * p, "tt": t * t, "pt": p * t}


def pearson(m):
    return (m["pt"] - m["p"] * m["t"]) / jnp.sqrt((m["pp"] - m["p"] ** 2) * (m["tt"] - m["t"] ** 2))


def counts(model, batch):
    guess, label = (jax.nn.one_hot(k, 3) for k in (jnp.argmax(model(batch["x"]), -1), batch["y"]))
    return jnp.stack([guess * label, guess, label], 1)


def area(outputs):
    """Area under the curve of the first class, from ranks (Mann and Whitney)."""
    score, positive = outputs
    rank = 1 + jnp.argsort(jnp.argsort(score))
    p = positive.sum()
    return (jnp.sum(rank * positive) - p * (p + 1) / 2) / (p * (len(score) - p))


WHOLE = {
    "correlation": jaxpt.Metric(moments, finish=pearson),
    "macro_f1": jaxpt.Metric(counts, finish=lambda m: jnp.mean(2 * m[0] / (m[1] + m[2]))),
    "auc": jaxpt.Metric(lambda m, b: (m(b["x"])[:, 0], b["y"] == 0), whole=area),
    "correlation of all": jaxpt.Metric(
        lambda m, b: (m(b["x"])[:, 0], b["x"][:, 1]), whole=lambda o: jnp.corrcoef(*o)[0, 1]
    ),
    "accuracy": lambda m, b: ~jaxpt.zero_one_loss(m(b["x"]), b["y"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"replica_axis": "map"}, {"replica_axis": "unroll"}, {"probe": 40}])
def test_metrics_of_a_whole_split(options):
    """Against scikit-learn and NumPy, on what the returned models predict; 70 examples in slices of 32."""
    found = run(classifier(metrics=WHOLE), **options)
    for k, best in enumerate(found.coldest(3)):
        out = np.asarray(best.model(X), np.float64)
        exact = {
            "correlation": np.corrcoef(out[:, 0], X[:, 1])[0, 1],
            "correlation of all": np.corrcoef(out[:, 0], X[:, 1])[0, 1],
            "macro_f1": f1_score(Y, out.argmax(1), average="macro"),
            "auc": roc_auc_score(Y == 0, out[:, 0]),
            "accuracy": (out.argmax(1) == Y).mean(),
        }
        for name, value in exact.items():
            np.testing.assert_allclose([best.valid[name], best.test[name]], value, rtol=2e-4, err_msg=f"{name} {k}")
    assert set(found.trace.valid) == {"energy", *WHOLE}
    assert found.best("macro_f1").valid["macro_f1"] == found.valid["macro_f1"].max()


@pytest.mark.slow
def test_whole_metrics_over_seeds_and_devices_of_their_own():
    engine = run(classifier(metrics=WHOLE)).engine
    found = jaxpt.fit(engine, DATA, DATA, steps=2, seeds=[0, 1], progress=False)
    for seed in range(2):
        best = found.best("auc", seed)
        np.testing.assert_allclose(best.valid["auc"], roc_auc_score(Y == 0, best.model(X)[:, 0]), rtol=1e-5)


MISTAKES = {
    "must come to one number, but it has shape": {"a": jaxpt.Metric(counts, finish=lambda m: m)},
    "must return arrays with a row for each of the 70": {
        "a": jaxpt.Metric(lambda m, b: b["x"].sum(), whole=lambda o: o)
    },
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_wrong_shape_is_refused(said):
    with pytest.raises(ValueError, match=said):
        run(classifier(metrics=MISTAKES[said]))


def test_a_metric_that_is_none_is_refused():
    with pytest.raises(ValueError, match="finish of a Metric must be a function"):
        jaxpt.Metric(logits, finish=3)
    with pytest.raises(ValueError, match="both are given"):
        jaxpt.Metric(logits, finish=jnp.sqrt, whole=jnp.sqrt)
    with pytest.raises(ValueError, match="the energy must be a function"):
        classifier(energy=jaxpt.Metric(logits))


YES = {"x": X, "y": (X[:, 0] > 0).astype(np.float32)}
VALUES = {"x": X, "y": X @ RNG.normal(size=(3, 2)).astype(np.float32)}
WORDS = {"x": X, "y": np.stack([Y] * 4, 1)}
KINDS = {
    "one logit [B, 1]": ("binary", 1, logits, YES),
    "one logit [B]": ("binary", 1, lambda m, b: m(b["x"])[:, 0], YES),
    "several yes or no": ("binary", 3, logits, DATA),
    "values [B, 2]": ("values", 2, logits, VALUES),
    "values [B]": ("values", 1, lambda m, b: m(b["x"])[:, 0], VALUES),
    "words": ("classes", 3, lambda m, b: jnp.broadcast_to(m(b["x"])[:, None], (len(b["x"]), 4, 3)), WORDS),
    "classes": ("classes", 3, logits, DATA),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_mean_prediction_is_that_of_its_kind(name):
    """Both doors against NumPy on the models; without a word of the kind it is refused, but for classes."""
    kind, outputs, predict, data = KINDS[name]
    loss = lambda m, b: jnp.sum(m(b["x"]) ** 2, -1)
    found = run(classifier(outputs, loss, predict=predict, prediction=kind), data)
    each = np.stack([np.asarray(predict(best.model, {"x": X}), np.float64) for best in found.coldest(3)])
    e = np.exp(each)
    exact = {"values": each, "binary": e / (1 + e), "classes": e / e.sum(-1, keepdims=True)}[kind].mean(0)
    np.testing.assert_allclose(found.ensemble()({"x": X}), exact, rtol=1e-4)
    mean = lambda p, b: p.reshape(len(p), -1).mean(-1)
    through = jaxpt.ensemble(found.engine, found.state, data, {"mean": mean})["mean"]
    np.testing.assert_allclose(through, exact.mean(), rtol=1e-4)
    silent = classifier(outputs, loss, predict=predict)
    if (
        name == "several yes or no"
    ):  # beside labels of classes, [B, 3] could be logits of classes, and is taken for that
        return
    if name == "classes":
        np.testing.assert_allclose(run(silent, data).ensemble()({"x": X}), exact, rtol=1e-5)
    else:
        with pytest.raises(ValueError, match=r"predict.*prediction="):
            run(silent, data)


def test_predictions_in_a_dict_are_refused():
    with pytest.raises(ValueError, match="predict must return one array, but it returns dict"):
        run(classifier(predict=lambda model, batch: {"logits": logits(model, batch)}))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="prediction must be one of classes, binary, values, but it is 'softmax'"):
        classifier(predict=logits, prediction="softmax")


@pytest.mark.parametrize(
    "name",
    ["neg_mean_squared_error", "1-accuracy", "1 - f1", "-loss", "accuracy_drop", "error_reduction", "return_std"],
)
def test_a_name_that_turns_a_word_round_tells_no_direction(name):
    with pytest.raises(ValueError, match="Its name does not tell"):
        is_higher_better(classifier(), name)


def test_several_yes_or_no_for_each_example_are_asked_about():
    several = {"x": X, "y": (X > 0).astype(np.int32)}
    loss = lambda m, b: optax.sigmoid_binary_cross_entropy(m(b["x"]), b["y"]).mean(-1)
    with pytest.raises(ValueError, match="no array with one integer for each example"):
        run(classifier(loss=loss, predict=logits), several)


def test_metrics_of_whole_splits_are_those_of_the_mean_prediction_too():
    result = run(classifier(predict=logits))
    square = jaxpt.Metric(lambda p, b: (p[:, 1] - (b["y"] == 1)) ** 2, finish=jnp.sqrt)
    area = jaxpt.Metric(lambda p, b: (p[:, 1], b["y"] == 1), whole=lambda rows: jnp.corrcoef(*rows)[0, 1])
    found = jaxpt.ensemble(result.engine, result.state, DATA, {"square": square, "area": area})
    predicted = np.asarray(result.ensemble()(DATA))[:, 1]
    np.testing.assert_allclose(found["square"], np.sqrt(np.mean((predicted - (Y == 1)) ** 2)), rtol=1e-5)
    np.testing.assert_allclose(found["area"], np.corrcoef(predicted, Y == 1)[0, 1], rtol=1e-4)
    with pytest.raises(ValueError, match="examples/y has values"):
        jaxpt.ensemble(result.engine, result.state, {"x": X, "y": Y.astype(np.int64) + 2**40}, {"square": square})


def test_metrics_of_a_problem_without_data():
    metrics = {
        "first": jaxpt.Metric(lambda w: w[0], higher_is_better=True),
        "norm": jaxpt.Metric(lambda w: w**2, finish=lambda squares: jnp.sqrt(squares.sum())),
        "total": jaxpt.Metric(lambda w: w, whole=jnp.sum),
    }
    problem = jaxpt.energy_problem(lambda w: jnp.sum(w**2), lambda key: jnp.array([1.0, -2.0]), metrics=metrics)
    engine = jaxpt.Engine(
        problem,
        lambda h: optax.sgd(h["learning_rate"]),
        jaxpt.Ladder(learning_rate=[0.1, 0.2]),
        jaxpt.Independent(),
        every=1,
    )
    result = jaxpt.fit(engine, steps=1, progress=False)
    w = np.outer([0.8, 0.6], [1.0, -2.0])  # (1 - 2 rate) w
    np.testing.assert_allclose(result.valid["first"], w[:, 0], rtol=1e-6)
    np.testing.assert_allclose(result.valid["norm"], np.linalg.norm(w, axis=1), rtol=1e-6)
    np.testing.assert_allclose(result.valid["total"], w.sum(1), rtol=1e-6)
    assert result.best("first").replica == 0
