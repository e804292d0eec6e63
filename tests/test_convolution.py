"""The same numbers as lax's, in every context that replicas are computed in; float64 to 1e-12, float32 to 2e-5."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.sharding import Mesh, PartitionSpec

import jaxpt
from jaxpt.lowering.convolution import choice

LAYOUT = ("NHWC", "HWIO", "NHWC")
CASES = {  # images [B, H, W, C], kernel (h, w), features, strides, padding
    "strided": ((2, 8, 8, 1), (3, 3), 5, (2, 2), "SAME"),
    "not square": ((2, 9, 7, 3), (3, 5), 4, (1, 2), "VALID"),
    "asymmetric": ((2, 6, 6, 2), (2, 2), 3, (1, 1), [(1, 0), (0, 2)]),
    "1x1": ((2, 5, 5, 2), (1, 1), 3, (1, 1), "SAME"),
    "strided 1x1": ((2, 5, 5, 2), (1, 1), 3, (2, 2), "VALID"),
    "3x3 of many channels": ((4, 6, 6, 4), (3, 3), 4, (1, 1), "SAME"),
    "5x5 in blocks": ((1, 7, 13, 2), (5, 5), 16, (1, 1), "VALID"),
    "one window": ((3, 5, 5, 2), (5, 5), 3, (1, 1), "VALID"),
    "negative padding": ((2, 8, 9, 1), (3, 2), 3, (1, 3), [(-1, 1), (2, -1)]),
}
CONTEXTS = {  # (seeds, replicas) that images lead with, and kernels; what computes [value, gradients] of them
    "alone": ((), (), lambda f: f),
    "kernels": ((), (3,), lambda f: jax.vmap(f, (None, 0))),
    "images": ((3,), (), lambda f: jax.vmap(f, (0, None))),
    "both": ((3,), (3,), jax.vmap),
    "seeds of replicas": ((2, 3), (2, 3), lambda f: jax.vmap(jax.vmap(f))),
    "seeds of replicas that share images": ((2,), (2, 3), lambda f: jax.vmap(jax.vmap(f, (None, 0)))),
    "seeds that share all": ((3,), (2, 3), lambda f: jax.vmap(jax.vmap(f), (None, 0))),
    "map": ((3,), (3,), lambda f: lambda x, w: lax.map(lambda pair: f(*pair), (x, w))),
    "scan": ((3,), (3,), lambda f: lambda x, w: lax.scan(lambda c, i: (c, jax.vmap(f)(x, w)), 0, jnp.arange(2))[1]),
    "vmap of scan": (
        (3,),
        (3,),
        lambda f: jax.vmap(lambda x, w: lax.scan(lambda c, i: (c, f(x, w)), 0, jnp.arange(2))[1]),
    ),
}


def arrays(case, images=(), kernels=(), dtype=np.float64):
    shape, kernel, features, *_ = CASES[case]
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(*images, *shape)), rng.normal(size=(*kernels, *kernel, shape[-1], features))
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype)


def wave(conv, case):
    """A function of the output that is not linear, so that gradients need the right one."""
    *_, strides, padding = CASES[case]
    return lambda x, w: jnp.sum(jnp.sin(conv(x, w, strides, padding, dimension_numbers=LAYOUT)))


def with_gradients(conv, case):
    return jax.value_and_grad(wave(conv, case), (0, 1))


def assert_same(function, *args, rtol=1e-12):
    """`function(convolution)(*args)` with ours and with lax's, up to rtol of the largest number of each leaf."""
    ours, theirs = jax.jit(
        lambda *a: [function(c)(*a) for c in (jaxpt.conv_general_dilated, lax.conv_general_dilated)]
    )(*args)
    assert_close(ours, theirs, rtol)


def assert_close(ours, theirs, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max()), ours, theirs)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("case", ["not square", pytest.param("3x3 of many channels", marks=pytest.mark.slow)])
def test_values_and_gradients_are_those_of_lax_in_every_context(case, context):
    images, kernels, transform = CONTEXTS[context]
    with jax.enable_x64(True):
        assert_same(lambda conv: transform(with_gradients(conv, case)), *arrays(case, images, kernels))


@pytest.mark.parametrize("case", CASES)
def test_every_lowering_is_the_same_for_one_replica_and_for_three(case):
    def stacked(conv, x, w):
        one = with_gradients(conv, case)
        return jax.vmap(one)(x, w), one(x[0], w[0])

    with jax.enable_x64(True):
        x, w = arrays(case, (3,), (3,))
        own = [partial(jaxpt.conv_general_dilated, lowering=name) for name in (None, *choice.LOWERINGS)]
        others = [*own, jaxpt.conv_by_products]
        *results, expected = jax.jit(lambda: [stacked(c, x, w) for c in (*others, lax.conv_general_dilated)])()
        for result in results:
            assert_close(result, expected, 1e-12)


