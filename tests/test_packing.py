"""Rows of the trace are joined into few arrays while a run lasts, and come back as they were."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt.engine.packing import AT_MOST, Packing
from jaxpt.rules.exchange import _COMPARED_AT_MOST, replicas_on
from tests.conftest import assert_same, make_engine, sgd


def test_arrays_come_back_with_the_axis_of_periods():
    rng = np.random.default_rng(0)
    shapes = [(3, 2), (), (4,), (AT_MOST + 1,), (0,), (2,), (1,)]
    kinds = [np.float32, np.int32, np.float32, np.float32, np.float32, bool, np.int32]
    rows = [
        [jnp.asarray(rng.integers(0, 9, shape), kind) for shape, kind in zip(shapes, kinds, strict=True)]
        for _ in range(5)
    ]
    packing = Packing.of([jax.eval_shape(lambda leaf=leaf: leaf) for leaf in rows[0]])
    packed = [packing.pack(row) for row in rows]
    assert [(p.shape, p.dtype) for p in packed[0]] == [(p.shape, p.dtype) for p in packing.packed]
    assert len(packing.packed) == 4, "one of each type, and the large one"
    assert_same(packing.unpack([jnp.stack(parts) for parts in zip(*packed, strict=True)]), jax.tree.map(stacked, *rows))


def test_numbers_of_python_and_keys_are_packed_too():
    """What a rule records may be a constant, which is no array in a traced program."""
    key = jax.random.key(0)
    packing = Packing.of(jax.eval_shape(lambda: [jnp.int32(1), jnp.ones(2, jnp.int32), jnp.bool_(True), key]))
    first, second, third = packing.unpack([leaf[None] for leaf in packing.pack([7, jnp.arange(2), True, key])])[:3]
    assert (first.tolist(), second.tolist(), third.tolist()) == ([7], [[0, 1]], [True])


@jaxpt.core.tree.register(data=())
@dataclasses.dataclass(frozen=True)
class Numbered(jaxpt.Independent):
    """Records a number of Python."""

    def propose(self, key, seen):
        move, rule, info = super().propose(key, seen)
        return move, rule, info._replace(ladder=0)


def test_a_rule_may_record_a_number_of_python():
    problem = jaxpt.energy_problem(lambda w: w**2, jax.random.normal)
    ladder = jaxpt.Ladder(learning_rate=[0.1, 0.2])
    engine = jaxpt.Engine(problem, sgd, ladder, Numbered(), every=2)
    _, trace = engine.run(engine.init(jax.random.key(0)), periods=2)
    assert trace.info.ladder.tolist() == [0, 0]


def stacked(*leaves):
    return jnp.stack(leaves)


def test_a_period_writes_one_array_of_each_type(data):
    """All that a trace records of replicas and rungs, in the loop over periods."""
    engine = make_engine()
    text = engine.lower(engine.init(jax.random.key(0)), data, periods=3).as_text()
    written = re.findall(r"dynamic_update_slice.*-> tensor<3x\d+x(\w+)>", text)
    assert sorted(written) == ["f32", "i1", "i32"]


@pytest.mark.parametrize("count", [1, 2, 5, _COMPARED_AT_MOST, _COMPARED_AT_MOST + 1])
def test_the_replica_on_each_rung_is_the_inverse(count):
    rung = jax.random.permutation(jax.random.key(count), count)
    found = replicas_on(rung)
    assert found.dtype == rung.dtype
    np.testing.assert_array_equal(rung[found], np.arange(count))
    np.testing.assert_array_equal(jax.vmap(replicas_on)(jnp.stack([rung, rung[::-1]]))[1][rung[::-1]], np.arange(count))
