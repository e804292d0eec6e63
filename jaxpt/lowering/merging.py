"""Axes that vmap adds, merged into others and split off again."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def merge(x: Float[Array, "S ..."], axis: int) -> Array:
    """Merges the leading axis into axis `axis`, counted without the leading one."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def split(x: Array, axis: int, size: int) -> Float[Array, "S ..."]:
    """Undoes `merge`."""
    return jnp.moveaxis(x.reshape(*x.shape[:axis], size, -1, *x.shape[axis + 1 :]), axis, 0)


def unless_on_tpu(
    folded: Callable[[Array, Array], Array],
    stacked: Callable[[Array, Array], Array],
    size: int,
    shared: Array,
    each: Float[Array, "S ..."],
) -> Array:
    """Returns folded(shared, each); in programs for TPUs `stacked` of one copy of the first argument for each replica.

    For the gradient of a first layer's kernel, whose images all replicas share. Folded, it is one convolution with more
    features, for which XLA:TPU transposes the cotangents: 214,000 of the 702,000 cycles that it estimates for a step of
    eight LeNets. With a group for each replica that part takes 134,000.
    """

    def copied(shared: Array, each: Array) -> Array:
        return stacked(jnp.broadcast_to(shared, (size, *shared.shape)), each)

    return lax.platform_dependent(shared, each, tpu=copied, default=folded)
