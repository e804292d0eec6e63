import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from tests import conftest

METRICS = {
    "error": lambda p, batch: jaxpt.zero_one_loss(p, batch["y"]),
    "nll": lambda p, batch: jaxpt.negative_log_likelihood(p, batch["y"]),
}


def logits(model, batch):
    return model(batch["x"])


PROBLEM = jaxpt.nnx_problem(conftest.NnxNet, conftest.loss, predict=logits)


@pytest.fixture(scope="module")
def run(data):
    """Two seeds of four replicas after a few exchanges; 50 validation examples in chunks of 16."""
    engine = conftest.make_engine(PROBLEM, rule=jaxpt.Tempering(1e-9), evaluation_batch=16)
    state, _ = engine.run(engine.init(jax.vmap(jax.random.key)(jnp.array([3, 11]))), data, periods=3)
    assert (np.asarray(next(iter(state.replicas.rung.values()))) != np.arange(4)).any(), "slots are not rungs"
    return engine, state


def by_hand(engine, state, seed, slots, examples, weights=None):
    """Error rate and negative log likelihood of the mean of the models' own probabilities, in NumPy."""
    probabilities = []
    for slot in slots:
        params, rest = jax.tree.map(
            lambda leaf, slot=slot: leaf[seed, slot], (state.replicas.params, state.replicas.model_state)
        )
        probabilities.append(np.asarray(jax.nn.softmax(engine.problem.model(params, rest)(examples["x"])), np.float64))
    mean, y = np.average(probabilities, 0, weights), examples["y"]
    return (mean.argmax(-1) != y).mean(), -np.log(mean[np.arange(len(y)), y]).mean()


@pytest.mark.parametrize("coldest", [None, 1, 2])
def test_it_is_the_mean_of_what_the_models_say(coldest, run, data):
    engine, state = run
    found = jaxpt.ensemble(engine, state, data.valid, METRICS, coldest=coldest)
    for seed in (0, 1):
        rung = np.asarray(next(iter(state.replicas.rung.values())))[seed]
        expected = by_hand(engine, state, seed, np.flatnonzero(rung < (coldest or 4)), data.valid)
        np.testing.assert_allclose([found["error"][seed], found["nll"][seed]], expected, rtol=1e-5)


def test_several_mixtures_cost_one_pass(run, data):
    engine, state = run
    found = jaxpt.ensemble(engine, state, data.valid, METRICS, coldest=[4, 2])
    for k, coldest in enumerate((None, 2)):
        alone = jaxpt.ensemble(engine, state, data.valid, METRICS, coldest=coldest)
        for name in METRICS:
            assert found[name].shape == (2, 2)
            np.testing.assert_allclose(found[name][k], alone[name], rtol=1e-6)


def test_the_mixture_of_one_is_the_replica_itself(run, data):
    engine, state = run
    found = jaxpt.ensemble(engine, state, data.valid, METRICS, coldest=1)
    rung = np.asarray(next(iter(state.replicas.rung.values())))
    alone = np.asarray(engine.evaluate(state, data.valid)["energy"])
    np.testing.assert_allclose(found["nll"], alone[[0, 1], (rung == 0).argmax(1)], rtol=1e-5)


def test_it_is_no_worse_than_the_mean_replica(run, data):
    """Jensen: the mixture's negative log likelihood is below the mean of the replicas' own."""
    engine, state = run
    nll = jaxpt.ensemble(engine, state, data.valid, METRICS)["nll"]
    assert (nll < engine.evaluate(state, data.valid)["energy"].mean(-1)).all()


def test_a_diverged_replica_is_left_out(run, data):
    engine, state = run
    broken = jax.tree.map(lambda w: w.at[0, 2].set(jnp.nan), state.replicas.params)
    broken = state._replace(replicas=state.replicas._replace(params=broken))
    found = jaxpt.ensemble(engine, broken, data.valid, METRICS)
    np.testing.assert_allclose(found["nll"][0], by_hand(engine, state, 0, [0, 1, 3], data.valid)[1], rtol=1e-5)
    np.testing.assert_array_equal(found["nll"][1], jaxpt.ensemble(engine, state, data.valid, METRICS)["nll"][1])
    ruined = jax.tree.map(lambda w: jnp.full_like(w, jnp.nan), state.replicas.params)
    ruined = state._replace(replicas=state.replicas._replace(params=ruined))
    assert np.isnan(jaxpt.ensemble(engine, ruined, data.valid, METRICS)["nll"]).all()


