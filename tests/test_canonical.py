import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxpt.lowering import rewrite


def convolve(x, w):
    return lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def branch(x, w):
    return lax.cond(x.sum() > 0, convolve, lambda x, w: 2 * convolve(x, w), x, w)


def loop(x, w):
    return lax.scan(
        lambda total, scale: (total + jnp.sin(convolve(scale * x, w)), None), 0.0 * convolve(x, w), jnp.arange(3.0)
    )[0]


def transposed(x, w):
    return lax.conv_transpose(x, w, (2, 2), "SAME")


def grouped(x, w):
    x = jnp.concatenate([x, 2 * x], -1)
    w = jnp.concatenate([w, 3 * w], -1)
    return lax.conv_general_dilated(
        x, w, (1, 1), "VALID", rhs_dilation=(2, 1), feature_group_count=2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def channels_first(x, w):
    return lax.conv(jnp.moveaxis(x, -1, 1), jnp.transpose(w, (3, 2, 0, 1)), (1, 1), "SAME")


FUNCTIONS = {
    "plain": convolve,
    "under jit": jax.jit(convolve),
    "in a branch": branch,
    "in a loop": loop,
    "under checkpoint": jax.checkpoint(convolve),
    "in a loop under checkpoint": jax.checkpoint(loop),
    "transposed": transposed,
    "in groups, dilated": grouped,
    "channels first": channels_first,
    "for each of several": lambda x, w: jax.vmap(convolve, (None, 0))(x, jnp.stack([w, 2 * w])),
    "in one dimension": lambda x, w: lax.conv_general_dilated(
        x[:, 0], w[0], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    ),
}


def programs(jaxpr):
    """All equations of a traced program, at any depth."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from programs(inner)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_stay_and_every_convolution_is_channels_last(name):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 6, 7, 4)), rng.normal(size=(3, 2, 4, 4))
    with jax.enable_x64(True):
        step = jax.value_and_grad(lambda x, w: jnp.square(FUNCTIONS[name](x, w)).sum(), (0, 1))
        closed, shapes = jax.make_jaxpr(step, return_shape=True)(x, w)
        forward = jax.make_jaxpr(FUNCTIONS[name])(x, w)
        assert rewrite.convolved_bytes(closed.jaxpr) == rewrite.convolved_bytes(forward.jaxpr) > 8 * 16
        again = lambda x, w: rewrite.evaluate(closed, x, w)
        found = jax.tree.unflatten(jax.tree.structure(shapes), jax.jit(again)(x, w))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, step(x, w))
        convolutions = [
            e for e in programs(jax.make_jaxpr(again)(x, w).jaxpr) if e.primitive.name == "conv_general_dilated"
        ]
    assert convolutions
    for eqn in convolutions:
        last = len(eqn.invars[0].aval.shape) - 1
        images, kernel, out = eqn.params["dimension_numbers"]
        assert images == out == (0, last, *range(1, last))
        assert kernel == (last, last - 1, *range(last - 1))


@pytest.mark.parametrize(
    ("image", "kernel", "channels", "features", "convolutions"),
    [
        (14, 5, 6, 16, {(10, 10)}),  # products but for the kernel's gradient
        (5, 5, 16, 12, set()),
        (12, 3, 8, 8, {(3, 3), (10, 10)}),
        (12, 3, 8, 32, {(3, 3), (10, 10)}),
        (12, 3, 2, 8, {(10, 10)}),
        (8, 3, 8, 16, {(3, 3), (6, 6)}),  # too small for portions
    ],
)
def test_stock_convolutions_are_lowered_like_our_own(image, kernel, channels, features, convolutions):
    """And gradients of kernels are summed over portions of the examples."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(32, image, image, channels)), rng.normal(size=(kernel, kernel, channels, features))
    stock = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    with jax.enable_x64(True):
        step = jax.value_and_grad(lambda x, w: jnp.square(stock(x, w)).sum(), (0, 1))
        closed, shapes = jax.make_jaxpr(step, return_shape=True)(x, w)
        again = lambda x, w: jax.tree.unflatten(jax.tree.structure(shapes), rewrite.evaluate(closed, x, w))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), jax.jit(again)(x, w), step(x, w))
        everything = list(programs(jax.make_jaxpr(again)(x, w).jaxpr))
    equations = [eqn for eqn in everything if eqn.primitive.name == "conv_general_dilated"]
    assert {eqn.invars[1].aval.shape[:2] for eqn in equations} == convolutions
    for eqn in equations:
        if eqn.invars[1].aval.shape[:2] == (10, 10):
            portion = 16 if features < 32 else 8
            assert eqn.invars[0].aval.shape[-1] == portion, "part of the 32 examples at a time"
            loops = [each for each in everything if each.primitive.name == "scan"]
            looped = {given.aval.shape for loop in loops for given in loop.invars}
            assert (32 // portion, portion, *x.shape[1:]) in looped, "a portion is transposed inside the loop"


@pytest.mark.parametrize("seed", range(12))
def test_any_geometry_keeps_its_value_and_gradients(seed):
    """Asymmetric, negative, oversized padding, strides, kernels larger than the image; integers, so equal exactly."""
    rng = np.random.default_rng(seed)
    image, kernel, strides = rng.integers(1, 10, 2), rng.integers(1, 9, 2), tuple(rng.integers(1, 3, 2).tolist())
    padding = [tuple(rng.integers(-1 if n > 1 else 0, k + 1, 2).tolist()) for n, k in zip(image, kernel, strict=True)]
    batch, channels, features = rng.choice([1, 3, 16, 32]), rng.choice([1, 2, 4, 6]), rng.choice([1, 6, 33])
    x = jnp.asarray(rng.integers(-3, 4, (batch, *image, channels)), jnp.float32)
    w = jnp.asarray(rng.integers(-3, 4, (*kernel, channels, features)), jnp.float32)
    stock = lambda x, w: lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    step = jax.value_and_grad(lambda x, w: stock(x, w).sum(), (0, 1))
    closed, shapes = jax.make_jaxpr(step, return_shape=True)(x, w)
    found = jax.tree.unflatten(jax.tree.structure(shapes), rewrite.evaluate(closed, x, w))
    jax.tree.map(np.testing.assert_array_equal, found, step(x, w))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_narrow_floats_are_rounded_once(dtype, preferred):
    """Sums over portions and rows are float32 until the end: the error is that of rounding the exact result."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s), dtype) for s in ((32, 14, 14, 6), (5, 5, 6, 16)))

    def step(x, w):
        conv = lambda x, w: lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), preferred_element_type=preferred
        )
        out, pull = jax.vjp(conv, x, w)
        return out, pull(jnp.ones_like(out))

    closed, shapes = jax.make_jaxpr(step, return_shape=True)(x, w)
    found = jax.tree.unflatten(jax.tree.structure(shapes), rewrite.evaluate(closed, x, w))
    exact = step(x.astype(jnp.float32), w.astype(jnp.float32))
    for mine, wide, shape in zip(*map(jax.tree.leaves, (found, exact, shapes)), strict=True):
        assert mine.dtype == shape.dtype
        once = np.asarray(wide.astype(mine.dtype), np.float32)
        assert np.mean(np.asarray(mine, np.float32) != once) < (0.01 if mine.dtype == dtype else 1)
        np.testing.assert_allclose(np.asarray(mine, np.float32), once, rtol=1e-2, atol=1e-3)


def test_small_integers_stay_what_they_are():
    x, w = jnp.ones((1, 12, 12, 32), jnp.int8), jnp.ones((9, 9, 32, 4), jnp.int8)
    conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    (found,) = rewrite.evaluate(jax.make_jaxpr(conv)(x, w), x, w)
    assert found.dtype == jnp.int8
    np.testing.assert_array_equal(found, conv(x, w))


@pytest.mark.parametrize(
    ("images", "padded"), [((128, 28, 28, 6), (128, 32, 28, 6)), ((32, 32, 32, 16), (128, 32, 32, 16))]
)
def test_the_largest_array_of_a_convolution_as_a_tpu_holds_it(images, padded):
    """The axis that 128 lanes divide best, and eight rows of another, in two bytes each."""
    conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x, w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (images, (3, 3, images[-1], images[-1])))
    assert rewrite.convolved_bytes(jax.make_jaxpr(jax.jit(conv))(x, w).jaxpr) == 2 * math.prod(padded)


def test_a_program_without_convolutions_is_known_as_such():
    assert rewrite.convolved_bytes(jax.make_jaxpr(jax.jit(lambda x: x @ x))(np.ones((2, 2))).jaxpr) == 0


def test_a_checkpointed_body_keeps_the_constants_that_it_closes_over():
    """On jax 0.12 such a body is of the same class as any other program; before, of a class without constants."""
    rng = np.random.default_rng(0)
    kernel, a, x = (rng.normal(size=s).astype(np.float32) for s in ((4, 3, 3, 3), (6, 6), (1, 3, 6, 6)))
    b, numbers = jnp.asarray(a + 1), ("NCHW", "OIHW", "NCHW")

    def body(x):
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers) * a + b
        y = y * jax.random.bernoulli(jax.random.key(3), 0.5, y.shape)
        return jnp.sum(lax.reduce_window(y, -np.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") * b[:3, :3])

    for f, plain in ((jax.checkpoint(body), body), (jax.grad(jax.checkpoint(body)), jax.grad(body))):
        closed = jax.make_jaxpr(f)(x)
        again = partial(rewrite.evaluate, closed)
        kinds = [eqn.primitive.name for eqn in programs(jax.make_jaxpr(again)(x).jaxpr)]
        assert any(eqn.primitive.name.startswith(("remat", "checkpoint")) for eqn in closed.jaxpr.eqns)
        assert any(kind.startswith(("remat", "checkpoint")) for kind in kinds), "still recomputed"
        np.testing.assert_allclose(again(x)[0], plain(x), rtol=1e-4, atol=1e-4)
