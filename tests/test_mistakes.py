"""What a clumsy user does ends in words that name the argument, say what was given and what to do."""

import dataclasses
import functools
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
from tests import conftest
from tests.conftest import FEATURES, LinenNet, NnxNet, loss, sgd

LADDER = jaxpt.Ladder(learning_rate=[0.1, 0.2])
ONE = np.zeros((1, FEATURES), np.float32)


@functools.cache
def engine():
    return conftest.make_engine()


@functools.cache
def result():
    """Of a run whose model says no probabilities."""
    wells = jaxpt.energy_problem(lambda w: w**2, jax.random.normal)
    return jaxpt.fit(jaxpt.Engine(wells, sgd, LADDER, every=2), steps=4)


def sampled(**options):
    """A sampler with these options beside the least that it needs."""
    return jaxpt.sampler(lambda w: w**2, jax.random.normal, step_size=0.1, every=5, **options)


def problem():
    return jaxpt.nnx_problem(lambda rngs: nnx.Linear(FEATURES, 3, rngs=rngs), loss, predict=lambda m, b: m(b["x"]))


GRID = jaxpt.Ladder(**jaxpt.product(learning_rate=[0.1, 0.2], dropout_rate=[0.0, 0.3]))


def exploring(**spaces):
    return dataclasses.replace(engine(), ladder=GRID, rule=jaxpt.PBT(explore=spaces))


def sized(space):
    sizes = jaxpt.Ladder(batch_size=[16, 8])
    rule = jaxpt.PBT(explore={"batch_size": space})
    return dataclasses.replace(engine(), ladder=sizes, rule=rule, fixed={"learning_rate": 0.1, "dropout_rate": 0.1})


def walked(steps):
    jaxpt.diffusion(
        jaxpt.Engine(jaxpt.energy_problem(lambda w: w**2, jax.random.normal), sgd, LADDER, every=2), steps=steps
    )


