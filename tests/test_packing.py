"""Rows of the trace are joined into few arrays while a run lasts, and come back as they were."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.engine.packing import AT_MOST, Packing
from jaxpt.rules.exchange import _COMPARED_AT_MOST, replicas_on
from tests.conftest import assert_same, make_engine


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
