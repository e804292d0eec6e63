"""A user's module for the type checker: the interface says what it takes and gives, and hides nothing behind Any.

It is not run: `mypy --strict` reads it in `.ci/run`, against the wheel.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, assert_type

import jax
import numpy as np
import optax  # type: ignore[import-untyped]
from flax import nnx

import jaxpt


class Net(nnx.Module):
    """One dense layer."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.out = nnx.Linear(2, 2, rngs=rngs)
        self.dropout = jaxpt.Dropout("dropout_rate", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits."""
        return self.dropout(self.out(x))


def loss(model: Net, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns [B]."""
    return jaxpt.cross_entropy(model(batch["x"]), batch["y"])


def sgd(hyper: Mapping[str, jax.Array]) -> Any:
    """Returns the optimiser."""
    return optax.sgd(hyper["learning_rate"])


def adapted(base: Net) -> jaxpt.Problem:
    """Returns a problem that trains adapters and is scored with their average."""
    return jaxpt.with_average(jaxpt.nnx_problem(Net, loss, wrt=nnx.LoRAParam, start=base), 0.99)


def train(x: np.ndarray, y: np.ndarray) -> jaxpt.Result:
    """Uses the main names."""
    split = {"x": x, "y": y}
    problem = assert_type(jaxpt.nnx_problem(Net, loss), jaxpt.Problem)
    assert_type(jaxpt.equinox_problem(lambda key: None, loss, predict=lambda model, batch: model(batch)), jaxpt.Problem)
    assert_type(jaxpt.equinox.Dropout("dropout_rate").strength, jaxpt.equinox.Hyperparameter)
    ladder = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.01, 0.1, 4), name="rates")
    assert_type(ladder.num_rungs, int)
    grid = jaxpt.Ladder(**jaxpt.product(learning_rate=[0.1, 0.2], dropout_rate=np.array([0.0, 0.1])))
    assert_type(grid, jaxpt.Ladder)
    jaxpt.PBT(explore={"learning_rate": jaxpt.LogUniform(1e-4, 1.0), "batch_size": jaxpt.Choice([16, 32])})
    jaxpt.PBT(explore={"dropout_rate": jaxpt.Uniform(0, 0.5, step=0.1)})
    rules: list[jaxpt.Rule] = [jaxpt.Tempering("auto", "deo"), jaxpt.Independent(), jaxpt.PBT(), jaxpt.CopyBest()]
    engine = jaxpt.Engine(problem, sgd, ladder, rules[0], every=10, fixed={"dropout_rate": 0.1})
    state = assert_type(engine.init(jax.random.key(0)), jaxpt.RunState)
    state, trace = engine.run(state, jaxpt.Data(split, split), periods=2)
    assert_type(trace, jaxpt.Trace)
    assert_type(trace.info, jaxpt.Info)
    assert_type(trace.rung["rates"].shape, tuple[int, ...])
    result = assert_type(jaxpt.fit(engine, split, split, steps=100, seeds=range(2)), jaxpt.Result)
    best = assert_type(result.best("energy", seed=0), jaxpt.Best)
    assert_type(best.replica, int)
    assert_type(result.coldest(2, seed=1), list[jaxpt.Best])
    mixed = assert_type(result.ensemble(seed=0, weighted_on=split), jaxpt.Ensemble)
    calibration = assert_type(jaxpt.calibration_error(lambda p, batch: (p, batch["y"])), jaxpt.Metric)
    assert_type(mixed.evaluate(split, {"ece": calibration}), dict[str, float])
    assert_type(mixed.disagreement(split), float)
    assert_type(jaxpt.load_ensemble("mixed", problem), jaxpt.Ensemble)
    jaxpt.ensemble(engine, state, split, {"ece": calibration}, weights=[0.5, 0.5, 0.0, 0.0])
    assert_type(jaxpt.ensemble_weights(engine, state, split), jax.Array)
    assert_type(result.summary(), jaxpt.Summary)
    assert_type(result.lineage(seed=0), jaxpt.Lineage)
    assert_type(best.valid, dict[str, float])
    path = assert_type(jaxpt.lineage(result.trace, best.replica, seed=0), jaxpt.Lineage)
    assert_type(path.to_json(), str)
    assert_type(jaxpt.suggest_replicas(result.trace), int)
    assert_type(jaxpt.replay(path, engine, split, split), jaxpt.Result)
    walls = jaxpt.sampler(lambda w: w**2, jax.random.normal, temperature=[1.0, 2.0], step_size=0.1, every=5)
    assert_type(walls, jaxpt.Engine)
    assert_type(jaxpt.diagnostics.log_evidence(result.trace), jaxpt.diagnostics.LogEvidence)
    found = jaxpt.diffusion(engine, split, steps=10, start=0.1)
    assert_type(found, jaxpt.Diffusion)
    both = {"tempering": engine, "grid": dataclasses.replace(engine, rule=jaxpt.Independent())}
    compared = assert_type(jaxpt.compare(both, split, split, steps=10, save_minutes=5.0), jaxpt.Comparison)
    assert_type(compared.arms["grid"], jaxpt.Arm)
    assert_type(compared.equal_compute, bool)
    assert_type(jaxpt.use_all_cores(), int)
    jaxpt.fit(engine, split, split, steps=10, callbacks=[lambda status: status.step > 5], patience=3)
    return result
