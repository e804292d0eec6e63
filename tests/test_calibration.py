"""The expected calibration error against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt.engine.scoring import combine, mean_in_chunks
from tests import conftest


def by_hand(probabilities, labels, bins):
    """Guo et al. 2017, equation 3, example by example: sum_m n_m / N |accuracy_m - confidence_m|."""
    members = [[] for _ in range(bins)]
    for row, label in zip(np.asarray(probabilities, np.float64), labels, strict=True):
        confidence, correct = row.max(), row.argmax() == label
        for m in range(1, bins + 1):
            if (m - 1) / bins < confidence <= m / bins:
                members[m - 1].append((confidence, correct))
    assert sum(map(len, members)) == len(labels)
    gaps = [abs(np.mean([c for c, _ in each]) - np.mean([r for _, r in each])) * len(each) for each in members if each]
    return sum(gaps) / len(labels)


def computed(metric, probabilities, labels, chunk=7):
    """As the scores of an ensemble compute a metric: in chunks, the last one overlapping."""

    def score(batch):
        return {"ece": jnp.moveaxis(metric(batch["p"], batch)[None], 1, -1)}

    return float(combine(*mean_in_chunks(score, {"p": probabilities, "y": labels}, chunk), {"ece": metric})["ece"][0])


def ece(bins=15):
    return jaxpt.calibration_error(lambda p, batch: (p, batch["y"]), bins)


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
@pytest.mark.parametrize("sharpness", [0.3, 2.0, 10.0])
def test_it_is_that_of_numpy(bins, sharpness):
    rng = np.random.default_rng(0)
    probabilities = np.asarray(jax.nn.softmax(sharpness * rng.normal(size=(101, 4)).astype(np.float32)))
    labels = rng.integers(0, 4, 101)
    np.testing.assert_allclose(
        computed(ece(bins), probabilities, labels), by_hand(probabilities, labels, bins), rtol=1e-5
    )


def test_confidences_on_the_edges_belong_to_the_bin_below_and_one_to_the_last():
    """Quarters, which are exact. 1/2 is alone in (1/4, 1/2]; 3/4 and 5/8 share (1/2, 3/4]; 1.0 is in (3/4, 1]."""
    top = np.array([0.5, 0.75, 0.625, 1.0, 1.0], np.float32)
    probabilities = np.stack([top, 1 - top], 1)
    labels = np.array([0, 0, 1, 0, 1])  # gaps of both signs, which cancel if they share a bin
    expected = (abs(0.5 - 1) + abs((0.75 - 1) + (0.625 - 0)) + abs((1 - 1) + (1 - 0))) / 5
    np.testing.assert_allclose(computed(ece(4), probabilities, labels), expected, rtol=1e-6)
    np.testing.assert_allclose(by_hand(probabilities, labels, 4), expected)


def test_the_ends():
    certain = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    assert computed(ece(), certain, np.array([0, 1, 2, 0])) == 0
    assert computed(ece(), certain, np.array([1, 2, 0, 1])) == 1
    assert np.isnan(computed(ece(), certain * np.nan, np.array([0, 1, 2, 0]))), "of a diverged model"


def test_as_a_metric_of_a_problem_and_of_the_ensemble(data):
    own = jaxpt.calibration_error(lambda model, batch: (jax.nn.softmax(model(batch["x"])), batch["y"]), bins=5)
    logits = lambda model, batch: model(batch["x"])
    problem = jaxpt.nnx_problem(conftest.SmallNet, conftest.loss, metrics={"calibration": own}, predict=logits)
    engine = conftest.make_engine(problem, evaluation_batch=16)
    state = engine.init(jax.random.key(0))
    found = engine.evaluate(state, data.valid)["calibration"]
    mixed = jaxpt.ensemble(engine, state, data.valid, {"ece": ece(5)}, weights=np.eye(4))["ece"]
    for replica in range(4):
        weights = jax.tree.map(lambda leaf, r=replica: leaf[r], (state.replicas.params, state.replicas.model_state))
        probabilities = jax.nn.softmax(problem.model(*weights)(data.valid["x"]))
        expected = by_hand(probabilities, data.valid["y"], 5)
        np.testing.assert_allclose([found[replica], mixed[replica]], expected, rtol=1e-4)
    assert jaxpt.models.scores.is_higher_better(problem, "calibration") is False


def test_what_is_no_probability_is_refused_or_in_a_program_no_number():
    logits, labels = np.array([[2.0, -1.0], [0.5, 0.5]], np.float32), np.array([0, 1])
    for wrong in (logits, np.array([[0.5, 0.5], [0.7, 0.7]], np.float32)):
        with pytest.raises(ValueError, match=r"rows in 0 .. 1 of sum 1, but a row is \[.*\]; take jax.nn.softmax"):
            ece()(wrong, {"y": labels})
        assert np.isnan(computed(ece(), wrong, labels))
    rounded = jax.nn.softmax(jnp.linspace(-3, 3, 1000, dtype=jnp.bfloat16)[None])
    assert 0 < float(computed(ece(), rounded, np.array([999]))) <= 1, "sums in bfloat16 are inexact"


def test_each_mistake_has_a_message():
    with pytest.raises(ValueError, match="function must be a function, called as function"):
        jaxpt.calibration_error(0.5)
    with pytest.raises(ValueError, match=r"what was given does not take that: .*returns \(probabilities"):
        jaxpt.calibration_error(lambda p: p)
    with pytest.raises(ValueError, match="bins must be an integer of at least 1, but it is 0"):
        jaxpt.calibration_error(lambda p, batch: (p, batch), bins=0)
    with pytest.raises(
        ValueError, match=r"must return \(probabilities \[B, K\], labels \[B\]\), but it returns \(4, 2\)"
    ):
        jaxpt.calibration_error(lambda p, batch: p)(jnp.ones((4, 2)), None)
    with pytest.raises(ValueError, match=r"\(\(4,\), \(4,\)\); of a probability of yes, p \[B\], make jnp.stack"):
        ece()(jnp.ones(4), {"y": jnp.zeros(4, int)})
    with pytest.raises(ValueError, match="labels must be integers, the classes, but their dtype is <U1"):
        ece()(jnp.ones((2, 2)) / 2, {"y": np.array(["a", "b"])})
    with pytest.raises(ValueError, match="one class per example"):
        ece()(jnp.ones((4, 2)), {"y": jnp.zeros(3, int)})
