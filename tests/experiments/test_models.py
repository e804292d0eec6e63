from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxpt
from experiments.models import LeNetCIFAR10, LeNetEMNIST, ResNet
from experiments.models.lenet import SquaredDistance, TrainablePooling
from experiments.models.resnet import shortcut_by_averaging, shortcut_by_subsampling

# These programs run once, so most of a test's time would go into optimising them.
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# Weights and biases, layer by layer.
# LeNetEMNIST: conv 5*5*1*6 + 6 = 156, pooling 2*6 = 12, conv 5*5*6*16 + 16 = 2,416, pooling 2*16 = 32,
#   conv 5*5*16*120 + 120 = 48,120, dense 120*84 + 84 = 10,164; head: centres 84*26 = 2,184 or dense 84*26 + 26 = 2,210.
EMNIST_BODY = 156 + 12 + 2416 + 32 + 48_120 + 10_164
# LeNetCIFAR10, table: conv 5*5*3*6 + 6 = 456, conv 2,416, conv 48,120, dense 10,164, dense 84*10 + 10 = 850.
# As run: conv 5*5*3*16 + 16 = 1,216, conv 5*5*16*120 + 120 = 48,120, dense 12,000*10 + 10 = 120,010.
# ResNet, original, n blocks a stage; 3x3 convolutions without bias, 2 numbers per channel and normalisation:
#   stem 3*3*3*16 + 2*16 = 464; 16 channels: n (2*3*3*16*16 + 2*2*16) = 4,672 n;
#   32: first 3*3*16*32 + 3*3*32*32 + 2*2*32 = 13,952, others 2*3*3*32*32 + 128 = 18,560 each;
#   64: first 3*3*32*64 + 3*3*64*64 + 2*2*64 = 55,552, others 2*3*3*64*64 + 256 = 73,984 each; dense 64*10 + 10 = 650.
# Pre-activation: the first normalisation of a block has the channels of its INPUT, so 2*16 fewer numbers in the first
#   block of stage two and 2*32 fewer in that of stage three; the network's first block lacks it, 2*16 fewer; the one
#   before the global pooling adds 2*64. 128 - 32 - 64 - 32 = 0: the same count.
COUNTS = [
    (lambda r: LeNetEMNIST(rngs=r), EMNIST_BODY + 2184, 63_084),
    (lambda r: LeNetEMNIST(head="softmax", rngs=r), EMNIST_BODY + 2210, 63_110),
    (lambda r: LeNetCIFAR10(version="table", rngs=r), 456 + 2416 + 48_120 + 10_164 + 850, 62_006),
    (lambda r: LeNetCIFAR10(version="as_run", rngs=r), 1216 + 48_120 + 120_010, 169_346),
    *(
        (
            lambda r, n=n, v=v: ResNet(6 * n + 2, version=v, rngs=r),
            464 + 4672 * n + 13_952 + 18_560 * (n - 1) + 55_552 + 73_984 * (n - 1) + 650,
            count,
        )
        for n, count in ((3, 269_722), (7, 658_586))
        for v in ("original", "preactivation")
    ),
]


@pytest.mark.parametrize(("make", "derived", "stated"), COUNTS)
def test_parameter_counts_are_those_derived_layer_by_layer(make, derived, stated):
    params = nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == derived == stated


CASES = {
    "emnist-rbf": (lambda rngs: LeNetEMNIST(rngs=rngs), (32, 32, 1), 26),
    "emnist-softmax": (lambda rngs: LeNetEMNIST(head="softmax", rngs=rngs), (32, 32, 1), 26),
    "cifar10-table": (lambda rngs: LeNetCIFAR10(version="table", rngs=rngs), (32, 32, 3), 10),
    "cifar10-as-run": (lambda rngs: LeNetCIFAR10(rngs=rngs), (32, 32, 3), 10),
    "resnet-original": (lambda rngs: ResNet(8, rngs=rngs), (16, 16, 3), 10),
    "resnet-preactivation": (lambda rngs: ResNet(8, version="preactivation", rngs=rngs), (16, 16, 3), 10),
}


