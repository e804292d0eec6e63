"""A convolution of one replica as one matrix product, and its two gradients; in plain jnp, so that it vmaps to a batch.

The columns of the output are taken in blocks of `block`. A block sees `(block - 1) * stride + w` columns of the image,
for each of the kernel's h rows; the kernel becomes a banded matrix (Toeplitz, in blocks) from all that to the outputs
of one block. Blocks of one column are im2col: no arithmetic is wasted, but each number of the image is copied h w
times. One block as wide as the output is the row-Toeplitz product: h copies, and W / w times the arithmetic.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpt.convolution.geometry import Geometry


def forward(
    images: Float[Array, "B H W C"], kernel: Float[Array, "h w C O"], shape: Geometry, block: int, **options: Any
) -> Float[Array, "B rows columns O"]:
    """Returns the convolution.

    Args:
        images: [B, H, W, C].
        kernel: [h, w, C, O].
        shape: sizes, strides and padding.
        block: columns of the output in one product, at least 1; more than there are count as all.
        **options: `precision` and `preferred_element_type` of the product.
    """
    block = min(block, shape.output[1])
    out = jnp.einsum("bynk,kp->bynp", windows(images, shape, block), banded(kernel, shape, block), **options)
    out = out.reshape(*out.shape[:2], -1, kernel.shape[-1])
    return out[:, :, : shape.output[1]]


def input_gradient(
    cotangent: Float[Array, "B rows columns O"],
    kernel: Float[Array, "h w C O"],
    shape: Geometry,
    block: int,
    **options: Any,
) -> Float[Array, "B H W C"]:
    """Returns the gradient with respect to the images, for a cotangent of the output; arguments as in `forward`."""
    block = min(block, shape.output[1])
    pieces = jnp.einsum("bynp,kp->bynk", in_blocks(cotangent, block), banded(kernel, shape, block), **options)
    images = (cotangent.shape[0], *shape.image, kernel.shape[2])
    return _transposed(lambda x: windows(x, shape, block), images, pieces)


def kernel_gradient(
    images: Float[Array, "B H W C"],
    cotangent: Float[Array, "B rows columns O"],
    shape: Geometry,
    block: int,
    **options: Any,
) -> Float[Array, "h w C O"]:
    """Returns the gradient with respect to the kernel, for a cotangent of the output; arguments as in `forward`."""
    block = min(block, shape.output[1])
    matrix = jnp.einsum("bynk,bynp->kp", windows(images, shape, block), in_blocks(cotangent, block), **options)
    kernel = (*shape.kernel, images.shape[3], cotangent.shape[3])
    return _transposed(lambda w: banded(w, shape, block), kernel, matrix)


def windows(images: Float[Array, "B H W C"], shape: Geometry, block: int) -> Float[Array, "B rows blocks K"]:
    """Returns what each block sees, its K = h * width * C numbers in the order of a flattened kernel.

    Args:
        images: [B, H, W, C].
        shape: sizes, strides and padding.
        block: columns of the output in a block.
    """
    rows, columns = shape.output
    (h, w), (down, along), (vertical, (left, right)) = shape.kernel, shape.strides, shape.padding
    blocks, step, width = -(-columns // block), block * along, (block - 1) * along + w
    parts = -(-width // step) if blocks > 1 else 1
    step = step if blocks > 1 else width
    needed = (blocks + parts - 1) * step
    right = needed - shape.image[1] - left
    zero = jnp.zeros((), images.dtype)
    x = jax.lax.pad(images, zero, ((0, 0, 0), (*vertical, 0), (left, right, 0), (0, 0, 0)))
    batch, height, _, channels = x.shape
    # Part p holds the p-th `step` columns from each block's first one: a reshape, since blocks are `step` apart.
    seen = [
        x[:, :, p * step : (p + blocks) * step].reshape(batch, height, blocks, step * channels) for p in range(parts)
    ]
    x = jnp.concatenate(seen, -1)[..., : width * channels]
    return jnp.concatenate([x[:, i : i + (rows - 1) * down + 1 : down] for i in range(h)], -1)


def banded(kernel: Float[Array, "h w C O"], shape: Geometry, block: int) -> Float[Array, "K P"]:
    """Returns the matrix from what a block sees (K) to its outputs, P = block * O."""
    h, w, channels, features = kernel.shape
    width = (block - 1) * shape.strides[1] + w
    starts = [o * shape.strides[1] for o in range(block)]
    band = [jnp.pad(kernel, ((0, 0), (s, width - w - s), (0, 0), (0, 0))) for s in starts]
    return jnp.stack(band, 3).reshape(h * width * channels, block * features)


def in_blocks(output: Float[Array, "B rows columns O"], block: int) -> Float[Array, "B rows blocks P"]:
    """Returns an output in blocks of columns, zeros after the last column."""
    batch, rows, columns, features = output.shape
    blocks = -(-columns // block)
    padded = jnp.pad(output, ((0, 0), (0, 0), (0, blocks * block - columns), (0, 0)))
    return padded.reshape(batch, rows, blocks, block * features)


def _transposed(linear: Any, shape: tuple[int, ...], cotangent: Array) -> Array:
    """Returns the transpose of a linear function at a cotangent, for an argument of this shape."""
    argument = jax.typeof(cotangent).update(shape=shape, weak_type=False)
    (result,) = jax.linear_transpose(linear, argument)(cotangent)
    return result
