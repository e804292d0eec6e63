"""JAX's default devices, and the cores of a CPU as several devices."""

import os
import warnings

import jax


def platform() -> str:
    """Returns the kind of JAX's default device: "cpu", "gpu" or "tpu"."""
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    return getattr(default, "platform", default) or jax.default_backend()


def use_all_cores(devices: int | None = None) -> int:
    """Presents the CPU to JAX as several devices, so that replicas train in parallel; returns their number.

    Call it right after the imports, before any computation with JAX. It may come before or after `distributed`; the
    devices are those of this process. It has no effect on GPUs and TPUs.

    Args:
        devices: number of devices; by default the number of cores that this process may use.

    Raises:
        ValueError: devices is not a positive integer.
    """
    count = _cores() if devices is None else devices
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"devices must be an integer of at least 1, or None for all cores, but it is {devices!r}")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        count = len(jax.local_devices(backend="cpu"))
        warnings.warn(
            f"JAX has started already, with {count} CPU device(s), and keeps them; call jaxpt.use_all_cores() right "
            "after the imports, before any array is made, or set JAX_NUM_CPU_DEVICES in the environment",
            stacklevel=2,
        )
    return count


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