def test_float32_differs_by_rounding_only():
    for case in ("3x3 of many channels", "5x5 in blocks"):
        x, w = arrays(case, (3,), (3,), np.float32)
        assert_same(lambda conv, case=case: jax.vmap(with_gradients(conv, case)), x, w, rtol=2e-5)


@pytest.mark.parametrize("shared", ["nothing", "images", "kernels"])
def test_the_gradient_of_a_vmapped_sum(shared):
    case, axes = "not square", {"nothing": (0, 0), "images": (None, 0), "kernels": (0, None)}[shared]
    with jax.enable_x64(True):
        x, w = arrays(case, *(() if axis is None else (3,) for axis in axes))

        def total(conv):
            return jax.grad(lambda x, w: jax.vmap(wave(conv, case), axes)(x, w).sum(), (0, 1))

        assert_same(total, x, w)


def test_second_derivatives_by_reverse_mode():
    case = "not square"

    def second(conv):
        def slopes(x, w):
            return sum(jnp.sum(jnp.sin(g)) for g in jax.grad(wave(conv, case), (0, 1))(x, w))

        return jax.vmap(jax.grad(slopes, (0, 1)))

    with jax.enable_x64(True):
        assert_same(second, *arrays(case, (2,), (2,)))


def test_forward_mode_is_refused_and_works_by_products():
    x, w = arrays("strided", dtype=np.float32)

    def slope(conv):
        return jax.jvp(partial(wave(conv, "strided"), x), (w,), (w,))[1]

    np.testing.assert_allclose(slope(jaxpt.conv_by_products), slope(lax.conv_general_dilated), rtol=1e-4)
    with pytest.raises(TypeError, match="custom_vjp"):
        slope(jaxpt.conv_general_dilated)


@pytest.mark.parametrize("over", ["vmap", "map"])
def test_replicas_on_a_mesh_with_images_that_all_share(over):
    """Types of manual axes are checked by shard_map, for what is shared and what is not."""
    case, mesh = "not square", Mesh(np.array(jax.devices()[:1]), ("devices",))

    def sharded(conv):
        def gradients(x, w):
            one = lambda w: jax.grad(wave(conv, case), 1)(x, w)
            return jax.vmap(one)(w) if over == "vmap" else lax.map(one, w)

        split, whole = PartitionSpec("devices"), PartitionSpec()
        return jax.shard_map(gradients, mesh=mesh, in_specs=(whole, split), out_specs=split)

    with jax.enable_x64(True):
        assert_same(sharded, *arrays(case, (), (2,)))


@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_dtypes_are_those_of_lax(preferred):
    """bfloat16 stays bfloat16, accumulated as asked for; gradients have the dtype of what they are of."""
    case = "5x5 in blocks"
    x, w = arrays(case, (2,), (2,), jnp.bfloat16)
    *_, strides, padding = CASES[case]

    def pulled(conv, x, w):
        one = partial(conv, window_strides=strides, padding=padding, dimension_numbers=LAYOUT)
        out, pull = jax.vjp(lambda x, w: one(x, w, preferred_element_type=preferred), x, w)
        return out, pull(out)

    owns = [partial(jaxpt.conv_general_dilated, lowering=name) for name in (None, "direct", "blocks")]
    results = jax.jit(lambda: [jax.vmap(partial(pulled, conv))(x, w) for conv in owns])()
    expected = jax.jit(jax.vmap(partial(pulled, lax.conv_general_dilated)))(*(a.astype(np.float32) for a in (x, w)))
    for out, gradients in results:
        assert out.dtype == (preferred or jnp.bfloat16)
        assert {g.dtype for g in gradients} == {jnp.dtype(jnp.bfloat16)}
        assert_close(np.asarray(out, np.float32), expected[0], 1e-5 if preferred else 1e-2)
        assert_close([np.asarray(g, np.float32) for g in gradients], list(expected[1]), 2e-2)


@pytest.mark.parametrize("lowering", choice.LOWERINGS)
def test_precision_reaches_every_product(lowering):
    """Given or by `jax.default_matmul_precision`, also for gradients that are traced outside of it."""
    x, w = arrays("not square", (2,), (2,), np.float32)
    conv = partial(jaxpt.conv_general_dilated, lowering=lowering)

    def count(conv, inside):
        def f(x, w):
            with jax.default_matmul_precision(inside):
                out, pull = jax.vjp(
                    partial(conv, window_strides=(1, 2), padding="VALID", dimension_numbers=LAYOUT), x, w
                )
            return out, pull(out)

        text = str(jax.make_jaxpr(jax.vmap(f))(x, w))
        return text.count("HIGHEST"), text.count("precision=None")

    for highest, none in (count(partial(conv, precision="highest"), None), count(conv, "highest")):
        assert highest >= 3
        assert none == 0


