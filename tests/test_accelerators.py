"""Programs for TPUs, compiled by libtpu without a TPU; skipped where it is not installed.

uv run --extra tpu pytest -n0 -m accelerator
"""

import importlib.util
import json
import math
import os
import subprocess
import sys

import jax
import pytest

import jaxpt
from benchmarks import networks

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.slow,
    pytest.mark.users_compiler,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]
BATCH, REPLICAS, CHIPS = 32, 8, 4
ACTIVATIONS = 28 * 28 * 6 + 14 * 14 * 6 + 10 * 10 * 16 + 5 * 5 * 16 + 120 + 84 + 26
"""Numbers that a LeNet keeps of one image for its gradient: what each layer gives."""


def split(count):
    shape, images = jax.ShapeDtypeStruct, networks.SHAPES["lenet"]
    return {"image": shape((count, *images), "float32"), "label": shape((count,), "int32")}


DATA = jaxpt.Data(split(4 * BATCH), split(2 * BATCH))


def lenet(**settings):
    return jaxpt.Engine(
        networks.problem("lenet", jaxpt.conv_general_dilated),
        networks.optimizer,
        jaxpt.Ladder(learning_rate=jaxpt.geometric(0.005, 0.01, REPLICAS)),
        jaxpt.Tempering(1.0),
        every=5,
        batch_size=BATCH,
        evaluation_batch=BATCH,
        fixed=networks.fixed("lenet"),
        precision="default",
        **settings,
    )


@pytest.fixture(scope="module")
def plan():
    """A program for each of four chips."""
    return jaxpt.compile_for(lenet(), DATA, device="v5e:2x2", periods=2)


def test_chips_train_without_waiting_for_each_other_or_for_the_host(plan):
    assert str(plan.execution) == "vmap over 2 replicas on each of 4 tpu devices"
    assert plan.collectives_in_steps == 0
    assert plan.host_transfers == 0
    assert 1 <= plan.collectives_in_period <= 3, "energies, rungs and hyperparameters, which XLA joins"
    assert 20 < plan.kernels < 600


def test_a_step_keeps_little_more_than_the_activations(plan):
    """Three times as much, when this was written; the arrays of a TPU have rows of 128 numbers, with gaps."""
    assert plan.fits
    assert plan.working < 6 * REPLICAS // CHIPS * BATCH * ACTIVATIONS * 4
    assert plan.data > sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(DATA))


def test_nothing_runs_there():
    devices = jaxpt.studies.targets.target("v5e").devices
    engine = lenet(placement=jaxpt.placement.single(devices[0]))
    assert engine.placed.platform == "tpu"
    assert engine.abstract_data(DATA).train["label"].sharding.device_set == set(devices)
    with pytest.raises(ValueError, match="nothing runs on TPU v5 lite: this device is not there"):
        jaxpt.fit(engine, DATA.train, DATA.valid, steps=1)
    assert jaxpt.devices.memory.limit(engine.placed) is None


def test_a_wrong_topology_is_explained():
    with pytest.raises(ValueError, match=r"there is no topology 'v5e:3x3' .*; the smallest of its kind is .v5e:2x2."):
        jaxpt.compile_for(lenet(), DATA, device="v5e:3x3")
    with pytest.raises(ValueError, match="8 replicas do not split evenly over 16 devices"):
        jaxpt.compile_for(lenet(), DATA, device="v5e:4x4")


TOO_MUCH = """
import json, jax, jaxpt, jax.numpy as jnp
problem = jaxpt.energy_problem(lambda w: jnp.sum(w**2), lambda key: jnp.zeros((2**30, 4)))
ladder = jaxpt.Ladder(temperature=[1.0, 2.0])
engine = jaxpt.Engine(problem, lambda h: jaxpt.langevin(0.1, h["temperature"]), ladder, every=2, precision="default")
print(json.dumps(jaxpt.compile_for(engine, device="v5e").as_dict()))
"""


def test_a_run_that_is_too_large_is_refused_by_the_compiler_and_reported():
    """In an environment without any setting for libtpu."""
    others = {name: value for name, value in os.environ.items() if "TPU" not in name}
    done = subprocess.run([sys.executable, "-c", TOO_MUCH], capture_output=True, text=True, env=others)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fits"] is False
    assert found["advice"].startswith("the compiler refuses the program: ")
