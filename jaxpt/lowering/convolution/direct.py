"""A convolution of one replica and its two gradients, each as one convolution of lax.

JAX expresses the gradients in the layouts of the forward pass, by dimension numbers. XLA:CPU converts them to the only
layout of its fast kernel (NHWC, HWIO), but not inside loops: in a scan over steps they run many times slower. With
`canonical` the arrays are transposed here instead. The numbers are the same.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxpt.lowering import kernel_gradients
from jaxpt.lowering.convolution.geometry import Geometry

LAYOUT = ("NHWC", "HWIO", "NHWC")


def forward(
    images: Float[Array, "B H W C"], kernel: Float[Array, "h w C O"], shape: Geometry, **options: Any
) -> Float[Array, "B rows columns O"]:
    """Returns the convolution; `options` are `precision` and `preferred_element_type`."""
    return lax.conv_general_dilated(images, kernel, shape.strides, shape.padding, dimension_numbers=LAYOUT, **options)


def input_gradient(
    cotangent: Float[Array, "B rows columns O"],
    kernel: Float[Array, "h w C O"],
    shape: Geometry,
    canonical: bool,
    **options: Any,
) -> Float[Array, "B H W C"]:
    """Returns the gradient with respect to the images: a convolution of the dilated cotangent, kernel reversed."""
    # High padding fills up to the image's size: strides may leave pixels at its end that no window reads.
    low = [k - 1 - p[0] for k, p in zip(shape.kernel, shape.padding, strict=True)]
    padding = [(p, n + k - 1 - p - _dilated(o, s)) for p, n, k, o, s in _zip(low, shape)]
    # The same contraction over O either way: transposed in memory, or read so by the dimension numbers.
    kernel = lax.rev(kernel, (0, 1))
    kernel, layout = (kernel.transpose(0, 1, 3, 2), LAYOUT) if canonical else (kernel, ("NHWC", "HWOI", "NHWC"))
    return lax.conv_general_dilated(
        cotangent, kernel, (1, 1), padding, lhs_dilation=shape.strides, dimension_numbers=layout, **options
    )


def kernel_gradient(
    images: Float[Array, "B H W C"],
    cotangent: Float[Array, "B rows columns O"],
    shape: Geometry,
    canonical: bool,
    **options: Any,
) -> Float[Array, "h w C O"]:
    """Returns the gradient with respect to the kernel: images and cotangent convolved over the batch."""
    # The cotangent is the kernel here, so the strides dilate it (`rhs_dilation`).
    low = [p[0] for p in shape.padding]
    padding = [(p, k - 1 + _dilated(o, s) - n - p) for p, n, k, o, s in _zip(low, shape)]
    # Examples and channels change places, since the sum is over examples.
    layout = LAYOUT if canonical else ("CHWN", "IHWO", "HWNC")
    preferred = options.pop("preferred_element_type", None)

    def convolve(lhs: Array, rhs: Array, preferred: Any, groups: int = 1) -> Array:
        how: dict[str, Any] = {"rhs_dilation": shape.strides, "dimension_numbers": layout, "batch_group_count": groups}
        return lax.conv_general_dilated(lhs, rhs, (1, 1), padding, preferred_element_type=preferred, **how, **options)

    if not canonical:
        numbers = lax.conv_dimension_numbers(images.shape, cotangent.shape, layout)
        stacked = kernel_gradients.batched(lambda a, b, groups: convolve(a, b, preferred, groups), numbers)
        return stacked(images, cotangent)
    # To [C, H, W, B] and [rows, columns, B, O]; the result [C, h, w, O] -> [h, w, C, O].
    out = in_portions(convolve, images, cotangent, ((3, 1, 2, 0), (1, 2, 0, 3)), preferred)
    return out.transpose(1, 2, 0, 3)


def in_portions(
    convolve: Callable[[Array, Array, Any], Array],
    lhs: Array,
    rhs: Array,
    orders: tuple[Sequence[int], Sequence[int]],
    preferred: Any,
) -> Array:
    """Returns convolve(lhs, rhs, preferred), both arrays transposed, summed over portions of channels.

    The gradient of a kernel is a convolution whose kernel is as large as the output and whose channels are the
    examples. XLA:CPU copies all numbers that one output pixel reads, several times the size of a cache: in portions it
    takes a half to two thirds of the time (one core, batch 128; best portions: 16 channels for up to 16 features, 8 for
    32 and 64). Each portion is transposed by itself, inside the loop. XLA would merge a transposition of the whole
    array with the layers that made it, and compute them again in the order of the result, with strided reads.

    Args:
        convolve: convolution of arrays with channels last, kernel [*space, channels, features].
        lhs: the images, with axes in any order.
        rhs: the kernel; a convolution whose kernel has fewer than 64 pixels is not divided.
        orders: the axes of both, channels last.
        preferred: dtype of the result; None: that of the arguments.
    """
    of_lhs, of_rhs = orders
    pixels, channels = math.prod(rhs.shape[axis] for axis in of_rhs[:-2]), rhs.shape[of_rhs[-2]]
    most = 16 if rhs.shape[of_rhs[-1]] < 32 else 8
    # Equal portions only; without a divisor in this range all channels are taken at once.
    portion = next((p for p in range(most, most // 2, -1) if channels % p == 0), channels)

    def transposed(lhs: Array, rhs: Array, preferred: Any) -> Array:
        return convolve(lhs.transpose(of_lhs), rhs.transpose(of_rhs), preferred)

    if pixels < 64 or portion == channels:
        return transposed(lhs, rhs, preferred)

    def portions(x: Array, axis: int) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, portion, *x.shape[axis + 1 :]), axis, 0)

    given = portions(lhs, of_lhs[-1]), portions(rhs, of_rhs[-2])
    dtype = jnp.result_type(lhs, rhs) if preferred is None else preferred
    if jnp.issubdtype(dtype, jnp.floating):  # narrow dtypes must be rounded only once, after the sum
        preferred = jnp.promote_types(dtype, jnp.float32)
    parts = lax.map(lambda pair: transposed(pair[0], pair[1], preferred), given)
    return parts.sum(0, dtype=parts.dtype).astype(dtype)


def _dilated(size: int, stride: int) -> int:
    return (size - 1) * stride + 1


def _zip(low: list[int], shape: Geometry) -> Any:
    return zip(low, shape.image, shape.kernel, shape.output, shape.strides, strict=True)


PARTS: dict[str, Callable[..., Array]] = {
    "forward": forward,
    "input_gradient": input_gradient,
    "kernel_gradient": kernel_gradient,
}
"""This lowering of the convolution and of its two gradients, by the names of `choice.PARTS`."""
