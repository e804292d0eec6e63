import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from tests.conftest import make_engine
from tests.test_engine import regression, slope

RATES = [0.25, 0.5, 1.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize("rule", [jaxpt.PBT(0.5), jaxpt.CopyBest(), jaxpt.Tempering(1e-9, "deo")])
def test_a_path_adds_up_to_the_weights_that_it_led_to(rule):
    """On a slope weights sum up the learning rates, so each replica's path must give its weights."""
    engine, state = slope(jaxpt.Ladder(learning_rate=RATES), rule=rule)
    start = np.asarray(state.replicas.params)
    state, trace = engine.run(state, periods=12)
    moved = 0
    for replica in range(4):
        path = jaxpt.lineage(trace, replica)
        expected = start[path.replica[0]] - 4 * path.hyper["learning_rate"].sum()
        np.testing.assert_allclose(state.replicas.params[replica], expected, rtol=1e-6)
        moved += path.replica[0] != replica
    assert (moved > 0) == (trace.info.parents is not None)


@pytest.mark.slow
def test_json_and_schedule_give_the_path_back_to_the_bit():
    engine, state = slope(jaxpt.Ladder(learning_rate=[0.1, 0.3, 0.7]), rule=jaxpt.PBT(), every=3)
    _, trace = engine.run(state, periods=6)
    path = jaxpt.lineage(trace, 1)
    again = jaxpt.Lineage.from_json(path.to_json())
    assert json.loads(path.to_json())["step"] == [3, 6, 9, 12, 15, 18]
    for name in ("step", "replica"):
        np.testing.assert_array_equal(getattr(again, name), getattr(path, name))
    assert again.hyper["learning_rate"].dtype == np.float32
    np.testing.assert_array_equal(again.hyper["learning_rate"], path.hyper["learning_rate"])
    schedule = again.schedule("learning_rate")
    values = jax.vmap(schedule)(jnp.arange(25))
    np.testing.assert_array_equal(values[:18], np.repeat(path.hyper["learning_rate"], 3))
    np.testing.assert_array_equal(values[18:], path.hyper["learning_rate"][-1])
    # As optax uses it: the sum of the steps taken.
    transform = optax.sgd(schedule)
    total, opt_state = jnp.zeros(()), transform.init(jnp.zeros(()))
    for _ in range(18):
        update, opt_state = transform.update(jnp.ones(()), opt_state)
        total += update
    np.testing.assert_allclose(total, -3 * path.hyper["learning_rate"].sum(), rtol=1e-6)


@pytest.mark.slow
def test_replay_trains_one_model_with_the_recorded_values_to_the_bit(data):
    ladders = [jaxpt.Ladder(learning_rate=[0.01, 0.02, 0.04]), jaxpt.Ladder(batch_size=[16, 8, 4])]
    engine = make_engine(regression(), ladders, rule=jaxpt.Tempering("auto", "deo"), every=4, burn_in=8)
    result = jaxpt.fit(engine, data.train, data.valid, steps=82)
    path = jaxpt.lineage(result.trace, result.best().replica)
    assert len(set(path.hyper["learning_rate"])) > 1, "it moved"
    again = jaxpt.replay(path, engine, data.train, data.valid, seed=5)
    assert again.trace.loss.shape == (21, 1)
    for name, values in path.hyper.items():
        np.testing.assert_array_equal(again.trace.hyper[name][:, 0], values)
    np.testing.assert_array_equal(again.trace.step, path.step)
    assert again.best().valid["energy"] < again.trace.valid["energy"][0, 0]
    several = jaxpt.replay(path, engine, data.train, data.valid, seeds=[1, 2], steps=8)
    np.testing.assert_array_equal(several.trace.hyper["learning_rate"][:, 1, 0], path.hyper["learning_rate"][:2])


@pytest.mark.slow
def test_replay_with_the_same_start_gives_the_same_weights():
    """The recorded rates, to the bit, are the ones that train: on the slope their sum is the same, to rounding."""
    engine, state = slope(jaxpt.Ladder(learning_rate=RATES), rule=jaxpt.PBT(0.5))
    state, trace = engine.run(state, periods=9)
    path = jaxpt.lineage(trace, 2)
    again = jaxpt.replay(path, engine, None)
    np.testing.assert_array_equal(again.trace.hyper["learning_rate"][:, 0], path.hyper["learning_rate"])
    start = path.replica[0]
    np.testing.assert_allclose(start + again.state.replicas.params[0], state.replicas.params[2], rtol=1e-6)


@pytest.mark.slow
def test_of_several_seeds_one_is_chosen(data):
    engine = make_engine(regression(), jaxpt.Ladder(learning_rate=[0.01, 0.02, 0.04]), rule=jaxpt.PBT(0.4), every=2)
    result = jaxpt.fit(engine, data.train, data.valid, steps=20, seeds=[3, 4])
    assert result.trace.info.parents.shape == (10, 2, 3)
    path = jaxpt.lineage(result.trace, 0, seed=1)
    slot = result.trace.info.parents[-1, 1, 0]
    assert path.replica[-1] == slot
    assert path.hyper["learning_rate"][-1] == result.trace.hyper["learning_rate"][-1, 1, slot]
    # The last period's copies are scored as what they are copies of.
    scores = result.engine.evaluate(result.state, data.valid)["energy"]
    np.testing.assert_allclose(result.valid["energy"], scores, rtol=1e-5)
    for seed in (None, 2):
        with pytest.raises(ValueError, match="the trace has 2 seeds"):
            jaxpt.lineage(result.trace, 0, seed=seed)


def test_mistakes_are_said():
    engine, state = slope(jaxpt.Ladder(learning_rate=RATES), rule=jaxpt.PBT())
    _, trace = engine.run(state, periods=3)
    path = jaxpt.lineage(trace, 0)
    for said, call in {
        "replica must be one of 0 .. 3": lambda: jaxpt.lineage(trace, 4),
        "one seed only": lambda: jaxpt.lineage(trace, 0, seed=0),
        "no hyperparameter 'rate'": lambda: path.schedule("rate"),
        "no lineage": lambda: jaxpt.Lineage.from_json("[1]"),
        "one number per period": lambda: jaxpt.Lineage.from_json('{"step": [1], "replica": [], "hyper": {}}'),
        "no values of learning_rate": lambda: jaxpt.replay(dataclasses.replace(path, hyper={}), engine, None),
        "periods have 4 steps, the engine's 5": lambda: jaxpt.replay(path, dataclasses.replace(engine, every=5), None),
    }.items():
        with pytest.raises(ValueError, match=said):
            call()


def test_the_path_as_a_schedule_has_the_rates_in_force():
    """One network trained elsewhere with that schedule, in a plain loop, comes to the replica's weights."""
    halved = lambda h, step: {**h, "learning_rate": h["learning_rate"] * 0.5 ** (step / 4)}
    wells = jaxpt.energy_problem(lambda w: (w - 1) ** 2, lambda key: jnp.full((), 3.0))
    ladder, rule = jaxpt.Ladder(learning_rate=[0.02, 0.1, 0.3]), jaxpt.Tempering(1e-6, "deo")
    engine = jaxpt.Engine(wells, lambda h: optax.sgd(h["learning_rate"]), ladder, rule, every=3, schedule=halved)
    found = jaxpt.fit(engine, steps=12, progress=False)
    path = jaxpt.Lineage.from_json(found.lineage(1).to_json())
    assert len(set(path.hyper["learning_rate"].tolist())) > 1
    w, schedule = 3.0, path.schedule("learning_rate")
    for step in range(12):
        rate = found.trace.hyper["learning_rate"][step // 3, 1] * 0.5 ** (step / 4)
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-6)
        w -= float(schedule(step)) * 2 * (w - 1)
    np.testing.assert_allclose(found.state.replicas.params[1], w, rtol=1e-5)
