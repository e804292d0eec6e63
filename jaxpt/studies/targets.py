"""Accelerators by name, for the compiler alone: TPU topologies, GPUs by their published figures, and CPU devices."""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.experimental import topologies

GB, GIB = 10**9, 2**30
_GPU_SHARE = 0.75  # of a GPU's memory, which JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
_GPUS_PER_HOST = 8


class Target(NamedTuple):
    """Devices to compile for.

    Attributes:
        devices: the devices; only those of a CPU are there.
        memory: bytes that a program may use on each; None: ask the device.
    """

    devices: list[jax.Device]
    memory: int | None


class Gpu(NamedTuple):
    """The figures of a GPU that its compiler asks for, from NVIDIA's data sheets, white papers and CUDA guide.

    Attributes:
        capability: compute capability, major and minor.
        processors: streaming multiprocessors.
        units: float32 units of each.
        clock: the boost clock, in GHz.
        bandwidth: of the memory, in bytes a second.
        memory: in bytes.
        cache: the second level, in bytes.
        shared: shared memory of a multiprocessor, in KiB; a block may ask for 1 KiB less.
    """

    capability: tuple[int, int]
    processors: int
    units: int
    clock: float
    bandwidth: int
    memory: int
    cache: int
    shared: int


GPUS = {
    "a100": Gpu((8, 0), 108, 64, 1.41, 2039 * GB, 80 * GB, 40 * 2**20, 164),
    "h100": Gpu((9, 0), 132, 128, 1.98, 3350 * GB, 80 * GB, 50 * 2**20, 228),
    "h200": Gpu((9, 0), 132, 128, 1.98, 4800 * GB, 141 * GB, 50 * 2**20, 228),
}
"""The SXM boards; the A100 with 80 GB."""
TPUS = {
    "v4": (32 * GIB, "2x2x1"),
    "v5e": (16 * GIB, "2x2"),
    "v5p": (95 * GIB, "2x2x1"),
    "v6e": (32 * GIB, "2x2"),
    "tpu7x": (192 * GIB, "2x2x1"),
}
"""{generation: (memory of a chip, its smallest topology)}, from Google Cloud's pages."""
_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
"""What libtpu needs where there is no TPU: it asks no metadata server, and others may load it at the same time."""


def target(device: str) -> Target:
    """Returns the devices of a name.

    | name                | devices                                                    | needs                         |
    |---------------------|------------------------------------------------------------|-------------------------------|
    | "v5e", "v6e", ...   | one chip                                                   | libtpu: `jaxpt[tpu]`          |
    | "v5e:2x2", ...      | all chips of the topology                                  | libtpu: `jaxpt[tpu]`          |
    | "h100", "a100:4"    | so many GPUs, on one host or on hosts of eight             | the CUDA plugin: `jaxpt[cuda]`|
    | "cpu", "cpu:4"      | so many CPU devices of this process, see `use_all_cores`   |                               |

    A chip of v4 and of tpu7x is two devices.

    Args:
        device: the name; capitals do not matter.

    Raises:
        ValueError: the name is unknown, or there is no such topology or number of devices.
        ModuleNotFoundError: libtpu or the CUDA plugin is not installed.
        RuntimeError: the CUDA plugin is installed, but JAX did not register it.
    """
    if not isinstance(device, str):
        raise ValueError(f'device must be a name such as "v5e:2x2" or "h100", but it is {device!r}')
    name, _, shape = device.lower().partition(":")
    if name in TPUS:
        return _tpu(device, name, shape)
    if name in GPUS:
        return _gpu(name, _count(device, shape))
    if name == "cpu":
        return _cpu(device, _count(device, shape))
    raise ValueError(
        f"unknown device {device!r}; give a TPU with its topology, such as "
        + ", ".join(f'"{name}:{smallest}"' for name, (_, smallest) in TPUS.items())
        + ", a GPU, with a count if there are several, "
        + ", ".join(f'"{name}"' for name in GPUS)
        + ' or "h100:4", or "cpu" to try it out'
    )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _count(device: str, shape: str) -> int:
    if not re.fullmatch(r"([1-9]\d*)?", shape):
        raise ValueError(f'after the colon comes the number of devices, as in "h100:4", but device is {device!r}')
    return int(shape or 1)