@cache
def outcome(name):
    """Logits of four images in evaluation mode, twice, and gradients at dropout rates 0.1 and 0.5, all else alike."""
    make, shape, classes = CASES[name]
    problem = jaxpt.nnx_problem(
        lambda *, rngs: make(rngs), lambda model, batch: jaxpt.cross_entropy(model(batch["image"]), batch["label"])
    )

    @quickly
    def run(image, rates):
        params, rest = problem.init(jax.random.key(0))
        batch = {"image": image, "label": jnp.arange(4) % classes}

        def loss(params, rate):
            return problem.loss(params, rest, batch, {"dropout_rate": rate}, jax.random.key(2))[0].mean()

        model = problem.model(params, rest)
        return model(image), model(image), jax.vmap(jax.grad(loss), (None, 0))(params, rates)

    return run(jax.random.uniform(jax.random.key(1), (4, *shape)), jnp.array([0.1, 0.5]))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_logits_have_their_shape_and_evaluation_is_deterministic(name):
    once, twice, _ = outcome(name)
    assert once.shape == (4, CASES[name][2])
    np.testing.assert_array_equal(once, twice)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_replicas_with_different_dropout_have_finite_gradients(name):
    """Every weight gets some gradient, and with dropout another one in each replica."""
    for leaf in jax.tree.leaves(outcome(name)[2]):
        assert np.isfinite(leaf).all()
        assert (np.abs(leaf).reshape(2, -1).max(1) > 0).all()
        assert np.array_equal(leaf[0], leaf[1]) == name.startswith("resnet")


def test_rbf_head_is_the_squared_distance_to_each_centre():
    head = SquaredDistance(5, 3, rngs=nnx.Rngs(0))
    x, centres = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32), np.asarray(head.centres[...])
    expected = [[sum((x[b, f] - centres[f, k]) ** 2 for f in range(5)) for k in range(3)] for b in range(4)]
    np.testing.assert_allclose(head(x), expected, rtol=1e-5)


def test_trainable_pooling_is_tanh_of_a_scaled_and_shifted_average():
    pool = TrainablePooling(2, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 2)).astype(np.float32)
    mean = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(pool(x), np.tanh(mean), rtol=1e-5, atol=1e-6)
    pool.scale[...], pool.bias[...] = jnp.array([2.0, -1.0]), jnp.array([0.5, 0.0])
    np.testing.assert_allclose(pool(x), np.tanh(mean * [2, -1] + [0.5, 0]), rtol=1e-5, atol=1e-6)


def spied(make, shape):
    """The shapes that go into and come out of a network's convolutions and into its dropouts, in order."""
    seen = []

    def conv(lhs, rhs, *rest, **options):
        out = lax.conv_general_dilated(lhs, rhs, *rest, **options)
        seen.append((lhs.shape[1:], out.shape[1:]))
        return out

    class Spy(nnx.Module):
        def __call__(self, x):
            seen.append(("dropout", x.shape[1:]))
            return x

    def call():
        model = make(conv)
        model.dropout = Spy()
        model(jnp.zeros((1, *shape)))

    jax.eval_shape(call)
    return seen


def test_layers_and_dropouts_of_the_lenets_stand_where_the_tables_say():
    assert spied(lambda conv: LeNetEMNIST(convolution=conv, rngs=nnx.Rngs(0)), (32, 32, 1)) == [
        ((32, 32, 1), (28, 28, 6)),
        ("dropout", (14, 14, 6)),
        ((14, 14, 6), (10, 10, 16)),
        ("dropout", (5, 5, 16)),
        ((5, 5, 16), (1, 1, 120)),
        ("dropout", (1, 1, 120)),
        ("dropout", (120,)),
        ("dropout", (84,)),
    ]
    assert spied(lambda conv: LeNetCIFAR10(version="table", convolution=conv, rngs=nnx.Rngs(0)), (32, 32, 3)) == [
        ((32, 32, 3), (28, 28, 6)),
        ("dropout", (14, 14, 6)),
        ((14, 14, 6), (10, 10, 16)),
        ("dropout", (5, 5, 16)),
        ((5, 5, 16), (1, 1, 120)),
        ("dropout", (120,)),
        ("dropout", (84,)),
    ]
    assert spied(lambda conv: LeNetCIFAR10(version="as_run", convolution=conv, rngs=nnx.Rngs(0)), (32, 32, 3)) == [
        ((32, 32, 3), (28, 28, 16)),
        ("dropout", (14, 14, 16)),
        ((14, 14, 16), (10, 10, 120)),
        ("dropout", (12_000,)),
    ]


