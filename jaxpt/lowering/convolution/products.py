"""A convolution of one replica as matrix products, and its two gradients; in plain jnp, so that it vmaps to a batch.

The columns of the output are taken in blocks of `block`. A block sees `(block - 1) * stride + w` columns of the image,
for each of the kernel's h rows; the kernel becomes a banded matrix (Toeplitz, in blocks) from all that to the outputs
of one block. Blocks of one column are im2col: no arithmetic is wasted, but each number of the image is copied h w
times. One block as wide as the output is the row-Toeplitz product: h copies, and W / w times the arithmetic.

It is one product over all of the kernel's rows, or one for each, summed: then the h-fold copy is never made.
"""

from collections.abc import Iterator
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
        block: columns of the output in one product, at least 1; more than there are count as all.
        by_rows: one product for each row of the kernel.
        **options: `precision` and `preferred_element_type` of the product.
    """
    block = min(block, shape.output[1])
    dtype, options = _wide(images.dtype, options)
    seen = columns(images, shape, block)
    out = sum(
        jnp.dot(rows_of(seen, shape, rows), banded(kernel[rows], shape, block), **options)
        for rows in _groups(shape, by_rows)
    )
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
    images = (cotangent.shape[0], *shape.image, kernel.shape[2])
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
        # Both arguments flat: XLA:CPU then leaves out the copy that it makes of windows transposed.
        matrix = jnp.einsum("nk,np->kp", rows_of(seen, shape, rows), given, **options)
        part = (rows.stop - rows.start, shape.kernel[1], images.shape[3], cotangent.shape[3])
        parts.append(_transposed(lambda w: banded(w, shape, block), part, matrix))
    return jnp.concatenate(parts).astype(dtype)


def _wide(dtype: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the dtype of a result, and options with which its summands are float32 at least: it is rounded once."""
    dtype = jnp.dtype(options.get("preferred_element_type") or dtype)
    return dtype, {**options, "preferred_element_type": jnp.promote_types(dtype, jnp.float32)}


def _groups(shape: Geometry, by_rows: bool) -> Iterator[slice]:
    """Yields the rows of the kernel that go into one product."""
    height = shape.kernel[0]
    step = 1 if by_rows else height
    return (slice(i, i + step) for i in range(0, height, step))


def columns(images: Float[Array, "B H W C"], shape: Geometry, block: int) -> Float[Array, "B height blocks k"]:
    """Returns what each block sees in each row of the padded image, k = width * C numbers.

    Args:
        images: [B, H, W, C].
        shape: sizes, strides and padding.
        block: columns of the output in a block.
    """
    w, along, (vertical, (left, right)) = shape.kernel[1], shape.strides[1], shape.padding
    blocks, step, width = -(-shape.output[1] // block), block * along, (block - 1) * along + w
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
    return jnp.concatenate(seen, -1)[..., : width * channels]


def rows_of(seen: Float[Array, "B height blocks k"], shape: Geometry, rows: slice) -> Float[Array, "N K"]:
    """Returns what each block of the output sees through some rows of the kernel; N = B * rows * blocks.

    Args:
        seen: what `columns` returns.
        shape: sizes, strides and padding.
        rows: which rows of the kernel; K = number of them * k, in the order of a flattened kernel.
    """
    (count, _), (down, _) = shape.output, shape.strides
    parts = [seen[:, i : i + (count - 1) * down + 1 : down] for i in range(rows.start, rows.stop)]
    together = jnp.concatenate(parts, -1) if len(parts) > 1 else parts[0]
    return together.reshape(-1, together.shape[-1])


def banded(kernel: Float[Array, "h w C O"], shape: Geometry, block: int) -> Float[Array, "K P"]:
    """Returns the matrix from what a block sees (K) to its outputs, P = block * O."""
    h, w, channels, features = kernel.shape
    width = (block - 1) * shape.strides[1] + w
    starts = [o * shape.strides[1] for o in range(block)]
    band = [jnp.pad(kernel, ((0, 0), (s, width - w - s), (0, 0), (0, 0))) for s in starts]
    return jnp.stack(band, 3).reshape(h * width * channels, block * features)


def in_blocks(output: Float[Array, "B rows columns O"], block: int) -> Float[Array, "N P"]:
    """Returns an output in blocks of columns, zeros after the last column; N = B * rows * blocks."""
    columns, features = output.shape[2:]
    padded = jnp.pad(output, ((0, 0), (0, 0), (0, -columns % block), (0, 0)))
    return padded.reshape(-1, block * features)


def _transposed(linear: Any, shape: tuple[int, ...], cotangent: Array) -> Array:
    """Returns the transpose of a linear function at a cotangent, for an argument of this shape."""
    argument = jax.typeof(cotangent).update(shape=shape, weak_type=False)
    (result,) = jax.linear_transpose(linear, argument)(cotangent)
    return result
