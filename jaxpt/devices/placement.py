"""Placement of the replicas: all on one device, or in shards over several, of one process or of many."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from jaxpt.devices import processes
from jaxpt.devices.cores import platform as platform
from jaxpt.devices.cores import use_all_cores as use_all_cores
from jaxpt.devices.gather import gather_rows
from jaxpt.devices.pmapped import pmapped
from jaxpt.devices.processes import ProcessLost as ProcessLost
from jaxpt.devices.processes import clear_errors as clear_errors
from jaxpt.devices.processes import distributed as distributed
from jaxpt.devices.processes import is_first as is_first

T = TypeVar("T")
SEED, AXIS, EXAMPLES = "seed", "replica", "example"
"""The names of the devices' axes inside a run, for collectives and for `PartitionSpec`s."""
EVERYWHERE = P()
"""Not sharded: every device has the whole array."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """M replicas in D shards of M / D; make one with `single`, `shard_map`, `grid` or `pmap`.

    The whole run is inside the shards: each device scans over the steps of its own replicas without waiting for others.
    After each period the shards gather all energies, rungs and hyperparameters (`all_gather`). Each computes the same
    exchange and continues with the rows of its own replicas (`local_rows`). Weights leave a shard only for rules that
    copy them. Seeds, each a whole ladder, do not interact, so they may be sharded too.

    A `PartitionSpec` of the names `SEED` and `AXIS` states how an array is sharded, one entry for each of its axes;
    names for which the devices have no axis are ignored.

    Attributes:
        mesh: the devices along the axis `AXIS`, along `SEED` and `AXIS`, or along `AXIS` and `EXAMPLES`; None: one
            device.
        by: the JAX transformation that divides a run into shards.
        device: the one device where there is no mesh; None: JAX's default.
    """

    mesh: Mesh | None = None
    by: Literal["shard_map", "pmap"] = "shard_map"
    device: jax.Device | None = None

    @property
    def num_shards(self) -> int:
        """D, the number of shards of a ladder's replicas."""
        return 1 if self.mesh is None else self.mesh.shape[AXIS]

    @property
    def num_seed_shards(self) -> int:
        """The number of shards of the seeds."""
        return 1 if self.mesh is None else self.mesh.shape.get(SEED, 1)

    @property
    def num_parts(self) -> int:
        """The number of parts of each replica's minibatch."""
        return 1 if self.mesh is None else self.mesh.shape.get(EXAMPLES, 1)

    @property
    def num_devices(self) -> int:
        """The number of devices, including those of other processes."""
        return self.num_shards * self.num_seed_shards * self.num_parts

    @property
    def platform(self) -> str:
        """The kind of the devices: "cpu", "gpu" or "tpu"."""
        named = self._named
        return platform() if named is None else named.platform

    @property
    def first_device(self) -> jax.Device:
        """The first of the devices that belong to this process."""
        if self.mesh is None:
            return self.device or jax.local_devices()[0]
        return self.mesh.local_devices[0]

    @property
    def only_compiles(self) -> bool:
        """Whether programs can be compiled for the devices, which are not there: see `jax.experimental.topologies`."""
        named = self._named
        return named is not None and _only_compiles(named)

    @property
    def _named(self) -> jax.Device | None:
        return self.device if self.mesh is None else self.mesh.devices.flat[0]

    @property
    def spans_processes(self) -> bool:
        """Whether some of the devices belong to other processes."""
        return self.mesh is not None and self.mesh.is_multi_process

    def over_shards(self, function: Callable[..., T], in_axes: PyTree, out_axes: PyTree) -> Callable[..., T]:
        """Lifts a function of one shard's arrays to whole arrays; returns the function itself on one device.

        Args:
            function: the computation of one device; it may call `all_gather` and `local_rows`.
            in_axes: for each argument, as a prefix of its tree, a `PartitionSpec` that states how it is sharded.
            out_axes: the same for the result.
        """
        if self.mesh is None:
            return function
        if self.by == "pmap":
            return pmapped(function, in_axes, out_axes, tuple(self.mesh.devices.flat), AXIS, self.shardings)
        specs = (jax.tree.map(self._spec, axes) for axes in (in_axes, out_axes))
        # Replication holds by construction; `check_vma` could not verify it through arbitrary code in a user's loss.
        return jax.shard_map(function, mesh=self.mesh, in_specs=next(specs), out_specs=next(specs), check_vma=False)

    def all_gather(self, shard: T) -> T:
        """Returns all M rows of arrays [M / D, ...], gathered from all shards."""
        if self.mesh is None:
            return shard
        return gather_rows(shard, AXIS)

    def local_rows(self, rows: T) -> T:
        """Returns this shard's rows of arrays [M, ...]."""
        if self.mesh is None:
            return rows

        def cut(leaf: jax.Array) -> jax.Array:
            size = leaf.shape[0] // self.num_shards
            return jax.lax.dynamic_slice_in_dim(leaf, jax.lax.axis_index(AXIS) * size, size)

        return jax.tree.map(cut, rows)

    def local_part(self, batch: T) -> T:
        """Returns this device's part of a minibatch, leaves [B, ...]; the minibatch itself if it is not divided."""
        if self.num_parts == 1:
            return batch

        def cut(leaf: jax.Array) -> jax.Array:
            size = leaf.shape[0] // self.num_parts
            return jax.lax.dynamic_slice_in_dim(leaf, jax.lax.axis_index(EXAMPLES) * size, size)

        return jax.tree.map(cut, batch)

    def shardings(self, axes: PyTree = EVERYWHERE) -> PyTree:
        """Returns the sharding for each spec; None on JAX's default device."""
        mesh = self.mesh
        if mesh is None:
            whole = None if self.device is None else SingleDeviceSharding(self.device)
            return jax.tree.map(lambda _: whole, axes)
        return jax.tree.map(lambda spec: NamedSharding(mesh, self._spec(spec)), axes)

    def check_runs(self) -> None:
        """Raises ValueError if the devices only compile."""
        named = self._named
        if named is not None and _only_compiles(named):
            raise ValueError(
                f"nothing runs on {named.device_kind}: this device is not there, it was made to compile for "
                "(jax.experimental.topologies); see what a run would need there by jaxpt.compile_for, or leave out the "
                "placement and run on the devices of this machine"
            )

    def put(self, arrays: T, axes: PyTree = EVERYWHERE) -> T:
        """Returns arrays placed on the run's devices; also works under `jit`.

        With several processes each must pass the same whole arrays; they are not compared.

        Args:
            arrays: a tree of arrays.
            axes: how they are sharded, a prefix of the tree; by default every device gets the whole.

        Raises:
            ValueError: the devices only compile.
        """
        self.check_runs()
        if not self.spans_processes:
            return jax.device_put(arrays, self.shardings(axes))

        def each(sharding: Sharding, part: PyTree) -> PyTree:
            return jax.tree.map(partial(processes.put_globally, sharding=sharding), part)

        return jax.tree.map(each, self.shardings(axes), arrays)

    def readable(self, arrays: T) -> T:
        """Returns results, under `jit`, readable by every process; unchanged with one process."""
        return jax.lax.with_sharding_constraint(arrays, self.shardings()) if self.spans_processes else arrays

    def to_host(self, arrays: T) -> T:
        """Returns whole NumPy arrays in every process; for typed keys their data. All processes must call it."""
        data = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if processes.is_key(leaf) else leaf, arrays)
        return jax.tree.map(np.asarray, self._on_all(data))

    def abstract(self, shapes: T, axes: PyTree) -> T:
        """Returns arrays' shapes with the shardings that `put` would give them; arguments as in `put`."""
        if self.mesh is None and self.device is None:
            return shapes

        def each(sharding: Sharding, part: PyTree) -> PyTree:
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part)

        return jax.tree.map(each, self.shardings(axes), shapes)

    def gathered(self, arrays: T) -> T:
        """Returns arrays on a single device, the first of this process. All processes must call it."""
        if self.mesh is None:
            return arrays
        return jax.device_put(self._on_all(arrays), self.first_device)

    def _on_all(self, arrays: T) -> T:
        """Returns arrays that this process can read; unchanged if it already can."""
        leaves, structure = jax.tree.flatten(arrays)
        far = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable]
        if far:
            # One program for all arrays, so that the hosts communicate only once.
            found = processes.identity(self.shardings())([leaves[i] for i in far])
            for i, leaf in zip(far, found, strict=True):
                leaves[i] = processes.on_this(leaf)
        return jax.tree.unflatten(structure, leaves)

    def _spec(self, spec: P) -> P:
        # XLA's canonical form, without axes of length one or trailing entries: a state keeps its sharding in a run.
        sizes = {} if self.mesh is None else self.mesh.shape
        names = [name if sizes.get(name, 1) > 1 else None for name in spec]
        while names and names[-1] is None:
            names.pop()
        return P(*names)


