"""A convolution of one replica as matrix products, and its two gradients; in plain jnp, so that vmap can batch it.

The columns of the output are divided into blocks of `block`. A block reads `(block - 1) * stride + w` columns of the
image, for each of the kernel's h rows. The kernel becomes a banded matrix (Toeplitz, in blocks) from these numbers to
the outputs of one block. Blocks of one column are im2col: no arithmetic is wasted, but each number of the image is
copied h w times. One block as wide as the output is the row-Toeplitz product: h copies, and W / w times the arithmetic.

There is one product over all of the kernel's rows, or one per row, summed; the latter avoids the h-fold copy.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpt.lowering.convolution.geometry import Geometry


def forward(
    images: Float[Array, "B H W C"],
    kernel: Float[Array, "h w C O"],
    shape: Geometry,
    block: int,
    by_rows: bool = False,
    **options: Any,
) -> Float[Array, "B rows columns O"]:
    """Returns the convolution.

    Args:
        images: [B, H, W, C].
        kernel: [h, w, C, O].
        shape: sizes, strides and padding.
        block: columns of the output in one product, at least 1; a larger number than the output has means all.
        by_rows: use one product per row of the kernel.
        **options: `precision` and `preferred_element_type` of the product.
    """
    block = min(block, shape.output[1])
    dtype, options = _wide(images.dtype, options)
    seen = columns(images, shape, block)
    out = sum(
        jnp.dot(rows_of(seen, shape, rows), banded(kernel[rows], shape, block), **options)
        for rows in _groups(shape, by_rows)
    )
    # [N, block * O]: the blocks of a row are its columns, the last block reaching past the output.
    out = jnp.reshape(out, (images.shape[0], shape.output[0], -1, kernel.shape[-1]))
    return out[:, :, : shape.output[1]].astype(dtype)


def input_gradient(
    cotangent: Float[Array, "B rows columns O"],
    kernel: Float[Array, "h w C O"],
    shape: Geometry,
    block: int,
    by_rows: bool = False,
    **options: Any,
) -> Float[Array, "B H W C"]:
    """Returns the gradient with respect to the images, for a cotangent of the output; arguments as in `forward`."""
    block = min(block, shape.output[1])
    dtype, options = _wide(cotangent.dtype, options)
    given = in_blocks(cotangent, block)
    # Forward's copies, `columns` and `rows_of`, are linear, so JAX transposes them; only the product is written anew.
    images = (cotangent.shape[0], *shape.image, kernel.shape[2])
    # Shapes alone: the transposes need no images.
    seen = jax.eval_shape(lambda x: columns(x, shape, block), jax.ShapeDtypeStruct(images, kernel.dtype)).shape
    pieces = sum(
        _transposed(
            lambda s, rows=rows: rows_of(s, shape, rows),
            seen,
            jnp.dot(given, banded(kernel[rows], shape, block).T, **options),
        )
        for rows in _groups(shape, by_rows)
    )
    return _transposed(lambda x: columns(x, shape, block), images, jnp.asarray(pieces)).astype(dtype)


def kernel_gradient(
    images: Float[Array, "B H W C"],
    cotangent: Float[Array, "B rows columns O"],
    shape: Geometry,
    block: int,
    by_rows: bool = False,
    **options: Any,
) -> Float[Array, "h w C O"]:
    """Returns the gradient with respect to the kernel, for a cotangent of the output; arguments as in `forward`."""
    block = min(block, shape.output[1])
    dtype, options = _wide(images.dtype, options)
    seen, given = columns(images, shape, block), in_blocks(cotangent, block)
    parts = []
    for rows in _groups(shape, by_rows):
        # Both arguments are flat: XLA:CPU then omits its copy of the transposed windows.
        matrix = jnp.einsum("nk,np->kp", rows_of(seen, shape, rows), given, **options)
        part = (rows.stop - rows.start, shape.kernel[1], images.shape[3], cotangent.shape[3])
        # The transpose of `banded` adds up the places at which a number of the kernel is in the band.
        parts.append(_transposed(lambda w: banded(w, shape, block), part, matrix))
    return jnp.concatenate(parts).astype(dtype)


def _wide(dtype: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the dtype of a result, and options that make its summands at least float32: it is rounded once."""
    dtype = jnp.dtype(options.get("preferred_element_type") or dtype)
    return dtype, {**options, "preferred_element_type": jnp.promote_types(dtype, jnp.float32)}


