"""Convolutions of stacked replicas as matrix products."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def conv_by_products(
    lhs: Float[Array, "..."],
    rhs: Float[Array, "..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **options: Any,
) -> Float[Array, "..."]:
    """`lax.conv_general_dilated` for `nnx.Conv` as one product of shifted windows with the kernel.

    With a kernel per replica, as under `vmap`, the stock convolution becomes a grouped one, which is slow on CPUs; this
    becomes a batched product instead. It pays for small images, since the windows are written to memory.
    Two-dimensional channels-last convolutions without dilation or groups are covered; everything else goes to lax.

        nnx.Conv(1, 8, (3, 3), conv_general_dilated=jaxpt.conv_by_products, rngs=rngs)

    Args:
        lhs: images [B, H, W, C].
        rhs: kernel [h, w, C, O].
        window_strides: step between windows, per axis.
        padding: "SAME", "VALID" or (low, high) per axis.
        lhs_dilation: as in lax.
        rhs_dilation: as in lax.
        dimension_numbers: as in lax.
        feature_group_count: as in lax.
        **options: `precision` and `preferred_element_type` go to the product, others to lax.

    Returns:
        [B, rows, columns, O].
    """
    channels_last = lhs.ndim == 4 and lax.conv_dimension_numbers(
        lhs.shape, rhs.shape, dimension_numbers
    ) == lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
    plain = all(d is None or set(d) == {1} for d in (lhs_dilation, rhs_dilation))
    known = {"precision", "preferred_element_type", "batch_group_count"}
    unusual = options.get("batch_group_count", 1) != 1 or any(
        value is not None for name, value in options.items() if name not in known
    )
    if not channels_last or not plain or feature_group_count != 1 or unusual:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
            **options,
        )  # fmt: skip
    size, strides = rhs.shape[:2], window_strides
    pads = lax.padtype_to_pads(lhs.shape[1:3], size, strides, padding) if isinstance(padding, str) else padding
    windows = _windows(jnp.pad(lhs, ((0, 0), *pads, (0, 0))), size, strides)
    kernel = rhs.reshape(-1, rhs.shape[-1])
    return jnp.dot(
        windows,
        kernel,
        precision=options.get("precision"),
        preferred_element_type=options.get("preferred_element_type"),
    )


def _windows(
    x: Float[Array, "B H W C"], size: Sequence[int], strides: Sequence[int]
) -> Float[Array, "B rows columns K"]:
    """Returns what each window sees, its K = h w C numbers in the order of a flattened HWIO kernel."""
    rows, columns = ((n - k) // s + 1 for n, k, s in zip(x.shape[1:3], size, strides, strict=True))

    def shifted(i: int, j: int) -> jax.Array:
        return x[
            :,
            i : i + (rows - 1) * strides[0] + 1 : strides[0],
            j : j + (columns - 1) * strides[1] + 1 : strides[1],
        ]

    return jnp.concatenate([shifted(i, j) for i in range(size[0]) for j in range(size[1])], -1)
