"""Convolutions for XLA:CPU, in the one layout that it is fast in, or as matrix products.

XLA:CPU has a fast convolution only for images [B, H, W, C] and kernels [h, w, C, O]. It converts others to that form in
the entry computation, but not inside a loop; and gradients of convolutions have other forms. Here all are written with
explicit transpositions, or as the matrix products that `lowering.convolution` chooses for their shapes. Products
multiply zeros with nearby pixels, so a value that is not finite spreads further.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jax.extend.core.primitives import conv_general_dilated_p
from jaxtyping import Array

from jaxpt.lowering.convolution.batching import Static, compute, describe
from jaxpt.lowering.convolution.choice import choose
from jaxpt.lowering.convolution.direct import in_portions
from jaxpt.lowering.convolution.geometry import Geometry, geometry

Axes = tuple[int, ...]


def applies(eqn: JaxprEqn) -> bool:
    """Returns whether an equation is a convolution of lax."""
    return eqn.primitive is conv_general_dilated_p


def apply(eqn: JaxprEqn, read: Callable[[Any], Any], made_by: Mapping[Any, JaxprEqn]) -> Array:
    """Returns the output of an equation for which `applies` is true; arguments as in `elementwise.apply`."""
    del made_by
    return _channels_last(*map(read, eqn.invars), **eqn.params)


def _ungrouped(given: tuple[Array, Array], orders: tuple[Axes, Axes], params: dict[str, Any]) -> Array:
    """Returns a channels-last convolution, by the lowering that `convolution.choice` returns for its shapes."""
    lhs, rhs = (x.transpose(order) for x, order in zip(given, orders, strict=True))
    preferred, plain = params["preferred_element_type"], {1} == {*params["lhs_dilation"], *params["rhs_dilation"]}
    if lhs.ndim == 4 and plain and min(*lhs.shape, *rhs.shape) > 0 and jnp.issubdtype(lhs.dtype, jnp.floating):
        shape = geometry(lhs.shape[1:3], rhs.shape[:2], params["window_strides"], params["padding"])
        if min(shape.output) > 0:
            part, shape, a, b = _described(shape, lhs, rhs)
            # This module is for CPUs only, and programs are rewritten for one replica (M = 1) at a time.
            lowering = choose(describe(part, shape, (1, *a.shape), (1, *b.shape)), "cpu")
            if lowering != "direct":
                out = compute(part, Static(shape, lowering, params["precision"], preferred, None), a[None], b[None])[0]
                # [h, w, C, O] -> [C, h, w, O]: the channels C are the examples of this convolution.
                return out.transpose(2, 0, 1, 3) if part == "kernel_gradient" else out

    def convolve(lhs: Array, rhs: Array, preferred: Any) -> Array:
        return conv_general_dilated_p.bind(lhs, rhs, **{**params, "preferred_element_type": preferred})

    # From the arrays as they lie: portions are transposed one by one.
    return in_portions(convolve, *given, orders, preferred)


def _described(shape: Geometry, lhs: Array, rhs: Array) -> tuple[str, Geometry, Array, Array]:
    """Returns a convolution, perhaps as another one's gradient, as part, geometry and arrays of `batching.compute`."""
    (height, width), ((top, bottom), (left, right)), (h, w) = shape.image, shape.padding, shape.kernel
    if shape.strides == (1, 1) and h * w > math.prod(shape.output) > 1:
        # A kernel larger than its output: the gradient of a kernel, whose cotangent slides over the images.
        return (
            "kernel_gradient",
            shape._replace(kernel=shape.output),
            lhs.transpose(3, 1, 2, 0),
            rhs.transpose(2, 0, 1, 3),
        )
    if shape.strides == (1, 1) and (height + top + bottom) * (width + left + right) > 1.5 * height * width:
        # Much of the input is padding: taken as the input gradient of a convolution with less padding.
        less = (h - 1 - top, h - 1 - bottom), (w - 1 - left, w - 1 - right)
        of = shape._replace(image=shape.output, padding=less)
        return "input_gradient", of, lhs, rhs[::-1, ::-1].transpose(0, 1, 3, 2)
    return "forward", shape, lhs, rhs


def _channels_last(lhs: Array, rhs: Array, *, dimension_numbers: lax.ConvDimensionNumbers, **params: Any) -> Array:
    """Returns a convolution with any dimension numbers, computed in Flax's layout (channels last)."""
    # Each specification lists (batch or output, feature or input, *space).
    images, kernel, out = dimension_numbers
    last = lhs.ndim - 1
    space = tuple(range(1, last))
    channels_last = lax.ConvDimensionNumbers((0, last, *space), (last, last - 1, *range(last - 1)), (0, last, *space))
    given = jnp.asarray(lhs), jnp.asarray(rhs)  # constants are of NumPy
    orders = (images[0], *images[2:], images[1]), (*kernel[2:], kernel[1], kernel[0])
    params["dimension_numbers"] = channels_last
    # Grouped convolutions get the layout alone: the lowerings cover none.
    if params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
        result = conv_general_dilated_p.bind(*map(jnp.transpose, given, orders), **params)
    else:
        result = _ungrouped(given, orders, params)
    return jnp.transpose(result, [(out[0], *out[2:], out[1]).index(axis) for axis in range(last + 1)])