MISTAKES = {
    **{
        f"steps must be an integer, a positive multiple of the engine's every, but steps={steps!r}": functools.partial(
            walked, steps
        )
        for steps in (50.0, "50", None)
    },
    "learning_rate needs numbers, one per rung, but it is ['a']": lambda: jaxpt.Ladder(learning_rate=["a"]),
    "learning_rate=[0.01, 0.02] say, but the shapes are learning_rate: ()": lambda: jaxpt.Ladder(learning_rate=0.1),
    "beta needs numbers, one per rung, but it is ['x', 'y']": lambda: jaxpt.Ladder(decay=[1, 2], beta=["x", "y"]),
    "name must be a string, the ladder's key in the trace, but it is 3": lambda: jaxpt.Ladder(decay=[1, 2], name=3),
    "learning_rate is traced, but a ladder is made of known numbers; make it outside jit": lambda: jax.jit(
        lambda v: jaxpt.Ladder(learning_rate=v).beta
    )(jnp.ones(2)),
    "C is traced, but a rule is made of known numbers; make it outside jit": lambda: jax.jit(
        lambda C: jaxpt.Tempering(C).C
    )(1.0),
    "target must be an acceptance probability between 0 and 1, but it is 'half'": lambda: jaxpt.Tempering(
        1.0, target="half"
    ),
    "quantile must be a number, but it is of <class 'jaxpt.core.ladder.Ladder'>": lambda: jaxpt.PBT(LADDER),
    "needs a row of numbers, [0.01, 0.02] say, but its shape is ()": lambda: jaxpt.product(learning_rate=0.1),
    "a product needs at least one hyperparameter": lambda: jaxpt.product(),
    "learning_rate needs numbers, a row of them, but it is ['0.1']": lambda: jaxpt.product(learning_rate=["0.1"]),
    "dropout_rate needs numbers, a row of them, but it is [True]": lambda: jaxpt.product(dropout_rate=[True]),
    "the values of learning_rate must be finite, but they are [nan]": lambda: jaxpt.product(learning_rate=[np.nan]),
    "no order from cold to hot, so give the engine rule=jaxpt.Independent() or jaxpt.PBT()": lambda: (
        dataclasses.replace(engine(), ladder=GRID)
    ),
    "or leave search out for a grid (jaxpt.product), which has no such order": lambda: dataclasses.replace(
        engine(), ladder=GRID, rule=jaxpt.Independent(), search=0.1
    ),
    "explore must be {name: space}": lambda: jaxpt.PBT(explore={"learning_rate": (0.1, 1.0)}),
    "explore names 'momentum', but the ladders hold learning_rate, dropout_rate; put": lambda: exploring(
        momentum=jaxpt.Uniform(0, 1)
    ),
    "that it cannot take: dropout_rate must lie between 0 and 1": lambda: exploring(dropout_rate=jaxpt.Uniform(0, 2)),
    "that it cannot take: batch_size must be a whole number of examples": lambda: sized(jaxpt.Choice([2, 8.5, 16])),
    "explore['batch_size'] reaches 64, but the engine draws minibatches of batch_size=16": lambda: sized(
        jaxpt.Choice([8, 16, 64])
    ),
    "learning_rate begins with [0.2] on its ladder, outside of explore['learning_rate'] =": lambda: exploring(
        learning_rate=jaxpt.LogUniform(0.01, 0.15)
    ),
    "give bounds instead of a Choice, or leave search out": lambda: dataclasses.replace(
        engine(),
        ladder=jaxpt.Ladder(learning_rate=[0.1, 0.2]),
        fixed={"dropout_rate": 0.1},
        rule=jaxpt.PBT(explore={"learning_rate": jaxpt.Choice([0.1, 0.2])}),
        search=0.1,
    ),
    "low of a LogUniform must be a finite number above 0, in float32, but it is 0": lambda: jaxpt.LogUniform(0, 1),
    "low of a LogUniform must be a finite number above 0, in float32, but it is 1e-50": (
        lambda: jaxpt.LogUniform(1e-50, 1)
    ),
    "low of a Uniform must be below high, also in float32, but they are 1.0 and 0.5": lambda: jaxpt.Uniform(1, 0.5),
    "high of a Uniform must be a finite number, in float32, but it is '1'": lambda: jaxpt.Uniform(0, "1"),
    "high of a Uniform must be a finite number, in float32, but it is 1e+39": lambda: jaxpt.Uniform(0, 1e39),
    "values of a Choice must be two or more finite numbers, but they are array([[1., 1.]": lambda: jaxpt.Choice(
        np.ones((2, 2))
    ),
    "step of a Uniform must be a positive number, but it is 0": lambda: jaxpt.Uniform(0, 1, 0),
    "values of a Choice must be two or more finite numbers, but they are [16]": lambda: jaxpt.Choice([16]),
    "values of a Choice must be two or more finite numbers, but they are 'ab'": lambda: jaxpt.Choice("ab"),
    "values of a Choice must be different float32 numbers, but they are [1, 1.0]": lambda: jaxpt.Choice([1, 1.0]),
    "num_rungs must be an integer of at least 1, but it is 2.5": lambda: jaxpt.geometric(0.1, 1, 2.5),
    "num_rungs must be an integer of at least 1, but it is -3": lambda: jaxpt.linear(0, 1, -3),
    "start must be a number, but it is '0.1'": lambda: jaxpt.geometric("0.1", 1, 3),
    "optimizer must return an optax transformation, e.g. optax.sgd": lambda: dataclasses.replace(
        engine(), optimizer=lambda h: h["learning_rate"]
    ),
    "optimizer is called as optimizer(hyperparameters), but what was given": lambda: dataclasses.replace(
        engine(), optimizer=lambda: optax.sgd(0.1)
    ),
    "schedule must be a function, called as schedule(hyperparameters, step), but it is 0.1": lambda: (
        dataclasses.replace(engine(), schedule=0.1)
    ),
    "schedule is called as schedule(hyperparameters, step), but what was given": lambda: dataclasses.replace(
        engine(), schedule=lambda h: h
    ),
    "schedule must return all hyperparameters, {**h, ...}, but it returns 0.1": lambda: dataclasses.replace(
        engine(), schedule=lambda h, step: 0.1
    ),
    "fixed must be {name: value}": lambda: dataclasses.replace(engine(), fixed=["momentum"]),
    "fixed['momentum'] must be one finite number, the same for all replicas, not '0.9'": lambda: dataclasses.replace(
        engine(), fixed={"momentum": "0.9"}
    ),
    "periods must be an integer, how many of them, but it is 2.0": lambda: engine().run(None, periods=2.0),
    "state must come from engine.init(key) or an earlier run": lambda: engine().run(jax.random.key(0), periods=2),
    "make must be NnxNet, the class, or a function: each replica gets fresh weights": lambda: jaxpt.nnx_problem(
        NnxNet(rngs=nnx.Rngs(0)), loss
    ),
    "make is called as make(rngs=...), but what was given does not take that": lambda: jaxpt.nnx_problem(loss, NnxNet),
    "make must return an nnx.Module, but make(rngs=...) returns None": lambda: jaxpt.nnx_problem(
        lambda rngs: None, loss
    ),
    "loss must be a function (model, batch) -> [B], but it is None": lambda: jaxpt.nnx_problem(NnxNet, None),
    "energy must be a function (model, batch) -> [B], but it is 'loss'": lambda: jaxpt.nnx_problem(
        NnxNet, loss, energy="loss"
    ),
    "metrics must be {name: function}": lambda: jaxpt.nnx_problem(NnxNet, loss, metrics=[loss]),
    "module must be a Linen module, Net() rather than its class Net": lambda: jaxpt.linen_problem(
        LinenNet, loss, example=ONE
    ),
    "example names the inputs image, but the module's __call__ has no image; it has x, train": lambda: (
        jaxpt.linen_problem(LinenNet(), loss, example={"image": ONE})
    ),
    "gradient noise needs real numbers, but some are complex": lambda: dataclasses.replace(
        engine(),
        problem=jaxpt.energy_problem(lambda w: abs(w) ** 2, lambda key: jnp.ones((), complex)),
        optimizer=lambda h: optax.chain(jaxpt.gradient_noise(0.1), optax.sgd(h["learning_rate"])),
        ladder=LADDER,
    ),
    "init must be a function, called as init(key)": lambda: jaxpt.energy_problem(lambda w: w**2, jnp.zeros(3)),
    "must give one number, not shape (3,)": lambda: jaxpt.energy_problem(lambda w: w, jax.random.normal).evaluate(
        jnp.zeros(3), (), None
    ),
    "problem must come from nnx_problem": lambda: jaxpt.with_weight_noise(NnxNet),
    "dtype must be a floating-point type, e.g. jax.numpy.bfloat16, but it is 'bf16'": lambda: jaxpt.with_compute_dtype(
        conftest.nnx_problem(), "bf16"
    ),
    "Dropout('dropout_rate', rngs=rngs) say, but it is 0.5": lambda: jaxpt.Dropout(0.5, rngs=nnx.Rngs(0)),
    "hyperparameter must be a name, 'dropout_rate' say, but it is 0.5": lambda: jaxpt.linen.Dropout(0.5),
    "engine must be a jaxpt.Engine, but it is of <class 'dict'>; call fit(engine, train, valid, steps=...)": lambda: (
        jaxpt.fit({"x": ONE}, engine(), steps=10)
    ),
    "data.train holds Python numbers, lists of them perhaps; make arrays": lambda: jaxpt.fit(
        engine(), {"x": [[1.0]], "y": [0]}, {"x": ONE}, steps=10
    ),
    "data.train must be arrays, but it holds a function; call it": lambda: jaxpt.fit(
        engine(), lambda: iter([]), {"x": ONE}, steps=10
    ),
    "data.valid must be arrays, but it holds a list_iterator; only the training split may be a stream": lambda: (
        jaxpt.fit(engine(), {"x": ONE}, iter([{"x": ONE}]), steps=10)
    ),
    "as data.valid: fit(engine, train, valid) or jaxpt.Data(train, valid)": lambda: jaxpt.fit(
        engine(), conftest.examples().train, steps=10
    ),
    "logits must be an array, but it is [[0.0, 1.0]]": lambda: jaxpt.cross_entropy([[0.0, 1.0]], [1]),
    "labels need one class per example, shape (4,)": lambda: jaxpt.zero_one_loss(
        jnp.zeros((4, 2)), jnp.zeros((4, 1), int)
    ),
    "trace must be a run's trace, result.trace": lambda: jaxpt.lineage(result(), 0),
    "run's trace, result.trace, but it is of <class 'jaxpt.results.result.Result'>": lambda: jaxpt.suggest_replicas(
        result()
    ),
    "replica must be one of 0 .. 1, but it is 0.0": lambda: jaxpt.lineage(result().trace, 0.0),
    "result.trace, but it is of <class 'jaxpt.results.result.Result'>": lambda: jaxpt.diagnose(result()),
    "takes what jaxpt.lineage gave, and the engine that made it": lambda: jaxpt.replay(engine(), result().trace, None),
    "metrics must be {name: function(probabilities, batch)}": lambda: jaxpt.ensemble(
        conftest.make_engine(problem(), LADDER), result().state, {"x": ONE}, loss
    ),
    "examples holds no arrays": lambda: jaxpt.ensemble(
        conftest.make_engine(problem(), LADDER), result().state, None, {"error": lambda p, batch: p[:, 0]}
    ),
    "weights must have shape (2,), one number per replica, or (K, 2) for K ensembles, but their shape is": lambda: (
        jaxpt.ensemble(
            conftest.make_engine(problem(), LADDER),
            result().state,
            conftest.examples().valid,
            {"error": lambda p, batch: p[:, 0]},
            weights=[1, 2, 3],
        )
    ),
    "best must be 1 .. 2, the number of replicas, but it is 1.5": lambda: result().ensemble(best=1.5),
    "the problem has no predictions; give nnx_problem or linen_problem predict=": lambda: result().ensemble(best=1),
    "problem must be the jaxpt.Problem of the run, as nnx_problem returns it, but it is of": lambda: (
        jaxpt.load_ensemble("nowhere", NnxNet)
    ),
    "bins must be an integer of at least 1, but it is 1.5": lambda: jaxpt.calibration_error(lambda p, b: (p, b), 1.5),
    "step_size must be positive, one number or one per rung, but it is 'a'": lambda: jaxpt.sampler(
        lambda w: w**2, jax.random.normal, temperature=[1.0, 2.0], step_size="a", every=5
    ),
    "give temperature=[...] or inverse_temperature=[...], one number per rung, and not both": lambda: sampled(),
    "inverse_temperature and init_is_prior are for prior(W) exp(-beta E)": lambda: sampled(inverse_temperature=[1, 0]),
    "with a prior give inverse_temperature=[1.0, ..., 0.0], which may reach 0": lambda: sampled(
        temperature=[1.0, 2.0], prior=lambda w: -(w**2)
    ),
    "the smallest inverse temperature is 0.5; add 0.0 to the ladder": lambda: sampled(
        inverse_temperature=[1.0, 0.5], prior=lambda w: -(w**2), init_is_prior=True
    ),
    "inverse_temperature must be a row of numbers, 0 or more": lambda: sampled(
        inverse_temperature=[1.0, -0.5], prior=lambda w: -(w**2)
    ),
    "scale must be positive and finite, a number or a pytree": lambda: sampled(temperature=[1.0, 2.0], scale=0.0),
    "scale must be a number or a pytree like the weights": lambda: sampled(temperature=[1.0, 2.0], scale={"x": 1.0}),
    "of shape () it has shape (3,)": lambda: sampled(temperature=[1.0, 2.0], scale=np.ones(3)),
    "weights of float32 or float64, or moves would be rounded, but it is bfloat16": lambda: jaxpt.sampler(
        lambda w: w, lambda key: jnp.zeros((), jnp.bfloat16), temperature=[1.0], step_size=0.1, every=1
    ),
    "energy must return one number, but it returns shape (2,)": lambda: jaxpt.sampler(
        lambda w: w, lambda key: jnp.zeros(2), temperature=[1.0], step_size=0.1, every=1
    ),
    "draws must be a function, called as draws(params), but it is 'x'": lambda: sampled(
        temperature=[1.0, 2.0], draws="x"
    ),
    "target must be an acceptance probability between 0 and 1": lambda: sampled(temperature=[1.0, 2.0], target=57),
    "move is called as move(log_density, step_size)": lambda: sampled(temperature=[1.0, 2.0], move=lambda h: h),
    "scale and init_is_prior are for the sampler's own move": lambda: sampled(
        temperature=[1.0, 2.0], move=lambda density, h: None, scale=2.0
    ),
    "the step size is adapted once a period of burn-in, but burn_in=0 holds no period": lambda: sampled(
        temperature=[1.0, 2.0], adapt_step_size=True
    ),
    "adapt_ladder=True moves the rungs between two ends, but there is one rung": lambda: sampled(
        temperature=[1.0], adapt_ladder=True
    ),
    "the run has kept no draws; make its engine with draws=": lambda: result().draws(),
    "thin must be an integer of at least 1, but it is 0": lambda: jaxpt.fit(
        sampled(temperature=[1.0]), steps=5, progress=False
    ).draws(thin=0),
    "seeds must be one or more different integers, e.g. range(5), but they are 5": lambda: jaxpt.diffusion(
        result().engine, steps=10, seeds=5
    ),
    "diffusion(engine, train, steps=...) takes a jaxpt.Engine first, but it is a Problem": lambda: jaxpt.diffusion(
        problem(), steps=10
    ),
    "mesh must be devices, e.g. jax.devices()[:4]": lambda: jaxpt.placement.shard_map(4),
}


def said():
    """Returns {message: what was said instead, or None}; makes all the mistakes."""
    found = {}
    for message, mistake in MISTAKES.items():
        try:
            mistake()
            found[message] = "nothing"
        except Exception as error:
            right = isinstance(error, ValueError) and message in str(error)
            found[message] = None if right else f"{type(error).__name__}: {error}"
    return found


@pytest.fixture(scope="module")
def all_said():
    """The same in a process without the tests' checks of types, which users do not have either."""
    code = "import json; from tests import test_mistakes; print(json.dumps(test_mistakes.said()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_said_in_words(message, all_said):
    assert all_said[message] is None
