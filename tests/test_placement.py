"""Several devices are several processes' worth of state, so what needs them runs in one process of its own."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt.devices import memory
from jaxpt.devices.fitting import automatic
from jaxpt.devices.placement import pmap, shard_map, single, use_all_cores
from tests import in_processes
from tests.conftest import QUICK, make_engine


@pytest.fixture(scope="module")
def found():
    """What `tests/on_eight_devices.py` found."""
    command = [sys.executable, "-m", "tests.on_eight_devices"]
    others = {name: value for name, value in os.environ.items() if name not in QUICK}  # it chooses by itself
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=others)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


CASES = {
    "seeds": ["pmap on four", "two groups for the seeds"],
    "copied weights": ["shard_map", "pmap"],
    "200 periods": ["shard_map", "pmap"],
    "stream": ["auto"],
    "own stream": ["auto", "pmap on four"],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_shards_equal_one_device(case, found):
    """With `map` on both sides all numbers are the same to the bit: rungs, exchanges, energies, weights."""
    for way in CASES[case]:
        assert found["equal"][f"{case}: {way}"] == {"rung": 0.0, "accepted": 0.0, "rest": 0.0}, way
    assert found["accepted"][case] > 0


@pytest.mark.slow
def test_a_rule_that_tunes_itself_does_so_alike_on_every_device(found):
    """C and ladder come from a program of another shape, so they may differ by rounding."""
    differs = found["equal"]["tuned: shard_map"]
    assert (differs["rung"], differs["accepted"]) == (0, 0)
    assert differs["rest"] < 1e-5, "absolute, C is of order ten"
    assert found["accepted"]["tuned"] > 0


@pytest.mark.slow
def test_auto_in_shards_equals_auto_on_one_device_up_to_rounding(found):
    assert found["auto"]["execution"] == "map over 2 replicas on each of 4 cpu devices"
    assert found["auto"]["rung"] == 0
    assert found["auto"]["rest"] < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("way", ["shard_map", "pmap"])
def test_no_collective_lies_in_the_training_loop(way, found):
    """The loop over periods shows energies to all; the loops in it, over steps and examples, wait for nobody."""
    loops = found["loops"][way]
    for depth, collectives in loops:
        assert depth == 0 or not collectives
    assert any(collectives and set(collectives) == {"all-gather"} for depth, collectives in loops if depth == 0)
    assert any(depth > 0 for depth, _ in loops)
    assert sorted(found["shapes"][way]) == [[8], [8, 3]], "a rung; an energy and two hyperparameters for each replica"


@pytest.mark.slow
def test_weights_that_a_rule_copies_travel_together(found):
    """One collective for each dtype, besides the rungs and energies: a network has dozens of leaves."""
    assert len(found["copies"]) == 3


@pytest.mark.slow
def test_a_loss_that_waits_for_the_others_is_noticed(found):
    """The test above can fail."""
    assert any(depth > 0 and collectives for depth, collectives in found["loops"]["waiting"])


@pytest.mark.slow
def test_placed_data_and_state_are_not_copied_again(found):
    """Copies between devices would have raised."""
    assert found["compiled again"] == {"shard_map": 0, "pmap": 0}


@pytest.mark.slow
def test_what_comes_out_is_ready_to_use(found):
    assert found["best"] < 1e-6
    assert found["mixture"] < 1e-5


@pytest.mark.slow
def test_numbers_that_do_not_divide(found):
    said = {
        "twelve": "12 replicas do not split evenly over 8 devices; the nearest numbers of rungs that do: 8 and 16",
        "six in groups of four": "6 replicas do not split evenly over 4 devices of each group; the nearest numbers of",
        "three seeds": "3 seeds do not split evenly over 2 groups of devices; the nearest numbers of seeds that do: 2",
        "one ladder": "the placement cuts the seeds into 2 shards, but the run has one ladder; give 2 seeds or a",
        "three groups": "seeds must be how many equal groups the 8 devices form, one of 1, 2, 4, 8, but it is 3",
        "another mesh": "the mesh cuts the seeds into 4 shards, but seeds=2",
        "twice": "replicas are placed along one axis of one or more different devices",
    }
    assert set(found["refused"]) == set(said)
    for case, start in said.items():
        assert found["refused"][case].startswith(start)
    assert found["shards"] == {"1": 1, "2": 2, "3": 3, "4": 4, "5": 5, "6": 6, "8": 8}
    assert found["grid"] == "map over 4 replicas on each of 4 cpu devices"


@pytest.mark.slow
def test_all_cores_after_the_start_is_a_warning_that_says_what_to_do(found):
    assert found["late"].startswith(
        "JAX has started already, with 8 CPU device(s), and keeps them; call jaxpt.use_all_cores()"
    )


def test_one_device_is_the_default_here():
    assert automatic(8) == single()
    assert make_engine().placed.num_shards == 1


@pytest.mark.slow
def test_one_device_named_gives_the_same_bits(data):
    found = []
    for placement in (single(), single(jax.devices()[0]), shard_map(jax.devices()[:1]), pmap(jax.devices()[:1])):
        engine = in_processes.engine(jaxpt.Tempering(3.0), placement=placement)
        state, trace = engine.run(engine.init(jax.random.key(0)), data, periods=2)
        found.append((state.replicas._replace(key=0), trace))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


SECOND = """
import jax, jaxpt
from tests.conftest import examples, make_engine, small_problem