def _groups(shape: Geometry, by_rows: bool) -> Iterator[slice]:
    """Yields the rows of the kernel that go into one product."""
    height = shape.kernel[0]
    step = 1 if by_rows else height
    return (slice(i, i + step) for i in range(0, height, step))


def columns(images: Float[Array, "B H W C"], shape: Geometry, block: int) -> Float[Array, "B height blocks k"]:
    """Returns the numbers that each block reads in each row of the padded image, k = width * C.

    Args:
        images: [B, H, W, C].
        shape: sizes, strides and padding.
        block: columns of the output in a block.
    """
    w, along, (vertical, (left, right)) = shape.kernel[1], shape.strides[1], shape.padding
    blocks, step, width = -(-shape.output[1] // block), block * along, (block - 1) * along + w
    # Neighbouring blocks overlap: each is wider than its distance to the next. A single block needs no parts.
    parts = -(-width // step) if blocks > 1 else 1
    step = step if blocks > 1 else width
    needed = (blocks + parts - 1) * step
    # Zeros up to whole blocks; a negative number crops columns that no window reads.
    right = needed - shape.image[1] - left
    zero = jnp.zeros((), images.dtype)
    x = jax.lax.pad(images, zero, ((0, 0, 0), (*vertical, 0), (left, right, 0), (0, 0, 0)))
    batch, height, _, channels = x.shape
    # Part p holds columns p * step to (p + 1) * step of each block: a reshape, since blocks are `step` apart.
    seen = [
        x[:, :, p * step : (p + blocks) * step].reshape(batch, height, blocks, step * channels) for p in range(parts)
    ]
    return jnp.concatenate(seen, -1)[..., : width * channels]


def rows_of(seen: Float[Array, "B height blocks k"], shape: Geometry, rows: slice) -> Float[Array, "N K"]:
    """Returns the numbers that each block of the output reads through some rows of the kernel; N = B * rows * blocks.

    Args:
        seen: the result of `columns`.
        shape: sizes, strides and padding.
        rows: the rows of the kernel; K = number of them * k, in the order of a flattened kernel.
    """
    # Row r of the output reads row r * down + i of the image through row i of the kernel.
    (count, _), (down, _) = shape.output, shape.strides
    parts = [seen[:, i : i + (count - 1) * down + 1 : down] for i in range(rows.start, rows.stop)]
    together = jnp.concatenate(parts, -1) if len(parts) > 1 else parts[0]
    return together.reshape(-1, together.shape[-1])


def banded(kernel: Float[Array, "h w C O"], shape: Geometry, block: int) -> Float[Array, "K P"]:
    """Returns the matrix from the numbers that a block reads (K) to its outputs, P = block * O."""
    h, w, channels, features = kernel.shape
    width = (block - 1) * shape.strides[1] + w
    # Column o of a block starts o strides into the block's input; elsewhere its band is zero.
    starts = [o * shape.strides[1] for o in range(block)]
    band = [jnp.pad(kernel, ((0, 0), (s, width - w - s), (0, 0), (0, 0))) for s in starts]
    return jnp.stack(band, 3).reshape(h * width * channels, block * features)


def in_blocks(output: Float[Array, "B rows columns O"], block: int) -> Float[Array, "N P"]:
    """Returns an output in blocks of columns, padded with zeros after the last column; N = B * rows * blocks."""
    columns, features = output.shape[2:]
    padded = jnp.pad(output, ((0, 0), (0, 0), (0, -columns % block), (0, 0)))
    return padded.reshape(-1, block * features)


def _transposed(linear: Any, shape: tuple[int, ...], cotangent: Array) -> Array:
    """Returns the transpose of a linear function at a cotangent, for an argument of this shape."""
    # The cotangent's type with another shape: under shard_map it keeps the mesh axes that it varies over.
    argument = jax.typeof(cotangent).update(shape=shape, weak_type=False)
    (result,) = jax.linear_transpose(linear, argument)(cotangent)
    return result


PARTS: dict[str, Callable[..., Array]] = {
    "forward": forward,
    "input_gradient": input_gradient,
    "kernel_gradient": kernel_gradient,
}
"""This lowering of the convolution and of its two gradients, by the names of `choice.PARTS`."""
