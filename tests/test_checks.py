import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from tests import conftest
from tests.conftest import make_engine

RATES = jaxpt.Ladder(learning_rate=[0.1, 0.2])
SMOOTHED = jaxpt.nnx_problem(
    conftest.NnxNet,
    lambda model, batch, hyper: jaxpt.cross_entropy(model(batch["x"]), batch["y"], hyper["label_smoothing"]),
    energy=conftest.loss,
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every must be an integer of at least 1"),
        ({"every": 2.5}, "every must be an integer"),
        ({"burn_in": -1}, "burn_in must be an integer of at least 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"probe": 0}, "probe must be an integer of at least 1"),
        ({"fixed": {"dropout_rate": np.nan}}, "must be one finite number"),
        ({"fixed": {"dropout_rate": [0.1, 0.2]}}, "must be one finite number"),
        ({"fixed": {"dropout_rate": 0.1, "learning_rate": 0.1}}, "both on a ladder and fixed"),
        ({"fixed": {}}, r"the model reads the hyperparameter\(s\) dropout_rate"),
        ({"fixed": {"dropout_rate": 0.1, "droput": 0.1}}, r"nothing reads the hyperparameter\(s\) droput"),
        ({"rungs": jaxpt.Ladder(temperature=[0.1, 0.2])}, "optimizer or schedule reads .*'learning_rate'"),
        ({"rungs": jaxpt.Ladder(learning_rate=[0.1])}, "at least two rungs"),
        ({"rungs": [RATES, jaxpt.Ladder(weight_decay=[1, 2, 3], beta=[3, 2, 1])]}, "same number of rungs"),
        ({"rungs": [RATES, RATES]}, "one ladder only"),
        ({"rungs": {"learning_rate": [1, 2]}}, "must be a Ladder"),
        ({"fixed": {"dropout_rate": 1.5}}, "dropout_rate must lie between 0 and 1"),
        ({"problem": conftest.NnxNet}, "problem must come from nnx_problem"),
        ({"rule": jaxpt.Tempering}, "rule must be an object like"),
        ({"rule": "tempering"}, "rule must be an object like"),
        ({"rescale_momentum": "rate"}, "rescale_momentum must be one of"),
        ({"fixed": {"dropout_rate": 0.1, "batch_size": 32}}, "batch_size reaches 32"),
    ],
)
def test_each_mistake_in_an_engine_has_a_message_of_its_own(settings, message):
    settings = {"rungs": RATES, "fixed": {"dropout_rate": 0.1}, **settings}
    with pytest.raises(ValueError, match=message):
        make_engine(**settings)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), 0.1])
def test_an_optimizer_must_be_a_function_of_hyperparameters(optimizer):
    with pytest.raises(ValueError, match="optimizer must be a function"):
        jaxpt.Engine(conftest.nnx_problem(), optimizer, RATES, every=1)


def test_injected_hyperparameters_are_refused():
    with pytest.raises(ValueError, match="inject_hyperparams keeps its first values"):
        jaxpt.Engine(
            jaxpt.energy_problem(lambda w: w, lambda key: jnp.ones(())),
            lambda h: optax.inject_hyperparams(optax.sgd)(learning_rate=h["learning_rate"]),
            RATES,
            every=1,
        )


@pytest.mark.parametrize("read", [lambda h: h.get("learning_rate"), lambda h: dict(**h)["learning_rate"]])
def test_names_are_found_however_they_are_read(read):
    problem = jaxpt.energy_problem(lambda w: w, lambda key: jnp.ones(()))
    jaxpt.Engine(problem, lambda h: optax.sgd(read(h)), RATES, every=1)


def test_a_schedule_may_add_names_but_not_drop_those_of_the_model():
    fixed = {"dropout_rate": 0.1}
    engine = make_engine(
        rungs=RATES, fixed=fixed, schedule=lambda h, t: {**h, "rate_now": h["learning_rate"] / (1 + t)}
    )
    dataclasses.replace(engine, optimizer=lambda h: optax.sgd(h["rate_now"])).init(jax.random.key(0))
    with pytest.raises(ValueError, match="schedule drops dropout_rate"):
        make_engine(rungs=RATES, fixed=fixed, schedule=lambda h, t: {"learning_rate": h["learning_rate"]})


def test_a_state_of_another_rule_or_ladder_is_refused(data):
    engine = make_engine()
    state = engine.init(jax.random.key(0))
    with pytest.raises(ValueError, match="by an engine with the rule Tempering, but this engine has Independent"):
        dataclasses.replace(engine, rule=jaxpt.Independent()).run(state, data, periods=1)
    renamed = jaxpt.Ladder(learning_rate=[0.1] * 4, dropout_rate=[0.1] * 4, beta="learning_rate", name="other")
    with pytest.raises(ValueError, match="state's ladders are"):
        dataclasses.replace(engine, ladder=renamed).run(state, data, periods=1)


