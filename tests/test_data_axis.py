"""Replicas on several devices each: `placement.grid` divides their minibatches."""

import json
import os
import subprocess
import sys

import jax
import pytest

import jaxpt
from jaxpt.devices.placement import grid
from tests.conftest import QUICK


@pytest.fixture(scope="module")
def found():
    """What `tests/on_a_grid.py` found: four groups of two devices beside one device."""
    others = {name: value for name, value in os.environ.items() if name not in QUICK}  # it chooses by itself
    command = [sys.executable, "-m", "tests.on_a_grid"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=others)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["shared minibatches", "own minibatches", "batch sizes on the ladder", "the loss as a function"]
)
def test_a_divided_minibatch_gives_the_steps_of_a_whole_one(case, found):
    """Also the short last ones, whose examples are not shared evenly; up to rounding."""
    assert found[case]["apart"] < 5e-6
    assert found[case]["same swaps"]
    assert found[case]["swaps"] > 0


@pytest.mark.slow
def test_streams_are_divided_too(found):
    assert found["stream"] < 5e-6


@pytest.mark.slow
def test_batch_norm_has_the_statistics_of_the_parts(found):
    assert found["running mean"] < 1e-7, "the mean of the parts' means is that of all"
    assert found["running variance"] > 1e-4, "the variance between the parts is not in it"


@pytest.mark.slow
def test_devices_of_a_group_hold_the_same_bits(found):
    assert found["shards alike"]
    assert found["finite"]


@pytest.mark.slow
def test_a_step_sums_gradients_within_groups_and_sends_nothing_else(found):
    assert len(found["a step"]) == 1, "the loop over the steps"
    assert set(found["a step"][0]) == {"all-reduce"}
    # The second is what JAX 0.12 writes: over the axis of examples, the inner one of the mesh.
    assert found["groups"] in (["{{0,1},{2,3},{4,5},{6,7}}"], ["mesh['replica'=4,'example'=2] {'example'}"])


def test_what_does_not_divide_is_refused():
    devices = jax.devices()
    few = f"replicas=2 groups of data=8 take 16 different devices, but there are {len(devices)}"
    with pytest.raises(ValueError, match=few):
        grid(replicas=2, data=8)
    for wrong in (0, 2.0, True, "2"):
        with pytest.raises(ValueError, match=f"data must be an integer of at least 1, but it is {wrong!r}"):
            grid(replicas=1, data=wrong)
    with pytest.raises(ValueError, match="replicas=1 groups of data=2 take 2 different devices, but there are 1"):
        grid(replicas=1, data=2, devices=[devices[0]] * 2)


@pytest.mark.slow
def test_an_engine_refuses_what_its_devices_cannot_share(found):
    odd, without_data = found["refused"]
    assert odd.startswith("batch_size=15 does not split evenly over the 2 devices that share a replica; the nearest")
    assert odd.endswith("numbers that do: 14 and 16")
    assert without_data.startswith("placement.grid divides minibatches, but the problem has no data")


def test_a_group_of_one_is_a_shard():
    assert grid(replicas=1, data=1, devices=jax.devices()[:1]) == jaxpt.placement.shard_map(jax.devices()[:1])
