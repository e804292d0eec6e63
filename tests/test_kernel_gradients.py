"""Gradients of kernels on accelerators: the numbers of plain vmap, in groups of examples; none of it needs a device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import export, lax
from jax.sharding import Mesh, PartitionSpec

import jaxpt
from jaxpt.devices.execution import over_replicas
from jaxpt.lowering import rewrite
from tests import conftest
from tests.test_canonical import programs
from tests.test_replica_axis import ConvNet
from tests.test_replica_axis import images as images

NHWC = ("NHWC", "HWIO", "NHWC")
LAYERS = {  # images, kernel, how
    "same": ((4, 6, 7, 3), (3, 2, 3, 5), {"padding": "SAME", "dimension_numbers": NHWC}),
    "valid": ((4, 6, 7, 3), (3, 2, 3, 5), {"padding": "VALID", "dimension_numbers": NHWC}),
    "strided": ((4, 6, 7, 3), (3, 2, 3, 5), {"window_strides": (2, 2), "padding": "SAME", "dimension_numbers": NHWC}),
    "strided, valid": (
        (4, 6, 7, 3),
        (3, 2, 3, 5),
        {"window_strides": (2, 1), "padding": "VALID", "dimension_numbers": NHWC},
    ),
    "dilated": ((4, 8, 8, 3), (3, 2, 3, 5), {"padding": "SAME", "rhs_dilation": (2, 1), "dimension_numbers": NHWC}),
    "transposed": (
        (4, 4, 4, 3),
        (3, 3, 3, 5),
        {"padding": [(1, 2), (1, 2)], "lhs_dilation": (2, 2), "dimension_numbers": NHWC},
    ),
    "channels first": ((4, 3, 6, 7), (5, 3, 3, 2), {"padding": "SAME"}),
    "one dimension": ((4, 9, 3), (3, 3, 5), {"padding": "SAME", "dimension_numbers": ("NHC", "HIO", "NHC")}),
    "three dimensions": (
        (2, 4, 4, 5, 3),
        (2, 3, 2, 3, 4),
        {"padding": "SAME", "dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")},
    ),
}
GROUPED = {"padding": "SAME", "feature_group_count": 3, "dimension_numbers": NHWC}
M = 3


def layer(name, conv=lax.conv_general_dilated):
    """A function of images and kernel, and their shapes."""
    images, kernel, how = LAYERS[name]
    strides = how.get("window_strides", (1,) * (len(images) - 2))
    rest = {key: value for key, value in how.items() if key not in ("window_strides", "padding")}
    return (lambda x, w: conv(x, w, strides, how["padding"], **rest)), images, kernel


def with_gradients(function):
    return jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(function(x, w))), (0, 1))


def random(*shapes, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def groups(function, *args):
    """How many groups of examples and of features the convolutions of a program have, those of kernels' gradients."""
    found = [e.params for e in programs(jax.make_jaxpr(function)(*args).jaxpr) if "feature_group_count" in e.params]
    gradients = [p for p in found if p["dimension_numbers"][0][1] == 0]
    assert found
    return {(p["batch_group_count"], p["feature_group_count"]) for p in gradients}


def assert_same(ours, theirs, tolerance=1e-12):
    def close(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())

    jax.tree.map(close, ours, theirs)


def lifted(function, in_axes=(0, 0), platform="gpu", **options):
    return over_replicas("vmap", platform, 1, function, in_axes, **options)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("name", LAYERS)
def test_stock_convolutions_have_groups_of_examples(name, platform):
    function, images, kernel = layer(name)
    step = with_gradients(function)
    with jax.enable_x64(True):
        x, w = random((M, *images), (M, *kernel))
        ours = lifted(step, platform=platform)
        assert_same(jax.jit(ours)(x, w), jax.jit(jax.vmap(step))(x, w))
        assert groups(ours, x, w) == {(M, 1)}
        assert groups(jax.vmap(step), x, w) == {(1, M)}, "or there is nothing to rewrite"