def _cpu(device: str, count: int) -> Target:
    devices = jax.local_devices(backend="cpu")
    if count > len(devices):
        raise ValueError(
            f"device is {device!r}, but this process has {len(devices)} CPU device(s); call "
            f"jaxpt.use_all_cores({count}) right after the imports"
        )
    return Target(devices[:count], None)


def _tpu(device: str, name: str, shape: str) -> Target:
    memory, smallest = TPUS[name]
    if not _installed("libtpu"):
        raise ModuleNotFoundError(
            f"compiling for {device} needs libtpu, the compiler for TPUs, which is not installed: pip install "
            '"jaxpt[tpu]" (about 200 MB; it needs no TPU)',
            name="libtpu",
        )
    topology = shape or smallest
    try:
        with _environment():
            found = topologies.get_topology_desc(f"{name}:{topology}", "tpu").devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f'there is no topology {device!r} ({error}); the smallest of its kind is "{name}:{smallest}", and "{name}" '
            "is one chip of it; for larger ones see Google Cloud's pages"
        ) from error
    chips = 1
    for side in topology.split("x"):
        chips *= int(side)
    return Target(list(found) if shape else [found[0]], memory * chips // len(found))


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Sets what libtpu reads when it is loaded, where the user has not set it."""
    added = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _gpu(name: str, count: int) -> Target:
    if not any(_installed(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise ModuleNotFoundError(
            f'compiling for {name} needs JAX\'s CUDA plugin, which is not installed: pip install "jaxpt[cuda]" (about '
            "2 GB; it needs no GPU)",
            name="jax_cuda12_plugin",
        )
    if count > _GPUS_PER_HOST and count % _GPUS_PER_HOST:
        raise ValueError(
            f"more than {_GPUS_PER_HOST} GPUs come on hosts of {_GPUS_PER_HOST}; give a multiple of that, not {count}"
        )
    hosts = -(-count // _GPUS_PER_HOST)
    try:
        found = topologies.get_topology_desc(
            platform="cuda", topology=f"1x{hosts}x{count // hosts}", target_config=gpu_text(name)
        )
    except NotImplementedError as error:  # which JAX raises for a platform that is not registered
        raise RuntimeError(
            "JAX's CUDA plugin is installed, but JAX did not register it, probably because this machine has no "
            "working GPU; set JAX_PLATFORMS=cpu in the environment, or call jax.config.update('jax_platforms', 'cpu') "
            "right after the imports: JAX then registers the plugin for its compiler"
        ) from error
    return Target(list(found.devices), int(_GPU_SHARE * GPUS[name].memory))


def gpu_text(name: str) -> str:
    """Returns a GPU's description as the text of XLA's `GpuTargetConfigProto`.

    The limits of threads, blocks, grids and registers are those that the CUDA guide states for compute capability 8.0
    and 9.0 alike.
    """
    gpu = GPUS[name]
    info = {
        "threads_per_warp": 32,
        "threads_per_block_limit": 1024,
        "threads_per_core_limit": 2048,
        "registers_per_block_limit": 2**16,
        "registers_per_core_limit": 2**16,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "shared_memory_per_block": 48 * 2**10,
        "shared_memory_per_block_optin": (gpu.shared - 1) * 2**10,
        "shared_memory_per_core": gpu.shared * 2**10,
        "core_count": gpu.processors,
        "fpus_per_core": gpu.units,
        "clock_rate_ghz": gpu.clock,
        "memory_bandwidth": gpu.bandwidth,
        "l2_cache_size": gpu.cache,
        "device_memory_size": gpu.memory,
    }
    major, minor = gpu.capability
    return "\n".join(
        [
            'platform_name: "CUDA"',
            f'device_description_str: "{name.upper()}"',
            "dnn_version_info { major: 9 minor: 10 }",  # of the time of jax 0.10, as is CUDA
            "runtime_version { major: 12 minor: 9 }",
            "gpu_device_info {",
            *(f"  {field}: {value}" for field, value in info.items()),
            f"  cuda_compute_capability {{ major: {major} minor: {minor} }}",
            "}",
        ]
    )