@pytest.mark.parametrize(
    "extra",
    [
        {"kernel_dilation": 2},
        {"feature_group_count": 2},
        {"input_dilation": 2, "padding": ((1, 1), (1, 1))},
        {"padding": "CIRCULAR"},
    ],
)
def test_what_is_not_covered_goes_to_lax(extra):
    for own in (jaxpt.conv_general_dilated, jaxpt.conv_by_products):
        layers = [
            nnx.Conv(4, 6, (3, 3), rngs=nnx.Rngs(0), conv_general_dilated=conv, **extra)
            for conv in (lax.conv_general_dilated, own)
        ]
        x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
        np.testing.assert_allclose(layers[0](x), layers[1](x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("lhs", "rhs", "options"),
    [
        ((2, 9, 3), (3, 3, 4), {"dimension_numbers": ("NWC", "WIO", "NWC")}),
        ((2, 5, 5, 5, 3), (2, 2, 2, 3, 4), {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")}),
        ((2, 3, 8, 8), (4, 3, 3, 3), {}),
        ((4, 8, 8, 3), (3, 3, 3, 4), {"dimension_numbers": LAYOUT, "batch_group_count": 2}),
        ((2, 2, 2, 3), (3, 3, 3, 4), {"dimension_numbers": LAYOUT}),
    ],
)
def test_other_ranks_layouts_groups_and_empty_outputs_go_to_lax(lhs, rhs, options):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), np.float32) for shape in (lhs, rhs))
    strides = (1,) * (len(lhs) - 2)
    ours, theirs = (
        c(x, w, strides, "VALID", **options) for c in (jaxpt.conv_general_dilated, lax.conv_general_dilated)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_errors_are_those_of_lax():
    x, w = arrays("strided", dtype=np.float32)
    for kernel in (w.astype(jnp.bfloat16), jnp.concatenate([w, w], 2)):
        with pytest.raises((TypeError, ValueError)) as theirs:
            lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)
        with pytest.raises(theirs.type, match=str(theirs.value)[:40]):
            jaxpt.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)


def test_an_unknown_lowering_is_named():
    x, w = arrays("strided", dtype=np.float32)
    with pytest.raises(ValueError, match=r"one of direct, grouped.*'fast'"):
        jaxpt.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT, lowering="fast")


def test_stacked_replicas_have_no_grouped_convolution_on_a_cpu():
    case = "3x3 of many channels"
    x, w = arrays(case, (3,), (3,), np.float32)

    def lowered(conv):
        return jax.jit(jax.vmap(with_gradients(conv, case))).lower(x, w).as_text()

    assert "feature_group_count = 3" in lowered(lax.conv_general_dilated)
    assert "convolution" in lowered(jaxpt.conv_general_dilated)
    assert "feature_group_count = 3" not in lowered(jaxpt.conv_general_dilated)


def test_images_that_all_replicas_share_make_one_convolution_with_more_features():
    x, w = arrays("3x3 of many channels", (), (3,), np.float32)
    conv = lambda w: jaxpt.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)
    text = jax.jit(jax.vmap(conv)).lower(w).as_text()
    assert text.count("stablehlo.convolution") == 1
    assert "tensor<3x3x4x12xf32>" in text


def test_one_program_for_all_values():
    """The rules trace with the program, not with each call."""
    traces = []

    @jax.jit
    @jax.vmap
    def step(x, w):
        traces.append(1)
        return with_gradients(jaxpt.conv_general_dilated, "strided")(x, w)

    x, w = arrays("strided", (2,), (2,), np.float32)
    for scale in (1.0, 2.0, 3.0):
        step(x, scale * w)
    assert len(traces) == 1


class LinenNet(linen.Module):
    conv: object

    @linen.compact
    def __call__(self, x):
        return linen.Conv(3, (3, 3), conv_general_dilated=self.conv)(x)


@pytest.mark.slow
def test_in_a_layer_of_linen():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 2))
    stock, own = LinenNet(lax.conv_general_dilated), LinenNet(jaxpt.conv_general_dilated)
    variables = stock.init(jax.random.key(1), x)
    np.testing.assert_allclose(stock.apply(variables, x), own.apply(variables, x), rtol=1e-5, atol=1e-6)