def in_a_loop(function):
    return lambda x, w: lax.scan(lambda total, scale: (total + function(scale * x, w).sum(), None), 0.0, jnp.ones(2))[0]


def in_a_branch(function):
    return lambda x, w: lax.cond(x.sum() > 0, function, lambda x, w: 2 * function(x, w), x, w)


NESTED = {
    "jit": jax.jit,
    "scan": in_a_loop,
    "cond": in_a_branch,
    "checkpoint": jax.checkpoint,
    "checkpointed loop": lambda f: jax.checkpoint(in_a_loop(f)),
    "a vmap of the user's": lambda f: lambda x, w: jax.vmap(f, (None, 0))(x, jnp.stack([w, 2 * w])),
}


@pytest.mark.parametrize("name", NESTED)
def test_they_do_at_any_depth(name):
    function, images, kernel = layer("strided")
    step = with_gradients(NESTED[name](function))
    with jax.enable_x64(True):
        x, w = random((M, *images), (M, *kernel))
        assert_same(jax.jit(lifted(step))(x, w), jax.jit(jax.vmap(step))(x, w))
        assert groups(lifted(step), x, w) <= {(M, 1), (2 * M, 1)}


AXES = {  # arguments that lead with seeds, with replicas
    "replicas": ((None, None), (0, 0)),
    "shared images": ((None, None), (None, 0)),
    "shared kernels": ((None, None), (0, None)),
    "seeds": ((0, 0), (0, 0)),
    "seeds with their images": ((0, 0), (None, 0)),
    "seeds that share images": ((None, 0), (0, 0)),
    "seeds that share kernels": ((0, None), (0, 0)),
}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", AXES)
def test_seeds_of_replicas_and_what_they_share(name, own):
    """Stock convolutions, and ours with a group for each replica."""
    conv = partial(jaxpt.conv_general_dilated, lowering="grouped") if own else lax.conv_general_dilated
    seeds, replicas = AXES[name]
    function, images, kernel = layer("strided", conv)
    step, plain = with_gradients(function), with_gradients(layer("strided")[0])
    lead = [(2,) * (s == 0) + (M,) * (r == 0) for s, r in zip(seeds, replicas, strict=True)]
    with jax.enable_x64(True):
        x, w = random((*lead[0], *images), (*lead[1], *kernel))
        ours, theirs = lifted(step, replicas), jax.vmap(plain, replicas)
        if 0 in seeds:
            ours, theirs = jax.vmap(ours, seeds), jax.vmap(theirs, seeds)
        assert_same(jax.jit(ours)(x, w), jax.jit(theirs)(x, w))
        assert all(features == 1 for _, features in groups(ours, x, w))


@pytest.mark.parametrize("strategy", ["vmap", "unroll", "map"])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_every_strategy_has_the_same_numbers_for_seeds_of_replicas(strategy, platform):
    function, images, kernel = layer("same")
    step = with_gradients(function)
    with jax.enable_x64(True):
        x, w = random((2, 4, *images), (2, 4, *kernel))
        inner = over_replicas(strategy, platform, 1, step, (0, 0), replicas_at_once=2)
        both = over_replicas(strategy, platform, 1, inner, (0, 0), seeds=True)
        assert_same(jax.jit(both)(x, w), jax.jit(jax.vmap(jax.vmap(step)))(x, w))
        assert groups(both, x, w) == {{"vmap": (8, 1), "unroll": (1, 1), "map": (2, 1)}[strategy]}


def test_groups_within_a_replica_are_multiplied():
    def function(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), **GROUPED)

    step = with_gradients(function)
    with jax.enable_x64(True):
        x, w = random((M, 4, 6, 6, 3), (M, 3, 3, 1, 6))
        assert_same(jax.jit(lifted(step))(x, w), jax.jit(jax.vmap(step))(x, w))
        assert groups(lifted(step), x, w) == {(3 * M, 1)}


