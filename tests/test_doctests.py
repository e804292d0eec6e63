"""The examples in the docstrings work as they stand there; they share the small run that is made here."""

import dataclasses
import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxpt

MODULES = [importlib.import_module(found.name) for found in pkgutil.walk_packages(jaxpt.__path__, "jaxpt.")]
EXAMPLES = [
    example
    for module in MODULES
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    if example.examples
]
SHOWN = {
    "Ladder",
    "linear",
    "geometric",
    "Tempering",
    "PBT",
    "product",
    "LogUniform",
    "Uniform",
    "Choice",
    "exchange",
    "Engine",
    "fit",
    "Result",
    "nnx_problem",
    "linen_problem",
    "equinox_problem",
    "energy_problem",
    "cross_entropy",
    "zero_one_loss",
    "sampler",
    "diffusion",
    "compile_for",
    "tune",
    "ensemble",
    "compare",
    "Comparison",
    "ensemble_weights",
    "Ensemble",
    "calibration_error",
    "lineage",
    "replay",
    "diagnose",
    "suggest_replicas",
}


class Net(nnx.Module):
    def __init__(self, *, rngs):
        self.hidden, self.out = nnx.Linear(2, 16, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))


@pytest.fixture(scope="module")
def names():
    """What an example may use: the README's first example, smaller."""
    x = np.random.default_rng(0).normal(size=(240, 2)).astype(np.float32)
    data = {"x": x, "y": (x[:, 0] * x[:, 1] > 0).astype(np.int32)}
    train, valid = ({name: leaf[rows] for name, leaf in data.items()} for rows in (slice(160), slice(160, None)))
    loss = lambda model, batch: jaxpt.cross_entropy(model(batch["x"]), batch["y"])
    problem = jaxpt.nnx_problem(Net, loss, predict=lambda model, batch: model(batch["x"]))
    sgd = lambda h: optax.sgd(h["learning_rate"], momentum=0.9)
    ladder = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.05, 0.3, 4))
    engine = jaxpt.Engine(problem, sgd, ladder, jaxpt.Tempering(C=100.0), every=10, batch_size=32)
    result = jaxpt.fit(engine, train, valid, steps=200)
    made = {"problem": problem, "loss": loss, "engine": engine, "train": train, "valid": valid, "result": result}
    modules = {"dataclasses": dataclasses, "jax": jax, "jnp": jnp, "np": np, "optax": optax, "nnx": nnx, "linen": linen}
    return {"jaxpt": jaxpt, **modules, **made}


LONG = {"tune", "compare", "Comparison", "with_average", "Cooldown", "equinox_problem", "diffusion"}
"""Those that compile several programs."""


def marks(example):
    return [pytest.mark.slow] if example.name.split(".")[-1] in LONG else []


@pytest.mark.parametrize("example", [pytest.param(e, id=e.name, marks=marks(e)) for e in EXAMPLES])
def test_the_example_runs(example, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = []
    example.globs = dict(names)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(example, out=told.append)
    assert not runner.failures, "".join(told)


def test_the_main_names_have_examples():
    shown = {example.name.removeprefix("jaxpt.").split(".")[-1] for example in EXAMPLES}
    assert set(jaxpt.__all__) >= SHOWN
    assert SHOWN - shown == set()


def test_every_public_name_says_what_it_is():
    aliases = {"Callback"}
    for name in set(jaxpt.__all__) - aliases:
        assert (getattr(jaxpt, name).__doc__ or "").strip(), name