jaxpt.use_all_cores(2)
data, second = examples(), jax.devices()[1]
engine = make_engine(small_problem(), placement=jaxpt.placement.single(second))
assert str(engine.execution(data)) == "vmap over 4 replicas on cpu device", engine.execution(data)
for steps in (10, 20):
    result = jaxpt.fit(engine, data.train, data.valid, steps=steps, directory="run")
    assert {device for leaf in jax.tree.leaves(result.state) for device in leaf.devices()} == {second}
assert result.state.step == 20
assert jax.tree.leaves(engine.evaluate(result.state, data.test))[0].devices() == {second}
state, form, given = engine.init(jax.random.key(0)), engine.abstract(jax.random.key(0)), engine.abstract_data(data)
for arrays, shapes in ((state, form), (engine.placed.put(data), given)):
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding), arrays, shapes)
    assert all(jax.tree.leaves(same))
text = engine.lower(form, given, periods=2).compile().as_text()
assert "num_partitions" not in text.splitlines()[0], "a program for one device"
"""


@pytest.mark.slow
def test_a_run_on_one_device_that_is_named_stays_there(tmp_path):
    paths = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True, cwd=tmp_path, env=paths)
    assert done.returncode == 0, done.stderr[-3000:]


def test_data_as_shapes(data):
    for placement in (single(), single(jax.devices()[0]), shard_map(jax.devices()[:1])):
        engine = make_engine(placement=placement)
        shapes = engine.abstract_data(data)
        assert jax.tree.structure(shapes) == jax.tree.structure(data)
        assert engine.abstract_data(shapes) == shapes
        for shape, array, host in zip(*map(jax.tree.leaves, (shapes, engine.placed.put(data), data)), strict=True):
            assert (shape.shape, shape.dtype) == (array.shape, array.dtype) == (host.shape, array.dtype)
            assert shape.sharding == (None if placement == single() else array.sharding)
    with pytest.raises(ValueError, match="a minibatch has 16 examples, but the training split only 3"):
        make_engine().abstract_data(data._replace(train=jax.tree.map(lambda leaf: leaf[:3], data.train)))


def test_numbers_of_64_bits_become_shapes_of_those_that_jax_computes_with():
    long = {"x": np.zeros((20, 6)), "y": np.zeros(20, np.int64)}
    shapes = make_engine().abstract_data(jaxpt.Data(long, long))
    assert [leaf.dtype for leaf in jax.tree.leaves(shapes.train)] == [np.float32, np.int32]


def test_devices_that_only_compile_are_not_run_on(data, monkeypatch):
    """Without a compiler for such devices one of a CPU stands for them; `test_accelerators` has real ones."""
    engine = make_engine(placement=single(jax.devices()[0]))
    monkeypatch.setattr("jaxpt.devices.placement._only_compiles", lambda device: True)
    said = "nothing runs on cpu: this device is not there, .* see what a run would need there by jaxpt.compile_for"
    for run in (
        lambda: jaxpt.fit(engine, data.train, data.valid, steps=5),
        lambda: engine.init(jax.random.key(0)),
        lambda: engine.placed.put(data),
    ):
        with pytest.raises(ValueError, match=said):
            run()
    assert memory.limit(engine.placed) is None
    assert memory.limit(engine.placed, 1000) == 1000
    engine.abstract(jax.random.key(0))


@pytest.mark.parametrize("device", ["cpu", 0, jax.devices])
def test_one_device_must_be_a_device(device):
    with pytest.raises(ValueError, match=r"device must be one of jax.devices\(\), e.g. jax.devices\(\)\[0\], but"):
        single(device)


@pytest.mark.parametrize("devices", [0, -1, 2.0])
def test_a_number_of_devices_must_be_a_positive_integer(devices):
    with pytest.raises(ValueError, match="devices must be an integer of at least 1"):
        use_all_cores(devices)


def test_what_is_no_placement_is_refused():
    with pytest.raises(ValueError, match='placement must be "auto" or come from'):
        make_engine(placement="all")
    with pytest.raises(ValueError, match="along one axis of one or more different devices"):
        shard_map([])


def test_large_arrays_and_keys_are_gathered_alone_and_small_ones_together():
    """The rows are those given; a mesh of one device has all of them."""
    rows = {"a": np.ones((2, 3)), "b": np.arange(2), "c": np.zeros((2, 2, 2)), "large": np.ones((2, 2**17))}
    rows = {**jax.tree.map(jnp.asarray, rows), "keys": jax.random.split(jax.random.key(0), 2)}
    placed, everywhere = shard_map(jax.devices()[:1]), jax.sharding.PartitionSpec()
    gather = placed.over_shards(placed.all_gather, (everywhere,), everywhere)
    text = str(jax.make_jaxpr(gather)(rows))
    assert text.count("all_gather[") == 4, "a and c, b, large, keys"
    found = jax.jit(gather)(rows)
    assert jnp.array_equal(jax.random.key_data(found.pop("keys")), jax.random.key_data(rows.pop("keys")))
    jax.tree.map(np.testing.assert_array_equal, found, rows)
