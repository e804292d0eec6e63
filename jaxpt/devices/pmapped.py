"""Functions of shards lifted to whole arrays by `jax.pmap`."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import Sharding
from jaxtyping import PyTree

T = TypeVar("T")


def pmapped(
    function: Callable[..., T],
    in_axes: PyTree,
    out_axes: PyTree,
    devices: tuple[jax.Device, ...],
    name: str,
    sharding: Callable[[P], Sharding],
) -> Callable[..., T]:
    """Returns `Placement.over_shards` by `jax.pmap`, which splits the replicas' axis into devices and replicas.

    Args:
        function: the computation of one device.
        in_axes: for each argument, as a prefix of its tree, a `PartitionSpec` that states how it is sharded.
        out_axes: the same for the result.
        devices: the devices.
        name: the name of their axis.
        sharding: the sharding for a spec.
    """

    def axis(spec: P) -> int | None:
        return tuple(spec).index(name) if name in tuple(spec) else None

    def cut(spec: P, leaf: jax.Array) -> jax.Array:
        lead = axis(spec)
        shape = jnp.shape(leaf)
        return leaf if lead is None else leaf.reshape(*shape[:lead], len(devices), -1, *shape[lead + 1 :])

    def joined(spec: P, leaf: jax.Array) -> jax.Array:
        lead = axis(spec)
        if lead is not None:
            leaf = leaf.reshape(*leaf.shape[:lead], -1, *leaf.shape[lead + 2 :])
        # Without this constraint XLA might return the state with another sharding than that of its input.
        return jax.lax.with_sharding_constraint(leaf, sharding(spec))

    def each(change: Callable[[P, jax.Array], jax.Array], axes: PyTree, tree: PyTree) -> Any:
        return jax.tree.map(lambda spec, part: jax.tree.map(lambda leaf: change(spec, leaf), part), axes, tree)

    axes = tuple(jax.tree.map(axis, axes) for axes in (in_axes, out_axes))
    mapped = jax.pmap(function, name, in_axes=axes[0], out_axes=axes[1], devices=devices)
    return lambda *args: each(joined, out_axes, mapped(*each(cut, in_axes, args)))