WEIGHTS = np.array([[0.1, 0.0, 0.3, 0.6], [2.0, 1.0, 1.0, 4.0]])
"""For two seeds; they need no sum of 1."""


def test_weights_make_a_weighted_mean(run, data):
    engine, state = run
    for factor in (1, 1e30, 1e-30):
        found = jaxpt.ensemble(engine, state, data.valid, METRICS, weights=factor * WEIGHTS)
        for seed in (0, 1):
            expected = by_hand(engine, state, seed, range(4), data.valid, WEIGHTS[seed])
            np.testing.assert_allclose([found["error"][seed], found["nll"][seed]], expected, rtol=1e-5)


def test_equal_weights_are_no_weights_and_zeros_leave_out(run, data):
    engine, state = run
    rung = np.asarray(next(iter(state.replicas.rung.values())))
    for coldest in (4, 2):
        usual = jaxpt.ensemble(engine, state, data.valid, METRICS, coldest=coldest)
        found = jaxpt.ensemble(engine, state, data.valid, METRICS, weights=np.where(rung < coldest, 0.25, 0))
        for name in METRICS:
            np.testing.assert_allclose(found[name], usual[name], rtol=1e-6)


def test_several_weights_cost_one_pass(run, data):
    engine, state = run
    several = np.stack([WEIGHTS, np.ones((2, 4)), WEIGHTS[::-1]])
    found = jaxpt.ensemble(engine, state, data.valid, METRICS, weights=several)
    for k, weights in enumerate(several):
        alone = jaxpt.ensemble(engine, state, data.valid, METRICS, weights=jnp.asarray(weights))
        for name in METRICS:
            assert found[name].shape == (3, 2)
            np.testing.assert_allclose(found[name][k], alone[name], rtol=1e-6)


def test_weights_of_a_diverged_replica_go_to_the_others(run, data):
    engine, state = run
    broken = jax.tree.map(lambda w: w.at[0, 2].set(jnp.nan), state.replicas.params)
    broken = state._replace(replicas=state.replicas._replace(params=broken))
    found = jaxpt.ensemble(engine, broken, data.valid, METRICS, weights=WEIGHTS)
    expected = by_hand(engine, state, 0, [0, 3], data.valid, [0.1, 0.6])
    np.testing.assert_allclose(found["nll"][0], expected[1], rtol=1e-5)
    only = jaxpt.ensemble(engine, broken, data.valid, METRICS, weights=np.eye(4)[[2, 2]])
    assert np.isnan(only["nll"][0]), "the one replica with a weight has no prediction"
    assert np.isfinite(only["nll"][1])


def test_another_number_of_replicas_or_other_weights_compile_nothing(run, data):
    engine, state = run
    count = 0

    def counted(p, batch):
        nonlocal count
        count += 1
        return jaxpt.zero_one_loss(p, batch["y"])

    for coldest in (None, 1, 3):
        jaxpt.ensemble(engine, state, data.valid, {"error": counted}, coldest=coldest)
    for weights in (WEIGHTS, jnp.asarray(WEIGHTS[::-1]), np.ones((2, 4), int), [[1, 0, 0, 1], [0, 0, 1, 1]]):
        jaxpt.ensemble(engine, state, data.valid, {"error": counted}, weights=weights)
    assert count == 1


