"""Where the replicas live: all on one device, or M / D of them on each of D devices."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

T = TypeVar("T")
AXIS = "replica"
"""The name of the devices' axis inside a run, for collectives."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """M replicas in D shards of M / D; make one with `single` or `shard_map`.

    The whole run lies inside the shards: each device scans over the steps of its own replicas and waits for nobody.
    Once a period the shards show each other energies, rungs and hyperparameters (`whole`), compute the same exchange,
    each for itself, and go on with what concerns their own replicas (`own`). Weights leave a shard only for rules that
    copy them.
    """

    mesh: Mesh | None = None
    """The D devices along one axis called `AXIS`; None: one device, whichever JAX takes."""

    @property
    def num_shards(self) -> int:
        """D."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def platform(self) -> str:
        """What the devices are: "cpu", "gpu" or "tpu"."""
        return platform() if self.mesh is None else self.mesh.devices.flat[0].platform

    def over_shards(self, function: Callable[..., T], in_axes: PyTree, out_axes: PyTree) -> Callable[..., T]:
        """Lifts a function of one shard's arrays to whole arrays; the function itself on one device.

        Args:
            function: what one device computes; in it `whole` and `own` may be used.
            in_axes: for each argument, as a prefix of its tree, which axis is cut into shards; -1: none, all shards
                get the same. (Not None, which would be an empty tree.)
            out_axes: the same for the result.
        """
        if self.mesh is None:
            return function
        # Replication is by construction, not by type: a user's loss may hold anything that `check_vma` cannot follow.
        specs = (jax.tree.map(_spec, axes) for axes in (in_axes, out_axes))
        return jax.shard_map(function, mesh=self.mesh, in_specs=next(specs), out_specs=next(specs), check_vma=False)

    def whole(self, shard: T) -> T:
        """Returns all M rows of arrays [M / D, ...] of which every shard has its own."""
        if self.mesh is None:
            return shard
        return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True), shard)

    def own(self, rows: T) -> T:
        """Returns this shard's rows of arrays [M, ...]."""
        if self.mesh is None:
            return rows

        def cut(leaf: jax.Array) -> jax.Array:
            size = leaf.shape[0] // self.num_shards
            return jax.lax.dynamic_slice_in_dim(leaf, jax.lax.axis_index(AXIS) * size, size)

        return jax.tree.map(cut, rows)

    def put(self, arrays: T, axes: PyTree = -1) -> T:
        """Returns arrays that lie where the run wants them; also under `jit`.

        Args:
            arrays: a tree of arrays.
            axes: which axis is cut into shards, a prefix of the tree; -1: none, every device gets the whole.
        """
        if self.mesh is None:
            return jax.device_put(arrays)
        mesh = self.mesh
        return jax.device_put(arrays, jax.tree.map(lambda axis: NamedSharding(mesh, _spec(axis)), axes))

    def abstract(self, shapes: T, axes: PyTree) -> T:
        """Returns arrays' shapes with the places at which `put` would lay them; arguments as there."""
        mesh = self.mesh
        if mesh is None:
            return shapes

        def at(axis: int, part: PyTree) -> PyTree:
            place = NamedSharding(mesh, _spec(axis))
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), part)

        return jax.tree.map(at, axes, shapes)

    def gathered(self, arrays: T) -> T:
        """Returns arrays on one device only, the first."""
        return arrays if self.mesh is None else jax.device_put(arrays, self.mesh.devices.flat[0])


def single() -> Placement:
    """All replicas on one device."""
    return Placement()


def shard_map(mesh: Mesh | Sequence[jax.Device]) -> Placement:
    """Replicas in equal shards over devices, by `jax.shard_map`.

        Engine(..., placement=jaxpt.placement.shard_map(jax.devices()))

    Args:
        mesh: the devices, or a mesh with a single axis; the number of replicas must be a multiple of theirs.

    Raises:
        ValueError: no devices, or a mesh with more than one axis.
    """
    devices = np.asarray(mesh.devices if isinstance(mesh, Mesh) else list(mesh))
    if devices.ndim != 1 or not devices.size:
        raise ValueError(f"replicas are placed along one axis of one or more devices, but the mesh is {mesh}")
    # With our own axis, explicit shardings of the user's mesh cannot reach into the run.
    return Placement(Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,)))


def automatic(num_replicas: int) -> Placement:
    """Returns the placement "auto": one device, but on CPUs as many host devices as divide the number of replicas."""
    if platform() != "cpu":
        return single()
    devices = jax.devices("cpu")
    shards = max(d for d in range(1, len(devices) + 1) if num_replicas % d == 0)
    return shard_map(devices[:shards]) if shards > 1 else single()


def check_fits(placement: Placement, num_replicas: int) -> None:
    """Raises ValueError if the replicas do not split evenly, and names the nearest number that does."""
    shards = placement.num_shards
    if num_replicas % shards:
        below = num_replicas // shards * shards
        nearest = f"{below} and {below + shards}" if below else f"{shards}"
        raise ValueError(
            f"{num_replicas} replicas do not split evenly over {shards} devices; the nearest numbers of rungs that do: "
            f"{nearest}; or give fewer devices"
        )


def platform() -> str:
    """Returns what JAX computes on by default: "cpu", "gpu" or "tpu"."""
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    return getattr(default, "platform", default) or jax.default_backend()


def use_all_cores(devices: int | None = None) -> int:
    """Lets JAX see the CPU as several devices, so that replicas can train side by side; returns how many.

    To be called before anything is computed with JAX, right after the imports. It changes nothing on a GPU or TPU.

    Args:
        devices: how many; by default the cores that this process may use.

    Raises:
        ValueError: devices is not a positive integer.
    """
    count = _cores() if devices is None else devices
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"devices must be an integer of at least 1, or None for all cores, but it is {devices!r}")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        count = len(jax.devices("cpu"))
        warnings.warn(
            f"JAX has started already, with {count} CPU device(s), and keeps them; call jaxpt.use_all_cores() right "
            "after the imports, before any array is made, or set JAX_NUM_CPU_DEVICES in the environment",
            stacklevel=2,
        )
    return count


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _spec(axis: int) -> PartitionSpec:
    return PartitionSpec() if axis < 0 else PartitionSpec(*(None,) * axis, AXIS)
