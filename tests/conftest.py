"""Small real problems that several tests share."""

import dataclasses
import functools
import gc
import os
import shutil
import tempfile

import jax
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax._src import compiler

import jaxpt

FEATURES, CLASSES = 6, 3
LONGEST = {
    f"test_{name}"
    for name in (
        *("kill", "engine", "reproduce", "checkpoint", "placement", "processes", "readme", "guide", "replica_axis"),
    )
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


def compiles_as_users_do(item):
    return item.get_closest_marker("users_compiler") is not None


def pytest_collection_modifyitems(items):
    """The files that take longest come first, then those with slow tests: no worker begins with one at the end.

    In a file those that compile as users do come last, so that the compiler changes once.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    files = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
    first = lambda path: (path.stem not in LONGEST, path not in slow, files[path])
    items.sort(key=lambda item: (*first(item.path), compiles_as_users_do(item)))


def pytest_collection_finish():
    """The collector looks at what tests make, and less often; 5 % of a test's processor time went into modules."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


DONE = pytest.StashKey[list[int]]()

CHOOSES_EMITTERS = jax.__version_info__ < (0, 11)
"""Whether XLA:CPU still has its older code generator, and an option for it."""
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""The environment of programs that tests start: they compile in a quarter of the time."""
if CHOOSES_EMITTERS:
    QUICK["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"


def compile_quickly(quick):
    """From here on programs compile quickly, or as users' programs do."""
    if quick != jax.config.read("jax_disable_most_optimizations"):
        jax.clear_caches()  # JAX would take a program of before for the same one, compiled the other way
        jax.config.update("jax_disable_most_optimizations", quick)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Compiled programs are dropped after a file once there have been 200 tests: they take gigabytes in the end."""
    done = item.config.stash.setdefault(DONE, [0])
    done[0] += 1
    result = yield
    if done[0] >= 200 and (nextitem is None or nextitem.path != item.path):
        jax.clear_caches()
        done[0] = 0
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Programs compile quickly, unless a test compares bits of different programs; before any fixture is made."""
    quick = not compiles_as_users_do(item)
    compile_quickly(quick)
    for name, value in QUICK.items():  # JAX has read the environment of this process already
        if quick:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)


def with_quick_emitters(options):
    """Returns JAX's function that makes XLA's options, with the older code generator for programs that compile quickly.

    The newer one (fusion emitters) takes 40 % of the time that is left without LLVM's optimisation.
    """

    @functools.wraps(options)
    def made(*args, **kwargs):
        found = options(*args, **kwargs)
        if jax.config.read("jax_disable_most_optimizations"):
            found.env_option_overrides = [*found.env_option_overrides, ("xla_cpu_use_fusion_emitters", False)]
        return found

    return made


if CHOOSES_EMITTERS:
    compiler.get_compile_options = with_quick_emitters(compiler.get_compile_options)


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


class SmallNet(nnx.Module):
    """Dense, BatchNorm, dropout: all kinds of state and of draws, compiled in two thirds of the time."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.dense = nnx.Linear(FEATURES, CLASSES, rngs=rngs)
        self.norm = nnx.BatchNorm(CLASSES, momentum=0.9, rngs=rngs)
        self.dropout = jaxpt.Dropout("dropout_rate", rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.dense(x)))


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
    return jaxpt.zero_one_loss(model(batch["x"]), batch["y"])


@functools.cache
def nnx_problem():
    return jaxpt.nnx_problem(NnxNet, loss, metrics={"error": error})


@functools.cache
def small_problem():
    return jaxpt.nnx_problem(SmallNet, loss, metrics={"error": error})


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


def assert_same(one, other):
    """Two trees have the same bits; keys as their numbers."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = (jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        np.testing.assert_array_equal(a, b)


def traces_of(engine, data, field):
    """A function of a field's value: how often a run of the engine with it, and its making, trace the optimiser."""
    traces = 0

    def counted(h):
        nonlocal traces
        traces += 1
        return sgd(h)

    def trained(value):
        before = traces
        made = dataclasses.replace(engine, optimizer=counted, **{field: value})
        made.run(made.init(jax.random.key(0)), data, periods=2, max_periods=4)
        return traces - before

    return trained


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