def single(device: jax.Device | None = None) -> Placement:
    """Returns the placement of all replicas on one device; with several processes each computes everything.

    Args:
        device: the device, one of this process or one that only compiles (`jax.experimental.topologies`); by default
            JAX's default device.

    Raises:
        ValueError: device is not a device, or it belongs to another process.
    """
    if device is None:
        return Placement()
    if not isinstance(device, jax.Device):
        raise ValueError(f"device must be one of jax.devices(), e.g. jax.devices()[0], but it is {device!r}")
    if device.process_index != jax.process_index() and not _only_compiles(device):
        raise ValueError(
            f"{device} belongs to process {device.process_index}, but this is process {jax.process_index()}; give one "
            "of jax.local_devices(), or shard_map(jax.devices()) for one run in all processes"
        )
    return Placement(device=device)


def _only_compiles(device: jax.Device) -> bool:
    return type(device.client).__name__ == "CompileOnlyPyClient"  # JAX names this class nowhere in public


def shard_map(mesh: Mesh | Sequence[jax.Device], seeds: int = 1) -> Placement:
    """Returns the placement of replicas in equal shards over devices, of one process or of several, by `jax.shard_map`.

        Engine(..., placement=jaxpt.placement.shard_map(jax.devices()))
        Engine(..., placement=jaxpt.placement.shard_map(jax.devices(), seeds=2))  # for a run with 2, 4, ... seeds

    Args:
        mesh: the devices, or a mesh with a single axis; the number of replicas must be a multiple of their number. Or a
            mesh with two axes: the first shards the seeds, the second the replicas.
        seeds: number of shards of the seeds. The devices form this many consecutive groups, and each group divides the
            replicas among its devices.

    Raises:
        ValueError: no devices, duplicate devices, a mesh with more than two axes, or groups of different size.
    """
    if not isinstance(mesh, Mesh | Sequence | np.ndarray):
        raise ValueError(f"mesh must be devices, e.g. jax.devices()[:4], or a jax.sharding.Mesh, but it is {mesh!r}")
    devices = np.asarray(mesh.devices if isinstance(mesh, Mesh) else list(mesh))
    if devices.ndim not in (1, 2) or not devices.size or len(set(devices.flat)) < devices.size:
        raise ValueError(
            "replicas are placed along one axis of one or more different devices, or seeds and replicas along two, but "
            f"the mesh is {mesh}"
        )
    if devices.ndim == 2 and seeds not in (1, devices.shape[0]):
        raise ValueError(f"the mesh cuts the seeds into {devices.shape[0]} shards, but seeds={seeds!r}; leave it out")
    if not isinstance(seeds, int) or seeds < 1 or devices.size % seeds:
        raise ValueError(
            f"seeds must be how many equal groups the {devices.size} devices form, one of "
            f"{', '.join(str(n) for n in range(1, devices.size + 1) if devices.size % n == 0)}, but it is {seeds!r}"
        )
    grid = devices if devices.ndim == 2 else devices.reshape(seeds, -1)
    # A mesh with our own axes: explicit shardings of the user's mesh then cannot affect the run.
    if grid.shape[0] == 1:
        return Placement(Mesh(grid[0], (AXIS,), axis_types=(AxisType.Auto,)))
    return Placement(Mesh(grid, (SEED, AXIS), axis_types=(AxisType.Auto,) * 2))


