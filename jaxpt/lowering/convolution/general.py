"""A `lax.conv_general_dilated` for stacked replicas, for use in layers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from jaxpt.lowering.convolution import choice, products
from jaxpt.lowering.convolution.batching import Static, apply, describe
from jaxpt.lowering.convolution.geometry import Geometry, geometry


def conv_general_dilated(
    lhs: Float[Array, "..."],
    rhs: Float[Array, "..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    *,
    lowering: str | None = None,
    **options: Any,
) -> Float[Array, "..."]:
    """Computes `lax.conv_general_dilated`, fast for stacked replicas; the same numbers up to rounding.

    Under `vmap` with a kernel per replica, lax's convolution becomes a grouped one, which is slow on CPUs; inside a
    loop its gradients also miss XLA's fast kernel. This function knows the number of replicas, and chooses by shapes
    and platform how to compute each convolution and gradient.

        nnx.Conv(1, 8, (3, 3), conv_general_dilated=jaxpt.conv_general_dilated, rngs=rngs)
        linen.Conv(8, (3, 3), conv_general_dilated=jaxpt.conv_general_dilated)

    It covers two-dimensional channels-last convolutions (NHWC, HWIO) of real floating-point numbers without dilation or
    groups; other convolutions go to lax. Reverse mode (`grad`, `vjp`) works to any order. Forward mode (`jvp`,
    `jacfwd`, `hessian`) does not; use `conv_by_products` or lax for it.

    Args:
        lhs: images [B, H, W, C].
        rhs: kernel [h, w, C, O].
        window_strides: step between windows, per axis.
        padding: "SAME", "VALID" or (low, high) per axis.
        lhs_dilation: as in lax.
        rhs_dilation: as in lax.
        dimension_numbers: as in lax.
        feature_group_count: as in lax.
        batch_group_count: as in lax.
        precision: as in lax, for gradients too.
        preferred_element_type: dtype of the result, as in lax.
        lowering: "direct", "grouped", "blocks", "rows", "im2col" or "toeplitz" for the convolution and its gradients;
            None: chosen for each of them (`convolution.choice`). On CPUs, engines make the choice for lax's
            convolutions as well.
        **options: as in lax.

    Returns:
        [B, rows, columns, O].

    Raises:
        ValueError: the lowering is unknown.
    """
    if lowering is not None and lowering not in choice.LOWERINGS:
        raise ValueError(f"lowering must be None or one of {', '.join(choice.LOWERINGS)}, not {lowering!r}")
    lax_only = {"lhs_dilation": lhs_dilation, "rhs_dilation": rhs_dilation, "dimension_numbers": dimension_numbers}
    lax_only |= {"feature_group_count": feature_group_count, "batch_group_count": batch_group_count, **options}
    shape = _covered(lhs, rhs, window_strides, padding, **lax_only)
    if shape is None:
        lax_only |= {"precision": precision, "preferred_element_type": preferred_element_type}
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **lax_only)
    if precision is None:  # read now: gradients may be traced outside of the context manager
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    # The forward pass keeps the result's dtype; only gradients are cast (`batching`).
    static = Static(shape, lowering, precision, preferred_element_type, None)
    lhs, rhs = _varying_alike(lhs, rhs), _varying_alike(rhs, lhs)
    # One replica; the batching rule merges a vmap over replicas into this leading axis.
    return apply("forward", static, lhs[None], rhs[None])[0]


def conv_by_products(
    lhs: Float[Array, "..."],
    rhs: Float[Array, "..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *arguments: Any,
    **options: Any,
) -> Float[Array, "..."]:
    """Computes `lax.conv_general_dilated` as one product of windows with a banded matrix, in plain jnp.

    JAX derives its gradients and its batching, so forward mode works. Convolutions that `conv_general_dilated` does not
    cover go to lax here, too.

    Args:
        lhs: images [B, H, W, C].
        rhs: kernel [h, w, C, O].
        window_strides: step between windows, per axis.
        padding: "SAME", "VALID" or (low, high) per axis.
        *arguments: as in lax.
        **options: as in lax; `precision` and `preferred_element_type` go to the product.

    Returns:
        [B, rows, columns, O].
    """
    what = ("lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count", "batch_group_count")
    how = ("precision", "preferred_element_type")
    # Positional arguments come in lax's order.
    options |= dict(zip(what + how, arguments, strict=False))
    numeric = {name: options.pop(name, None) for name in how}
    shape = _covered(lhs, rhs, window_strides, padding, **options)
    if shape is None:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options, **numeric)
    # For one replica: under vmap the sizes here are still those of one.
    work = describe("forward", shape, (1, *lhs.shape), (1, *rhs.shape))
    return products.forward(lhs, rhs, shape, choice.block("blocks", work), **numeric)


def _covered(
    lhs: Array,
    rhs: Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    **options: Any,
) -> Geometry | None:
    """Returns the geometry of a convolution that this module covers; None for one that goes to lax."""
    if lhs.ndim != 4 or rhs.ndim != 4 or lhs.dtype != rhs.dtype or not jnp.issubdtype(lhs.dtype, jnp.floating):
        return None
    # Resolved by lax, since None means its default, NCHW.
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if layout != lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC")):
        return None
    # None and 1 both mean no dilation; an option unknown here is lax's to interpret.
    dilated = any(d is not None and set(d) != {1} for d in (lhs_dilation, rhs_dilation))
    unusual = any(value is not None for value in options.values())
    # Channels that do not match go to lax for its error message.
    if dilated or unusual or feature_group_count != 1 or batch_group_count != 1 or lhs.shape[3] != rhs.shape[2]:
        return None
    shape = geometry(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    # Without images, kernels or outputs lax decides: empty arrays have nothing to lower.
    return shape if min(*lhs.shape, *rhs.shape, *shape.output) > 0 else None


def _varying_alike(x: Array, other: Array) -> Array:
    """Returns x; under `shard_map` it also varies over the mesh axes of `other`, as lax's own functions ensure."""
    # shard_map checks the axes over which each argument's type varies; `pcast` adds the missing ones.
    missing = jax.typeof(other).manual_axis_type.varying - jax.typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(missing), to="varying") if missing else x
