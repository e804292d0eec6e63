"""Small real problems that several tests share."""

import functools
import os
import shutil
import tempfile

import jax
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxpt

FEATURES, CLASSES = 6, 3
LONGEST = {
    f"test_{name}"
    for name in ("kill", "engine", "reproduce", "checkpoint", "placement", "processes", "readme", "guide")
}
"""Files of two minutes and more."""


def pytest_configure(config):
    """What one process of a test run has compiled, the others load: workers, and the programs that tests start."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    directory = tempfile.mkdtemp(prefix="jaxpt-compiled-")
    config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": directory, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    jax.config.update("jax_compilation_cache_dir", directory)  # the workers' JAX reads the environment
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_collection_modifyitems(items):
    """The files that take longest come first, then those with slow tests: no worker begins with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.stem not in LONGEST, item.path not in slow))


class NnxNet(nnx.Module):
    """Dense, BatchNorm, tanh, dropout, dense."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.dense1 = nnx.Linear(FEATURES, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.dropout = jaxpt.Dropout("dropout_rate", rngs=rngs)
        self.stock = nnx.Dropout(0.1, rngs=rngs)
        self.dense2 = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.dense2(self.stock(self.dropout(jax.numpy.tanh(self.norm(self.dense1(x))))))


class LinenNet(linen.Module):
    """The same in Linen."""

    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.Dense(16)(x)
        x = jax.numpy.tanh(linen.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = jaxpt.linen.Dropout("dropout_rate")(x, deterministic=not train)
        x = linen.Dropout(0.1, deterministic=not train)(x)
        return linen.Dense(CLASSES)(x)


def loss(model, batch):
    return jaxpt.cross_entropy(model(batch["x"]), batch["y"])


def error(model, batch):
    return jaxpt.errors(model(batch["x"]), batch["y"])


@functools.cache
def nnx_problem():
    return jaxpt.nnx_problem(NnxNet, loss, metrics={"error": error})


@functools.cache
def linen_problem():
    return jaxpt.linen_problem(LinenNet(), loss, example=np.zeros((1, FEATURES), np.float32), metrics={"error": error})


def sgd(h):
    return optax.sgd(h["learning_rate"], momentum=0.9)


def ladder(num_rungs=4):
    return jaxpt.Ladder(
        learning_rate=jaxpt.geometric(0.02, 0.2, num_rungs),
        dropout_rate=jaxpt.linear(0.05, 0.4, num_rungs),
        beta="learning_rate",
    )


def make_engine(problem=None, rungs=None, **settings):
    settings = {"every": 5, "batch_size": 16, **settings}
    return jaxpt.Engine(problem or nnx_problem(), sgd, rungs or ladder(), **settings)


def examples():
    """Three classes that a nonlinear function of six numbers tells apart: 100 / 50 / 40 examples."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(190, FEATURES)).astype(np.float32)
    y = ((x[:, 0] * x[:, 1] > 0).astype(np.int32) + (x[:, 2] > 0)).astype(np.int32)
    split = lambda a, b: {"x": x[a:b], "y": y[a:b]}
    return jaxpt.Data(split(0, 100), split(100, 150), split(150, 190))


@pytest.fixture(scope="session")
def data():
    """The same, made once."""
    return examples()


@pytest.fixture(scope="module")
def quick_compiler():
    """For files that test what a program says, not its bits or speed: it compiles in half the time."""
    jax.clear_caches()  # JAX would take a program of another file for the same one, compiled the other way
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # the programs that a test starts
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
