"""Checks, from the compiled program and before any allocation, that a run fits into its devices' memory."""

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jaxpt.core import tree
from jaxpt.devices.execution import Execution
from jaxpt.devices.placement import Placement

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def limit(placed: Placement, described: int | None = None) -> int | None:
    """Returns the bytes that a program may use on each of a run's devices; None if unknown.

    On CPUs it is the machine's memory, or the part that this process may use, divided equally among the devices.

    Args:
        placed: the devices.
        described: the result for devices that only compile, which do not know it themselves.
    """
    if placed.only_compiles:
        return described
    if placed.spans_processes and placed.platform == "cpu":
        return None  # unknown: several processes may share this machine's memory
    device = placed.first_device
    if device.platform == "cpu":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
        allowed = _CGROUP.read_text().strip() if _CGROUP.exists() else "max"
        most = total if total is None or allowed == "max" else min(total, int(allowed))
        return most and most // placed.num_devices
    stats: dict[str, Any] = device.memory_stats() or {}
    return stats.get("bytes_limit")


def check(
    compiled: jax.stages.Compiled,
    replicas: PyTree,
    shared: PyTree,
    execution: Execution,
    at_most: int | None,
    shards: int = 1,
) -> None:
    """Raises MemoryError if a compiled run does not fit; the message states how many replicas do.

    Args:
        compiled: the run's program on each device.
        replicas: all replicas, of all seeds, as arrays or shapes.
        shared: arrays that every device holds whole: the data and the frozen weights.
        execution: how the run executes the replicas.
        at_most: the bytes that one device may use; None: unknown, nothing is checked.
        shards: number of shards that a ladder's replicas are divided into.
    """
    needs = compiled.memory_analysis()
    if at_most is None or needs is None:
        return
    devices, each = execution.devices, execution.replicas
    kept = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    total = kept + needs.temp_size_in_bytes
    if total <= at_most:
        return
    fixed = bytes_of(shared)
    stored = math.ceil(bytes_of(replicas) / (devices * each))
    looped = execution.replica_axis == "map"  # working memory then does not grow with the replicas
    working = max(total - fixed - stored * each, 0) / (1 if looped else each)
    room = at_most - fixed
    fitting = max(0, int((room - working) // stored if looped else room // (stored + working)))
    advice = [f"{fitting * shards} replicas would fit" if fitting else "not even one replica a device would fit"]
    # A loop holds a little more than one step's share; following the advice must succeed.
    replicas_at_once = min(each - 1, int(0.8 * (room - stored * each) // working)) if working else 0
    if execution.replica_axis == "vmap" and replicas_at_once >= 1:
        advice.append(
            f'all of them fit {replicas_at_once} at a time: replica_axis="map", replicas_at_once={replicas_at_once}'
        )
    elif execution.replica_axis == "unroll" and each > 1:
        advice.append('one at a time may need less: replica_axis="map"')
    advice.append("a smaller batch_size or evaluation_batch needs less, too")
    at_work = f"{shown(working)} at work for {'all' if looped else 'each'}"
    raise MemoryError(
        f"the run does not fit: {execution} needs {shown(total)} on each device ({shown(fixed)} for the data, "
        f"{shown(stored)} stored for each replica, {at_work}), which has {shown(at_most)}; " + "; ".join(advice)
    )


def bytes_of(arrays: PyTree) -> int:
    """Returns the bytes of arrays or shapes, without the gaps that a device leaves between rows."""
    plain = jax.eval_shape(partial(jax.tree.map, tree.plain), arrays)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(plain))


def shown(count: float) -> str:
    """Returns a number of bytes as people write it."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log(max(count, 1), 1024)), len(units) - 1)
    return f"{count / 1024**power:.3g} {units[power]}"
