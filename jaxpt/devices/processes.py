"""Several processes that compute one run: how they connect, share arrays, and detect a lost process."""

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

T = TypeVar("T")
_TEXT = 4096  # most bytes of an error's text sent to the other processes
_HEARTBEAT = 20  # seconds of silence after which a process counts as lost; JAX's own default is 100
# Messages of Gloo, NCCL, gRPC and JAX's coordination service when a peer no longer answers.
_LOST = re.compile(r"gloo|nccl|connection|socket|heartbeat|coordination|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED", re.I)
_COLLECTIVE = re.compile(r"^[A-Z_]+: (Gloo|NCCL)")


class ProcessLost(RuntimeError):
    """Another process of the run has ended or does not answer."""


def distributed(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Connects this process to the others of a run; `jax.devices()` then lists the devices of all of them.

    Call it in every process, right after the imports. Missing arguments are read from the environment
    (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID). If they are not set there, JAX detects them on TPU
    pods and under SLURM, Open MPI and Kubernetes. Afterwards all processes must make the same calls with the same
    arguments, including the same data.

    If a process dies, the others end within half a minute: see `clear_errors`.

    Args:
        coordinator: "HOST:PORT" of process 0, with any free port, the same in every process.
        processes: number of processes.
        process: index of this process, 0 .. processes - 1.

    Raises:
        ValueError: only some of the three are known; they are out of range; none is known and JAX detects no cluster;
            process 0 cannot open the port.
        RuntimeError: JAX has already started. (If the other processes do not connect within five minutes, JAX itself
            ends the process.)
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS") or None
    processes = _number("processes", processes, "JAX_NUM_PROCESSES")
    process = _number("process", process, "JAX_PROCESS_ID")
    known = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in known.items() if value is None]
    if 0 < len(missing) < 3:
        raise ValueError(
            f"{' and '.join(missing)} must be given too: the coordinator HOST:PORT, the number of processes and which "
            "one this is belong together; or give none of them on a cluster that JAX knows"
        )
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"coordinator must be HOST:PORT, e.g. 10.0.0.1:1234, but it is {coordinator!r}")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"process must be 0 .. {processes - 1} with processes={processes}, but it is {process}")
    if coordinator is not None and process == 0:
        _check_port(coordinator)
    try:
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=_HEARTBEAT)
    except ValueError as error:
        raise ValueError(
            f"JAX detects no cluster here ({error}); give coordinator, processes and process, or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def _check_port(coordinator: str) -> None:
    """Raises ValueError if the coordinator's port is taken; JAX would wait for minutes at such a port."""
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"process 0 cannot listen at {coordinator}: {error}; give all processes another port"
        ) from error


def _number(name: str, given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if given is not None or not text:
        return given
    if not text.isdigit():
        raise ValueError(f"{name} must be an integer, but {variable} is {text!r}")
    return int(text)


def is_first() -> bool:
    """Returns whether this is process 0, which prints and writes; true if there is only one process."""
    return jax.process_index() == 0


def refuse_together(error: Exception | None, kind: type[Exception]) -> None:
    """Waits for process 0, and raises its error, if it has one, in all processes.

    Args:
        error: the error of process 0, or None.
        kind: type of the error that the others raise.

    Raises:
        Exception: `error` in process 0, one of type `kind` with its text in the others.
    """
    if jax.process_count() > 1:
        text = np.frombuffer(str(error or "").encode()[:_TEXT], np.uint8)
        sent = multihost_utils.broadcast_one_to_all(np.pad(text, (0, _TEXT - len(text))))
        said = bytes(np.asarray(sent, np.uint8)).rstrip(b"\0").decode(errors="replace")
        if said and not is_first():
            raise kind(f"process 0 says: {said}")
    if error is not None:
        raise error


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Raises ProcessLost in place of JAX's various errors when a peer process is gone.

    A process that waits for a lost peer usually gets an error from its collective at once. If it does not, and always
    if process 0 is lost, JAX itself ends the process within about twenty seconds, with the message "another task died".

    Raises:
        ProcessLost: another process has ended or does not answer.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # a collective may raise either
        text = str(error)
        lost = _LOST.search(text) if isinstance(error, jax.errors.JaxRuntimeError) else _COLLECTIVE.search(text)
        if jax.process_count() == 1 or not lost or "RESOURCE_EXHAUSTED" in text:
            raise
        raise ProcessLost(
            f"a process of this run is gone, as process {jax.process_index()} of {jax.process_count()} notices "
            f"({text.splitlines()[0]}); start all processes again with the same directory to resume, fewer of them if "
            "you like"
        ) from error


def put_globally(leaf: Any, sharding: Sharding) -> Any:
    """Returns an array on devices of several processes; each process has the whole array and supplies its parts."""
    if isinstance(leaf, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf if leaf.sharding == sharding else identity(sharding)(leaf)
    if is_key(leaf):
        data = put_globally(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf, jnp.result_type(leaf))
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def on_this(leaf: jax.Array) -> jax.Array:
    """Returns an array that is whole on every device as an array on one device of this process."""
    if is_key(leaf):
        return jax.random.wrap_key_data(on_this(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    return leaf.addressable_data(0)


def is_key(leaf: Any) -> bool:
    """Returns whether a leaf is an array of typed keys, which NumPy cannot represent."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@cache
def identity(sharding: Sharding) -> Callable[[T], T]:
    """Returns a compiled identity function that moves arrays to a sharding; compiled once for each sharding."""
    return jax.jit(lambda arrays: arrays, out_shardings=sharding)
