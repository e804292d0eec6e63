"""The numbers of stock pooling, its gradients and sums, and that programs no longer hold what XLA:CPU is slow at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxpt.lowering import rewrite
from tests.test_canonical import programs

SLOW = {"reduce_window_sum", "reduce_window_max", "reduce_window", "select_and_scatter_add"}


def rewritten(function, *args):
    """A function as `canonical` writes it, and the primitives of its program."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    again = lambda *args: jax.tree.unflatten(jax.tree.structure(shapes), rewrite.evaluate(closed, *args))
    return jax.jit(again), {eqn.primitive.name for eqn in programs(jax.make_jaxpr(again)(*args).jaxpr)}


def with_gradient(function):
    def both(x):
        out, pull = jax.vjp(function, x)
        return out, pull(jnp.sin(out + jnp.arange(out.size).reshape(out.shape)))

    return both


def images(shape, ties=False):
    x = np.random.default_rng(0).normal(size=shape)
    return jnp.asarray(np.round(x) if ties else x)


POOLS = [nnx.avg_pool, nnx.max_pool]
APART = (2, 2), (2, 2), (2, 7, 6, 3)  # window, strides, shape; an odd last row is left out
OVERLAPPING = (3, 3), (2, 2), (2, 9, 8, 3)
WINDOWS = [
    APART,
    OVERLAPPING,
    ((3, 2), (3, 2), (2, 9, 5, 2)),
    ((2, 2), (1, 1), (2, 5, 5, 2)),
    ((2, 3), (3, 4), (2, 9, 9, 2)),  # pixels that no window sees
    ((4,), (4,), (2, 12, 3)),
    ((2, 2, 2), (2, 2, 2), (2, 4, 5, 4, 2)),
]


@pytest.mark.parametrize(
    ("window", "strides", "shape", "pool", "context"),
    [
        *((*window, pool, "alone") for window in WINDOWS for pool in POOLS),
        *((*window, pool, "for each of several") for window in (APART, OVERLAPPING) for pool in POOLS),
        *((*window, pool, "in a loop") for window in (APART, OVERLAPPING) for pool in POOLS),
        *((*window, nnx.avg_pool, "second derivatives") for window in (APART, OVERLAPPING)),
    ],
)
def test_pooling_keeps_its_value_and_gradient(window, strides, shape, pool, context):
    """Equal numbers in a window, too: the gradient goes to the first."""
    function = with_gradient(lambda x: pool(x, window, strides=strides))
    if context == "for each of several":
        function, shape = jax.vmap(function), (3, *shape)
    elif context == "in a loop":
        inner, shape = function, (3, *shape)
        function = lambda x: lax.map(inner, x)
    elif context == "second derivatives":
        inner = function
        function = jax.grad(lambda x: jnp.sum(jnp.sin(inner(x)[1][0])))
    with jax.enable_x64(True):
        x = images(shape, ties=pool is nnx.max_pool)
        again, names = rewritten(function, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13), again(x), function(x))
    overlap = pool is nnx.max_pool and window != strides
    assert names & SLOW == ({"select_and_scatter_add"} if overlap else set())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: nnx.avg_pool(x, (3, 3), strides=(2, 2), padding="SAME"),
        lambda x: nnx.max_pool(x, (3, 3), strides=(1, 1), padding="SAME"),
        lambda x: nnx.avg_pool(x, (5, 5)),
        lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 1, 1, 1), (1, 1, 1, 1), "VALID"),
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID", window_dilation=(1, 2, 2, 1)),
        lambda x: nnx.max_pool(x.astype(jnp.bfloat16), (2, 2), strides=(2, 2)),
    ],
)
def test_what_is_not_covered_is_stock(function):
    x = images((2, 8, 8, 3)).astype(jnp.float32)
    again, names = rewritten(function, x)
    assert names & SLOW
    np.testing.assert_array_equal(again(x), jax.jit(function)(x))


def test_infinite_numbers_are_pooled():
    x = images((2, 4, 4, 2)).astype(jnp.float32).at[0, 0, 0, 0].set(-jnp.inf).at[1, 1, 1, 1].set(jnp.inf)
    for pool in (nnx.avg_pool, nnx.max_pool):
        again, _ = rewritten(lambda x, pool=pool: pool(x, (2, 2), strides=(2, 2)), x)
        np.testing.assert_allclose(again(x), pool(x, (2, 2), strides=(2, 2)), rtol=1e-6, atol=1e-6)


def test_padding_by_ones_is_no_gradient():
    """What looks like a gradient of average pooling, but for the number between."""

    def ones(x):
        apart = lax.pad(x, jnp.ones((), x.dtype), [(0, 0, 0), (1, 1, 1), (1, 1, 1), (0, 0, 0)])
        return lax.reduce_window(apart, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")

    x = images((2, 3, 3, 2)).astype(jnp.float32)
    np.testing.assert_allclose(rewritten(ones, x)[0](x), ones(x), rtol=1e-6)


@pytest.mark.parametrize("shape", [(32, 12, 14, 6), (64, 20, 16), (3, 5, 1100, 1), (7, 2400, 2), (2, 3, 8, 8, 48)])
def test_sums_over_all_but_features(shape):
    with jax.enable_x64(True):
        x = images(shape)
        for function in (lambda x: x.sum(range(x.ndim - 1)), lambda x: jnp.exp(x).mean(range(x.ndim - 1))):
            np.testing.assert_allclose(rewritten(function, x)[0](x), function(x), rtol=1e-12, atol=1e-12)


def test_a_sum_over_few_features_is_taken_over_rows_first():
    few, many = images((32, 12, 14, 6)), images((32, 12, 14, 48))
    total = lambda x: x.sum((0, 1, 2))
    for x, taken in ((few, True), (many, False), (few[:2], False)):
        assert ("optimization_barrier" in rewritten(total, x)[1]) == taken
    assert "optimization_barrier" not in rewritten(lambda x: total(x * x), few)[1], "products are summed as they come"


def test_gradients_of_a_network_with_pooling():
    """Convolution, bias, tanh, scaled pooling: all that is rewritten, at once."""
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x, w = rng.normal(size=(32, 18, 18, 2)), rng.normal(size=(3, 3, 2, 6))
        scale, bias = rng.normal(size=(2, 6))

        def loss(w, scale, bias):
            y = lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            y = jnp.tanh(y / 5 + bias.reshape(1, 1, 1, 6))
            return jnp.tanh(nnx.avg_pool(y, (2, 2), strides=(2, 2)) * scale + bias).sum()

        step = jax.value_and_grad(loss, (0, 1, 2))
        again, names = rewritten(step, w, scale, bias)
        assert "scan" in names
        assert not names & SLOW
        for a, b in zip(*map(jax.tree.leaves, (again(w, scale, bias), step(w, scale, bias))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11)
