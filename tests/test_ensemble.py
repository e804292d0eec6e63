import dataclasses

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


def by_hand(engine, state, seed, slots, examples):
    """Error rate and negative log likelihood of the mean of the models' own probabilities, in NumPy."""
    probabilities = []
    for slot in slots:
        params, rest = jax.tree.map(
            lambda leaf, slot=slot: leaf[seed, slot], (state.replicas.params, state.replicas.model_state)
        )
        probabilities.append(np.asarray(jax.nn.softmax(engine.problem.model(params, rest)(examples["x"])), np.float64))
    mean, y = np.mean(probabilities, 0), examples["y"]
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


def test_another_number_of_replicas_compiles_nothing(run, data):
    engine, state = run
    count = 0

    def counted(p, batch):
        nonlocal count
        count += 1
        return jaxpt.zero_one_loss(p, batch["y"])

    for coldest in (None, 1, 3):
        jaxpt.ensemble(engine, state, data.valid, {"error": counted}, coldest=coldest)
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