@pytest.mark.parametrize("library", ["nnx", "linen"])
@pytest.mark.parametrize("own", [False, True])
def test_layers_of_flax(library, own):
    conv = jaxpt.conv_general_dilated if own else lax.conv_general_dilated

    def step_by(conv):
        if library == "linen":
            net = linen.Conv(5, (3, 3), strides=2, param_dtype=jnp.float64, conv_general_dilated=conv)
            return net.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3))), net.apply
        net = nnx.Conv(3, 5, (3, 3), strides=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0), conv_general_dilated=conv)
        graph, params = nnx.split(net)
        return params, lambda params, x: nnx.merge(graph, params)(x)

    def gradient(apply):
        return jax.grad(lambda params, x: jnp.sum(jnp.sin(apply(params, x))))

    with jax.enable_x64(True):
        (params, ours), (_, theirs) = step_by(conv), step_by(lax.conv_general_dilated)
        params = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, 3 * leaf]), params)
        (x,) = random((M, 2, 8, 8, 3))
        expected = jax.jit(jax.vmap(gradient(theirs)))(params, x)
        assert_same(jax.jit(lifted(gradient(ours)))(params, x), expected)


@pytest.mark.parametrize("by", ["shard_map", "pmap"])
def test_in_shards(by):
    function, images, kernel = layer("strided")
    step, devices = with_gradients(function), jax.devices()[:1]
    with jax.enable_x64(True):
        x, w = random((M, *images), (M, *kernel))
        expected = jax.jit(jax.vmap(step))(x, w)
        if by == "pmap":
            found = jax.tree.map(lambda leaf: leaf[0], jax.pmap(lifted(step), devices=devices)(x[None], w[None]))
        else:
            split = PartitionSpec("devices")
            mesh = Mesh(np.array(devices), ("devices",))
            found = jax.jit(jax.shard_map(lifted(step), mesh=mesh, in_specs=split, out_specs=split, check_vma=False))(
                x, w
            )
        assert_same(found, expected)


@pytest.mark.parametrize("own", [False, True])
def test_bfloat16_stays_bfloat16(own):
    conv = partial(jaxpt.conv_general_dilated, lowering="grouped") if own else lax.conv_general_dilated
    function, images, kernel = layer("strided", conv)
    step = with_gradients(function)
    x, w = random((M, *images), (M, *kernel), dtype=jnp.bfloat16)
    assert_same(
        jax.tree.map(lambda leaf: leaf.astype(np.float32), jax.jit(lifted(step))(x, w)[1]),
        jax.tree.map(
            lambda leaf: leaf.astype(np.float32), jax.jit(jax.vmap(with_gradients(layer("strided")[0])))(x, w)[1]
        ),
        2e-2,
    )
    assert all(leaf.dtype == jnp.bfloat16 for leaf in lifted(step)(x, w)[1])


@pytest.mark.slow
def test_a_whole_run_as_on_an_accelerator(images, monkeypatch):
    """Twelve steps with exchanges, dropout and batch normalisation, in float64: the run of a CPU, up to 1e-9."""
    found = []
    with jax.enable_x64(True):
        for platform in ("cpu", "gpu"):
            monkeypatch.setattr(jaxpt.placement.Placement, "platform", platform)
            engine = conftest.make_engine(
                jaxpt.nnx_problem(ConvNet, conftest.loss),
                jaxpt.Ladder(learning_rate=[0.05, 0.1, 0.2]),
                every=4,
                rule=jaxpt.Tempering(2.0),
                fixed={"dropout_rate": 0.2},
                replica_axis="vmap",
                own_batches=True,  # or the only layer is one of shared images
            )
            state, trace = engine.run(engine.init(jax.random.key(0)), images, periods=3)
            text = engine.lower(state, images, periods=3).as_text()
            assert ("batch_group_count = 3" in text) == (platform == "gpu")
            found.append(jax.tree.map(np.asarray, (state.replicas.params, state.replicas.rung, trace.info)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6 if a.dtype == np.float32 else 1e-9, atol=1e-9), *found
    )