@pytest.mark.parametrize(
    ("shortcut", "shrunk"),
    [
        (shortcut_by_subsampling, lambda x: x[:, ::2, ::2]),
        (shortcut_by_averaging, lambda x: x.reshape(2, 4, 2, 3, 2, 4).mean((2, 4))),
    ],
)
def test_shortcuts_shrink_pixels_and_add_zero_channels_without_weights(shortcut, shrunk):
    x = np.random.default_rng(0).normal(size=(2, 8, 6, 4)).astype(np.float32)
    out = np.asarray(shortcut(x, 8))
    assert out.shape == (2, 4, 3, 8)
    np.testing.assert_allclose(out[..., 2:6], shrunk(x), rtol=1e-5, atol=1e-6)
    assert not out[..., [0, 1, 6, 7]].any()
    np.testing.assert_array_equal(shortcut(x, 4), x)


@pytest.mark.parametrize("version", ["original", "preactivation"])
def test_a_block_whose_convolutions_are_zero_is_its_shortcut(version):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 16))

    @quickly
    def output(x):
        block = ResNet(8, version=version, rngs=nnx.Rngs(0)).blocks[1]
        block.conv2.kernel[...] *= 0
        return block(x)

    expected = nnx.relu(shortcut_by_subsampling(x, 32)) if version == "original" else shortcut_by_averaging(x, 32)
    np.testing.assert_allclose(output(x), expected, rtol=1e-5, atol=1e-6)


def test_the_first_preactivation_block_has_no_normalisation_of_its_own():
    model = nnx.eval_shape(lambda: ResNet(14, version="preactivation", rngs=nnx.Rngs(0)))
    assert [block.norm1 is None for block in model.blocks] == [True] + [False] * 5


@pytest.mark.slow
@pytest.mark.parametrize("version", ["original", "preactivation"])
def test_evaluation_by_running_averages_or_by_the_batch(version):
    """By running averages an image's logits do not depend on its company; by the batch's statistics they do, they are
    those of training, and what the running averages hold does not matter."""
    x = jax.random.uniform(jax.random.key(0), (6, 16, 16, 3))

    def model(batch_statistics):
        return ResNet(8, version=version, batch_statistics=batch_statistics, rngs=nnx.Rngs(0))

    @quickly
    def outputs(x):
        running, batch = model(False), model(True)
        trained = running(x), batch(x)
        running.eval(), batch.eval()
        batch.stem_norm.mean[...] += 7.0
        return trained, (running(x), running(x[:3])), (batch(x), batch(x[:3]))

    (trained, same), (running, running_three), (batch, batch_three) = outputs(x)
    np.testing.assert_allclose(trained, same, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(running[:3], running_three, rtol=1e-4, atol=1e-4)
    assert not np.allclose(running, trained, atol=1e-2)
    np.testing.assert_allclose(batch, trained, rtol=1e-4, atol=1e-4)
    assert not np.allclose(batch[:3], batch_three, atol=1e-2)


@pytest.mark.parametrize(("depth", "nearest"), [(21, "20 and 26"), (18, "14 and 20"), (2, "8"), (0, "8"), (-5, "8")])
def test_a_depth_that_is_not_6n_plus_2_names_the_nearest(depth, nearest):
    with pytest.raises(ValueError, match=rf"not {depth}; nearest: {nearest}$"):
        ResNet(depth, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LeNetEMNIST(head="svm", rngs=nnx.Rngs(0)), '"rbf" or "softmax", not \'svm\''),
        (lambda: LeNetCIFAR10(version="v2", rngs=nnx.Rngs(0)), '"table" or "as_run", not \'v2\''),
        (lambda: ResNet(version="v2", rngs=nnx.Rngs(0)), '"original" or "preactivation", not \'v2\''),
    ],
)
def test_unknown_variants_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