def grid(replicas: int, data: int, devices: Sequence[jax.Device] | None = None) -> Placement:
    """Returns the placement of each replica on several devices, which divide its minibatches among them.

        Engine(..., placement=jaxpt.placement.grid(replicas=4, data=2))  # eight devices

    The devices form `replicas` groups of `data` consecutive ones. A group holds its share of the replicas whole; each
    of its devices computes the gradients on its part of every minibatch, and their sum is taken once a step, within the
    group. So a step equals that on one device up to rounding, with two exceptions. Dropout and noise draw other numbers
    on each device. BatchNorm normalises each part by the part's own statistics, and the running ones are the mean over
    the parts. Energies and metrics are computed by every device of a group, on all examples.

    Args:
        replicas: number of groups; the number of replicas must be a multiple of it.
        data: devices in a group; `batch_size` must be a multiple of it.
        devices: replicas x data devices; by default all.

    Raises:
        ValueError: another number of devices, or duplicate ones.
    """
    found = np.asarray(jax.devices() if devices is None else list(devices))
    for name, value in {"replicas": replicas, "data": data}.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, but it is {value!r}")
    if found.size != replicas * data or len(set(found.flat)) < found.size:
        raise ValueError(
            f"replicas={replicas} groups of data={data} take {replicas * data} different devices, but there are "
            f"{len(set(found.flat))}; give devices=jax.devices()[:{replicas * data}], or other numbers"
        )
    if data == 1:
        return shard_map(list(found))
    return Placement(Mesh(found.reshape(replicas, data), (AXIS, EXAMPLES), axis_types=(AxisType.Auto,) * 2))


def pmap(devices: Sequence[jax.Device] | None = None) -> Placement:
    """Returns the placement of replicas in equal shards over devices of one process, by `jax.pmap`.

    It gives the same numbers as `shard_map`.

    Args:
        devices: the devices; by default all.

    Raises:
        ValueError: there are several processes, or as for `shard_map`.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"pmap places replicas on the devices of one process, but there are {jax.process_count()} processes; use "
            "jaxpt.placement.shard_map(jax.devices())"
        )
    return dataclasses.replace(shard_map(jax.devices() if devices is None else list(devices)), by="pmap")
