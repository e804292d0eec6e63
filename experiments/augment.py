"""From the pixels on the device to what a network is trained on: scaling, per-pixel mean, random crops and flips.

Data sets stay uint8 in memory. Everything here runs inside the training step, as the first layers of a model, so a
model knows whether it trains and has a random key, and the loss stays `loss(model, batch)`:

    mean = pixel_mean(data.train["image"])
    make = lambda *, rngs: nnx.Sequential(Standardise(mean), Augment(rngs=rngs), ResNet(20, rngs=rngs))
    problem = jaxpt.nnx_problem(make, loss)
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, Num


def pixel_mean(images: Num[np.ndarray, "N H W C"]) -> Float[np.ndarray, "H W C"]:
    """Returns the mean image, float32, in the scale of `prepare`; take it from the training split only.

    Args:
        images: uint8 pixels, or floats scaled already.

    Raises:
        ValueError: there is no image.
    """
    images = np.asarray(images)
    if len(images) == 0:
        raise ValueError(f"the mean image needs at least one image, but the array has shape {images.shape}")
    mean = images.mean(0, dtype=np.float64)
    return (mean / 255 if images.dtype == np.uint8 else mean).astype(np.float32)


def prepare(
    images: Num[Array, "B H W C"], mean: Float[np.ndarray, "H W C"] | None = None, size: int | None = None
) -> Float[Array, "B rows columns C"]:
    """Scales pixels to [0, 1], subtracts the mean image and pads with zeros.

    Args:
        images: uint8, divided by 255, or floats, taken as they are.
        mean: the mean image in [0, 1], or None.
        size: rows and columns of the result, 32 for EMNIST's 28x28; None: those of the images.

    Raises:
        ValueError: the mean image has another shape than the images, or they do not fit into `size`.
        TypeError: pixels are integers other than uint8.
    """
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images must be uint8 (0 .. 255) or floats in [0, 1], not {images.dtype}")
    if mean is not None:
        if mean.shape != images.shape[1:]:
            raise ValueError(f"the mean image has shape {mean.shape}, but the images have shape {images.shape[1:]}")
        images = images - mean
    if size is None:
        return images
    missing = [size - length for length in images.shape[1:3]]
    if min(missing) < 0:
        raise ValueError(f"images of {images.shape[1]}x{images.shape[2]} pixels do not fit into {size}x{size}")
    return jnp.pad(images, ((0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)))


def pad_crop_flip(key: Key[Array, ""], images: Num[Array, "B H W C"], pad: int = 4) -> Num[Array, "B H W C"]:
    """Crops each image at random after padding it with zeros, and mirrors it left to right with probability 1/2.

    Each example has its own offsets, uniform on 0 .. 2 pad, and its own flip. Pixels are moved, never computed with, so
    any dtype is exact.

    Args:
        key: decides everything; may be traced.
        images: pixels of any kind.
        pad: zeros on each side. At 0 images are only mirrored.
    """
    count, height, width, _ = images.shape
    key_offset, key_flip = jax.random.split(key)
    offset = jax.random.randint(key_offset, (count, 2), 0, 2 * pad + 1)
    flip = jax.random.bernoulli(key_flip, shape=(count, 1))
    row = offset[:, :1] + jnp.arange(height)
    column = offset[:, 1:] + jnp.where(flip, jnp.arange(width)[::-1], jnp.arange(width))
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    # One gather per axis: on a CPU an order of magnitude faster than a dynamic_slice per example, one-hot products or
    # a `where` over all shifts. Indices are in range by construction, and "clip" spares the check.
    rows = jnp.take_along_axis(padded, row[:, :, None, None], 1, mode="clip")
    return jnp.take_along_axis(rows, column[:, None, :, None], 2, mode="clip")


class Standardise(nnx.Module):
    """`prepare` as a layer: scales uint8 pixels, subtracts the mean image, pads; the same in training and evaluation.

    The mean is a constant of the compiled program, not a variable of the model: a variable other than a weight belongs
    to each replica, so it would be stored M times and a minibatch that all replicas share would be standardised M
    times, whereas a constant leaves it shared up to the first thing that differs between replicas.

    Args:
        mean: the mean image [H, W, C] in [0, 1], or None.
        size: rows and columns of the result, or None.
    """

    def __init__(self, mean: Float[np.ndarray, "H W C"] | None = None, size: int | None = None):
        self.mean = None if mean is None else nnx.static(_Constant(np.array(mean, np.float32)))
        self.size = size

    def __call__(self, images: Num[Array, "B H W C"]) -> Float[Array, "B rows columns C"]:
        """Returns standardised images; raises as `prepare` does."""
        return prepare(images, None if self.mean is None else self.mean.value, self.size)


class Augment(nnx.Module):
    """`pad_crop_flip` in training mode, nothing in evaluation mode.

    Each replica crops and mirrors by its own key, so replicas see the same examples but not the same pixels. After
    `Standardise` the padding is the mean image, as in He et al.; before it, black.

    Args:
        pad: zeros on each side.
        rngs: random streams; the stream `augment` is used.
    """

    def __init__(self, pad: int = 4, *, rngs: nnx.Rngs):
        self.pad = pad
        self.deterministic = False
        self.rngs = rngs["augment"].fork()

    def __call__(self, images: Num[Array, "B H W C"]) -> Num[Array, "B H W C"]:
        """Returns images of the same shape and dtype."""
        return images if self.deterministic else pad_crop_flip(self.rngs(), images, self.pad)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Lets `nnx.view` switch between training and evaluation."""
        if deterministic is not None:
            self.deterministic = deterministic


class _Constant:
    """An array that NNX takes for a static value; equal only to itself."""

    def __init__(self, value: np.ndarray):
        self.value = value
