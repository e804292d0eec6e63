"""Axes that vmap adds, merged into others and split off again."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def merge(x: Float[Array, "S ..."], axis: int) -> Array:
    """Merges the leading axis into axis `axis`, counted without the leading one."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def split(x: Array, axis: int, size: int) -> Float[Array, "S ..."]:
    """Undoes `merge`."""
    return jnp.moveaxis(x.reshape(*x.shape[:axis], size, -1, *x.shape[axis + 1 :]), axis, 0)