def test_one_seed_and_a_linen_model(data):
    problem = jaxpt.linen_problem(
        conftest.LinenNet(), conftest.loss, example=np.zeros((1, conftest.FEATURES), np.float32), predict=logits
    )
    engine = conftest.make_engine(problem)
    state = engine.init(jax.random.key(0))
    found = jaxpt.ensemble(engine, state, data.valid, METRICS)
    lead = jax.tree.map(lambda leaf: leaf[None], state)
    np.testing.assert_allclose(found["nll"], by_hand(engine, lead, 0, range(4), data.valid)[1], rtol=1e-5)
    assert found["nll"].shape == ()
    assert jaxpt.ensemble(engine, state, data.valid, METRICS, weights=[1, 2, 3, 4])["nll"].shape == ()
    found = jaxpt.ensemble(engine, state, data.valid, METRICS, weights=WEIGHTS)["nll"]
    expected = [by_hand(engine, lead, 0, range(4), data.valid, weights)[1] for weights in WEIGHTS]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_each_mistake_has_a_message(run, data):
    engine, state = run
    plain = dataclasses.replace(engine, problem=conftest.nnx_problem())
    with pytest.raises(ValueError, match="give nnx_problem or linen_problem predict="):
        jaxpt.ensemble(plain, state, data.valid, METRICS)
    with pytest.raises(ValueError, match=r"coldest must be 1 \.\. 4"):
        jaxpt.ensemble(engine, state, data.valid, METRICS, coldest=5)
    with pytest.raises(ValueError, match=r"coldest must be 1 \.\. 4"):
        jaxpt.ensemble(engine, state, data.valid, METRICS, coldest=[4, 0])
    with pytest.raises(ValueError, match="metrics is empty"):
        jaxpt.ensemble(engine, state, data.valid, {})
    with pytest.raises(ValueError, match="none of the engine's"):
        jaxpt.ensemble(engine, state, data.valid, METRICS, ladder="rate")
    with pytest.raises(ValueError, match="one number per example"):
        jaxpt.ensemble(engine, state, data.valid, {"error": lambda p, batch: jaxpt.zero_one_loss(p, batch["y"]).mean()})
    flat = jaxpt.nnx_problem(conftest.NnxNet, conftest.loss, predict=lambda model, batch: logits(model, batch)[:, 0])
    with pytest.raises(ValueError, match=r"predict returns shape \(13,\); say what these numbers are: prediction="):
        jaxpt.ensemble(dataclasses.replace(engine, problem=flat), state, data.valid, METRICS)
    rungs = [jaxpt.Ladder(learning_rate=[0.1, 0.2]), jaxpt.Ladder(dropout_rate=[0.1, 0.2])]
    two = conftest.make_engine(PROBLEM, rungs)
    with pytest.raises(ValueError, match="on which ladder"):
        jaxpt.ensemble(two, two.init(jax.random.key(0)), data.valid, METRICS, coldest=1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            np.ones(4),
            r"weights must have shape \(2, 4\), one number per replica, or \(K, 2, 4\) for K ensembles, but .*\(4,\)",
        ),
        (np.ones((2, 3)), r"weights must have shape \(2, 4\).*their shape is \(2, 3\)"),
        (np.ones((0, 2, 4)), r"their shape is \(0, 2, 4\)"),
        (-WEIGHTS, "weights must be 0 or positive and finite"),
        (np.full((2, 4), np.nan), "weights must be 0 or positive and finite"),
        (WEIGHTS * [[0], [1]], "one that is positive in each ensemble"),
        ([["a"] * 4] * 2, r"weights must be numbers, one per replica, shape \(2, 4\), but they are \[\['a'"),
    ],
)
def test_weights_that_are_none_are_refused(weights, message, run, data):
    with pytest.raises(ValueError, match=message):
        jaxpt.ensemble(*run, data.valid, METRICS, weights=weights)


def test_weights_and_coldest_are_one_too_many(run, data):
    with pytest.raises(ValueError, match=r"give coldest=2 or weights, not both"):
        jaxpt.ensemble(*run, data.valid, METRICS, weights=WEIGHTS, coldest=2)


@pytest.mark.slow
def test_two_devices_equal_one_up_to_rounding():
    """Scores and fitted weights, with replicas or seeds on different devices."""
    command = [sys.executable, "-m", "tests.ensembles_on_devices"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    one = found.pop("one device")
    assert set(found) == {"shard_map", "pmap", "seeds apart"}
    for way, values in found.items():
        for name, value in values.items():
            np.testing.assert_allclose(value, one[name], rtol=1e-5, atol=1e-5, err_msg=f"{way}: {name}")
    assert np.shape(one["weights"]) == (2, 4)
    assert np.ptp(one["weights"]) > 0.01, "they are not just equal"
