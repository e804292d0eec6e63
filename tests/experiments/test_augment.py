import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

import jaxpt
from experiments.augment import Augment, Standardise, pad_crop_flip, pixel_mean, prepare

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)


def test_prepared_training_images_have_mean_zero_and_the_scale_of_one():
    mean = pixel_mean(PIXELS)
    assert mean.shape == (8, 8, 3)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, PIXELS.astype(float).mean(0) / 255, rtol=1e-6)
    np.testing.assert_allclose(prepare(PIXELS), PIXELS / np.float32(255), rtol=1e-6)
    out = prepare(PIXELS, mean)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out.mean(0), np.zeros_like(mean), atol=1e-6)
    np.testing.assert_allclose(pixel_mean(PIXELS / 255), mean, rtol=1e-6)


def test_floats_are_taken_as_they_are_and_small_images_are_padded_with_zeros():
    x = np.random.default_rng(0).uniform(size=(2, 28, 28, 1)).astype(np.float32)
    out = np.asarray(prepare(x, size=32))
    np.testing.assert_array_equal(out[:, 2:30, 2:30], x)
    assert out.shape == (2, 32, 32, 1)
    np.testing.assert_allclose(out.sum(), x.sum(), rtol=1e-5)
    assert prepare(x, size=31).shape == (2, 31, 31, 1)
    mean = pixel_mean(x)
    np.testing.assert_allclose(np.asarray(prepare(x, mean, 32))[:, :2], 0, err_msg="padding is zero after the mean")


@pytest.mark.parametrize(
    ("error", "call", "said"),
    [
        (ValueError, lambda: pixel_mean(PIXELS[:0]), "at least one image"),
        (ValueError, lambda: prepare(PIXELS, np.zeros(3, np.float32)), r"mean image has shape \(3,\)"),
        (ValueError, lambda: prepare(PIXELS, size=7), "do not fit into 7x7"),
        (TypeError, lambda: prepare(PIXELS.astype(np.int32)), "uint8 .* not int32"),
    ],
)
def test_what_cannot_be_prepared_is_said(error, call, said):
    with pytest.raises(error, match=said):
        call()


def choices(images, out, pad):
    """[(row, column, flip)] of each example, found by comparing with every crop of the padded image."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    span = range(2 * pad + 1)
    found = np.full((len(images), 3), -1)
    for row in span:
        for column in span:
            crop = padded[:, row : row + height, column : column + width]
            for flip, image in enumerate((crop, crop[:, :, ::-1])):
                same = (image == out).all((1, 2, 3))
                assert (found[same] == -1).all(), "no two crops of random pixels are alike"
                found[same] = row, column, flip
    assert (found >= 0).all(), "every output is a crop or a mirrored crop"
    return found


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("shape", "pad"), [((8, 8, 3), 2), ((5, 7, 1), 1), ((6, 6, 2), 0)])
def test_every_output_is_a_crop_or_mirrored_crop_of_the_padded_image(dtype, shape, pad):
    images = np.random.default_rng(1).integers(1, 256, (50, *shape)).astype(dtype)
    out = pad_crop_flip(jax.random.key(0), images, pad)
    assert out.shape == images.shape
    assert out.dtype == dtype
    choices(images, np.asarray(out), pad)


def test_offsets_and_flips_are_uniform_and_independent():
    """Chi-square over all 9 * 9 * 2 outcomes of 8,100 images, 50 expected of each; the key is fixed."""
    images = np.random.default_rng(2).integers(1, 256, (8100, 6, 6, 1), np.uint8)
    found = choices(images, np.asarray(pad_crop_flip(jax.random.key(3), images)), 4)
    counts = np.zeros((9, 9, 2))
    np.add.at(counts, tuple(found.T), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 0.01
    for axes in ((1, 2), (0, 2), (0, 1)):
        assert stats.chisquare(counts.sum(axes)).pvalue > 0.01


def test_it_is_a_function_of_the_key_under_jit_and_vmap():
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.jit(jax.vmap(pad_crop_flip, (0, None)))(keys, PIXELS)
    for key, out in zip(keys, stacked, strict=True):
        np.testing.assert_array_equal(pad_crop_flip(key, PIXELS), out)
    assert not np.array_equal(stacked[0], stacked[1])


def test_augment_is_active_in_training_only():
    layer = Augment(2, rngs=nnx.Rngs(0))
    first, second = layer(PIXELS), layer(PIXELS)
    assert not np.array_equal(first, second), "every call draws anew"
    layer.eval()
    np.testing.assert_array_equal(layer(PIXELS), PIXELS)
    np.testing.assert_array_equal(nnx.view(Augment(2, rngs=nnx.Rngs(0)), deterministic=True)(PIXELS), PIXELS)


class Flat(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.Linear(8 * 8 * 3, 2, rngs=rngs)

    def __call__(self, x):
        return self.dense(x.reshape(len(x), -1))


@pytest.mark.slow
def test_in_an_engine_replicas_crop_by_their_own_key_and_carry_no_mean_image():
    mean = pixel_mean(PIXELS)
    problem = jaxpt.nnx_problem(
        lambda *, rngs: nnx.Sequential(Standardise(mean), Augment(2, rngs=rngs), Flat(rngs=rngs)),
        lambda model, batch: jaxpt.cross_entropy(model(batch["image"]), batch["label"]),
    )
    params, rest = problem.init(jax.random.key(0))
    assert jax.tree.leaves(rest) == []
    batch = {"image": PIXELS, "label": np.arange(len(PIXELS)) % 2}
    keys = jax.random.split(jax.random.key(1), 2)
    losses = jax.vmap(lambda key: problem.loss(params, rest, batch, {}, key)[0])(keys)
    assert not np.array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(losses[0], problem.loss(params, rest, batch, {}, keys[0])[0])
    plain = problem.model(params, rest).layers[2](prepare(PIXELS, mean))
    np.testing.assert_allclose(
        problem.evaluate(params, rest, batch)["energy"], jaxpt.cross_entropy(plain, batch["label"]), rtol=1e-5
    )
