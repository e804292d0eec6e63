"""Rows of many arrays gathered from all shards by few collectives."""

import math
from collections.abc import Hashable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

T = TypeVar("T")
_LARGE = 2**18
"""Numbers of a shard's array from which on it travels alone: its bytes take longer than a collective takes to start."""


def gather_rows(shard: T, axis: str) -> T:
    """Returns all M rows of arrays [M / D, ...], gathered from the D shards along a mesh axis.

    Small arrays of one dtype travel side by side, as one array [M / D, numbers], so their number does not matter: the
    weights and optimiser states that a rule copies take one collective for each dtype, not one for each leaf.
    """
    leaves, structure = jax.tree.flatten(shard)
    groups: dict[Hashable, list[int]] = {}
    for i, leaf in enumerate(leaves):
        alone = leaf.size >= _LARGE or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        groups.setdefault(i if alone else leaf.dtype, []).append(i)
    for places in groups.values():
        parts = [leaves[i] for i in places]
        for i, leaf in zip(
            places, _together(parts, axis) if len(parts) > 1 else [_gather(parts[0], axis)], strict=True
        ):
            leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


def _gather(leaf: jax.Array, axis: str) -> jax.Array:
    return lax.all_gather(leaf, axis, tiled=True)


def _together(parts: list[jax.Array], axis: str) -> list[jax.Array]:
    """Returns arrays [M, ...] of one dtype from shards [M / D, ...], by one collective."""
    widths = [math.prod(part.shape[1:]) for part in parts]
    rows = _gather(jnp.concatenate([part.reshape(part.shape[0], -1) for part in parts], 1), axis)
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    return [
        rows[:, end - width : end].reshape(rows.shape[0], *part.shape[1:])
        for part, width, end in zip(parts, widths, ends, strict=True)
    ]