def test_run_itself_refuses_a_reduced_loss(data):
    problem = jaxpt.nnx_problem(
        conftest.NnxNet, lambda model, batch: conftest.loss(model, batch).mean(), energy=conftest.loss
    )
    engine = make_engine(problem)
    with pytest.raises(ValueError, match="the loss must give one number per example"):
        engine.run(engine.init(jax.random.key(0)), data, periods=1)


def test_data_may_be_a_plain_tuple(data):
    make_engine().check(tuple(data))


def test_momentum_to_rescale_must_exist():
    with pytest.raises(ValueError, match="finds no momentum"):
        jaxpt.Engine(
            conftest.nnx_problem(), lambda h: optax.adam(h["learning_rate"]), RATES, every=1,
            fixed={"dropout_rate": 0.1}, rescale_momentum="learning_rate",
        )  # fmt: skip


def test_one_rung_is_enough_without_exchanges():
    make_engine(rungs=jaxpt.Ladder(learning_rate=[0.1]), fixed={"dropout_rate": 0.1}, rule=jaxpt.Independent())


def broken(data, split, **changes):
    return data._replace(**{split: {**getattr(data, split), **changes}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: broken(d, "train", y=d.train["y"][:-1]), r"data\.train must share their first axis"),
        (lambda d: d._replace(train=jax.tree.map(lambda a: a[:10], d.train)), "training split only 10"),
        (lambda d: d._replace(valid=None), "validation split is empty"),
        (lambda d: d._replace(valid=jax.tree.map(lambda a: a[:0], d.valid)), "validation split is empty"),
        (lambda d: d._replace(test=jax.tree.map(lambda a: a[:0], d.test)), "test split is empty"),
        (lambda d: broken(d, "train", y=d.train["y"] + 1), r"labels must lie in 0 \.\. 2"),
        (lambda d: broken(d, "valid", y=d.valid["y"] - 1), r"has labels -1 \.\. 1"),
        (lambda d: broken(d, "test", y=d.test["y"] * 9), "labels must lie in"),
        (lambda d: broken(d, "train", y=d.train["y"].astype(np.float32)), "labels must be integers"),
        (lambda d: broken(d, "train", y=d.train["y"][:, None]), "labels need one class per example"),
        (lambda d: d._replace(valid={"x": d.valid["x"]}), r"fails on data\.valid: KeyError: 'y'"),
        (
            lambda d: d._replace(train=[d.train, d.train]),
            r"a list of minibatches is not a stream: give fit iter",
        ),
        (lambda d: broken(d, "test", x=d.test["x"][:, :2]), r"fails on data\.test: "),
        (lambda d: d._replace(train=jax.tree.map(lambda a: a[:0], d.train)), "train split is empty"),
        (lambda d: None, "the loss fails without data"),
    ],
)
@pytest.mark.parametrize("on_device", [False, True])
def test_each_mistake_in_the_data_has_a_message_of_its_own(change, message, on_device, data):
    bad = change(data)
    with pytest.raises(ValueError, match=message):
        make_engine().check(jax.device_put(bad) if on_device else bad)


@pytest.mark.parametrize("reduce", [jnp.mean, lambda x: x[:, None], lambda x: x[:5]])
def test_a_loss_must_be_per_example(reduce, data):
    problem = jaxpt.nnx_problem(conftest.NnxNet, lambda model, batch: reduce(conftest.loss(model, batch)))
    with pytest.raises(ValueError, match="loss must give one number per example"):
        make_engine(problem).check(data)
    metric = {"score": lambda model, batch: reduce(conftest.loss(model, batch))}
    with pytest.raises(ValueError, match="score must give one number per example"):
        make_engine(jaxpt.nnx_problem(conftest.NnxNet, conftest.loss, metrics=metric)).check(data)


def test_a_probe_must_fit_into_the_validation_split(data):
    with pytest.raises(ValueError, match="probe=51"):
        make_engine(probe=51).check(data)


def test_names_read_in_the_loss_are_checked_with_the_data(data):
    fixed = {"dropout_rate": 0.1, "label_smoothing": 0.1}
    good = make_engine(SMOOTHED, RATES, fixed=fixed)
    good.check(data)
    with pytest.raises(ValueError, match="loss reads the hyperparameter 'label_smoothing'"):
        dataclasses.replace(good, fixed={"dropout_rate": 0.1}).check(data)
    with pytest.raises(ValueError, match=r"nothing reads the hyperparameter\(s\) labelsmoothing"):
        dataclasses.replace(good, fixed={**fixed, "labelsmoothing": 0.1}).check(data)


def test_run_itself_refuses_data_that_does_not_fit(data):
    engine = make_engine()
    state = engine.init(jax.random.key(0))
    with pytest.raises(ValueError, match="validation split is empty"):
        engine.run(state, data._replace(valid=None), periods=1)
    with pytest.raises(ValueError, match="training split only 10"):
        engine.run(state, data._replace(train=jax.tree.map(lambda a: a[:10], data.train)), periods=1)


def test_good_data_passes_and_nothing_is_computed(data):
    make_engine().check(data)