def test_products_and_inference_stay_what_they_are():
    function, images, kernel = layer("same")
    closed = jax.make_jaxpr(lambda x, w: jnp.tanh(function(x, w)) @ jnp.ones((5, 2)))(
        *random(images, kernel, dtype=np.float32)
    )
    again = jax.make_jaxpr(partial(rewrite.evaluate, closed, platform="tpu"))(*closed.in_avals)
    assert [e.primitive for e in again.jaxpr.eqns] == [e.primitive for e in closed.jaxpr.eqns]


CONTEXTS = {
    "vmap": jax.vmap,
    "seeds": lambda f: lambda x, w: jax.vmap(jax.vmap(f))(x[None], w[None]),
    "scan": lambda f: lambda x, w: lax.scan(lambda c, i: (c, jax.vmap(f)(x, w)), 0, jnp.arange(2))[1],
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_our_convolutions_follow_the_platform_that_a_program_is_lowered_for(context):
    """Not JAX's default one: a program for a TPU may be lowered on a host without one."""
    function, images, kernel = layer("strided", jaxpt.conv_general_dilated)
    step = CONTEXTS[context](with_gradients(function))
    x, w = random((M, *images), (M, *kernel), dtype=np.float32)
    traced = jax.jit(step).trace(x, w)
    on_cpu, *elsewhere = (traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "tpu", "cuda"))
    assert f"feature_group_count = {M}" not in on_cpu
    assert f"batch_group_count = {M}" not in on_cpu
    for text in elsewhere:
        assert text.count(f"feature_group_count = {M}") == 2, "forward and the gradient of the images"
        assert text.count(f"batch_group_count = {M}") == 1


def test_one_exported_program_serves_all_platforms():
    function, images, kernel = layer("strided", jaxpt.conv_general_dilated)
    step = jax.jit(jax.vmap(with_gradients(function)))
    x, w = random((M, *images), (M, *kernel), dtype=np.float32)
    exported = export.export(step, platforms=("cpu", "tpu", "cuda"))(x, w)
    assert_same(exported.call(x, w), step(x, w), 1e-6)


def test_a_single_replica_has_no_groups_on_an_accelerator():
    function, images, kernel = layer("same", jaxpt.conv_general_dilated)
    x, w = random(images, kernel, dtype=np.float32)
    text = jax.jit(with_gradients(function)).trace(x, w).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.convolution") == 3
    assert "group_count = 3" not in text


@pytest.mark.parametrize("conv", [lax.conv_general_dilated, jaxpt.conv_general_dilated], ids=["stock", "own"])
@pytest.mark.parametrize("seeds", [False, True], ids=["", "seeds"])
def test_images_that_all_replicas_share_are_copied_on_a_tpu_only(conv, seeds, monkeypatch):
    """A first layer: there each replica has a group. The numbers are those of plain vmap."""
    function, images, kernel = layer("strided", conv)
    step = jax.grad(lambda x, w: jnp.sum(jnp.sin(function(x, w))), 1)

    def over(lifted):  # the images of a seed are shared by its replicas
        return jax.vmap(lifted) if seeds else lifted

    ours = over(lifted(step, (None, 0), "tpu"))
    plain = over(jax.vmap(jax.grad(lambda x, w: jnp.sum(jnp.sin(layer("strided")[0](x, w))), 1), (None, 0)))
    lead = (2,) if seeds else ()
    with jax.enable_x64(True):
        x, w = random((*lead, *images), (*lead, M, *kernel))
        traced = jax.jit(ours).trace(x, w)
        on_tpu, *elsewhere = (traced.lower(lowering_platforms=(p,)).as_text() for p in ("tpu", "cpu", "cuda"))
        assert f"batch_group_count = {M * 2 if seeds else M} " in on_tpu
        assert all(f"batch_group_count = {M * 2 if seeds else M} " not in text for text in elsewhere)
        assert_same(jax.jit(ours)(x, w), jax.jit(plain)(x, w))
        monkeypatch.setattr(lax, "platform_dependent", lambda *args, tpu=None, default, **_: (tpu or default)(*args))
        jax.clear_caches()
        assert_same(jax.jit(ours)(x, w), jax.jit(plain)(x, w))
