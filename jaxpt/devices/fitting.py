"""The placement "auto", and whether replicas and seeds split evenly over a placement's devices."""

import jax

from jaxpt.devices.cores import platform
from jaxpt.devices.placement import Placement, shard_map, single


def automatic(num_replicas: int) -> Placement:
    """Returns the placement "auto".

    It is one device; on CPUs as many host devices as divide the number of replicas; with several processes all devices.

    Raises:
        ValueError: with several processes, if the devices do not divide the number of replicas.
    """
    if jax.process_count() > 1:
        everywhere = shard_map(jax.devices(platform()))
        check_fits(everywhere, num_replicas)
        return everywhere
    if platform() != "cpu":
        return single()
    devices = jax.devices("cpu")
    shards = max(d for d in range(1, len(devices) + 1) if num_replicas % d == 0)
    return shard_map(devices[:shards]) if shards > 1 else single()


def check_fits(placement: Placement, num_replicas: int, batch_size: int | None = None) -> None:
    """Raises ValueError if replicas or minibatches do not split evenly; the message names the nearest numbers that do.

    Args:
        placement: the devices.
        num_replicas: M.
        batch_size: examples in a minibatch; None: not checked.
    """
    parts = placement.num_parts
    if batch_size is not None and batch_size % parts:
        raise ValueError(
            f"batch_size={batch_size} does not split evenly over the {parts} devices that share a replica; the nearest "
            f"numbers that do: {_nearest(batch_size, parts)}"
        )
    shards = placement.num_shards
    if num_replicas % shards:
        groups = "" if placement.num_seed_shards == 1 else " of each group"
        raise ValueError(
            f"{num_replicas} replicas do not split evenly over {shards} devices{groups}; the nearest numbers of rungs "
            f"that do: {_nearest(num_replicas, shards)}; or give fewer devices"
        )


def check_seeds(placement: Placement, seeds: int | None) -> None:
    """Raises ValueError if the seeds (None: a run with one ladder) do not split evenly over groups of devices."""
    shards = placement.num_seed_shards
    if shards == 1:
        return
    if seeds is None:
        raise ValueError(
            f"the placement cuts the seeds into {shards} shards, but the run has one ladder; give {shards} seeds or a "
            "multiple of that, or a placement without seeds"
        )
    if seeds % shards:
        raise ValueError(
            f"{seeds} seeds do not split evenly over {shards} groups of devices; the nearest numbers of seeds that do: "
            f"{_nearest(seeds, shards)}; or give fewer groups"
        )


def _nearest(number: int, shards: int) -> str:
    below = number // shards * shards
    return f"{below} and {below + shards}" if below else f"{shards}"
