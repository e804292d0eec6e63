"""The execution of one device's replicas: batched, unrolled one by one, or in a loop."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args

import jax
import jax.numpy as jnp
from jax import lax

from jaxpt.core import tree
from jaxpt.lowering import rewrite

ReplicaAxis: TypeAlias = Literal["auto", "vmap", "unroll", "map"]
NAMES = get_args(ReplicaAxis)
T = TypeVar("T")

UNROLL_AT_MOST = 8
"""Replicas; the program grows with each, so more of them run in a loop."""


class Execution(NamedTuple):
    """A description of how a run executes its replicas.

    Attributes:
        replica_axis: "vmap", "unroll" or "map".
        platform: "cpu", "gpu" or "tpu".
        replicas: replicas on each device.
        devices: devices that the replicas are spread over.
    """

    replica_axis: str
    platform: str
    replicas: int
    devices: int

    def __str__(self) -> str:
        replicas = f"{self.replicas} replica{'s' * (self.replicas > 1)}"
        devices = f"{self.platform} device" if self.devices == 1 else f"each of {self.devices} {self.platform} devices"
        return f"{self.replica_axis} over {replicas} on {devices}"


FAST_MEMORY = 128 * 2**20
"""Bytes; of a core of a TPU v5e (VMEM)."""


def choose(platform: str, replicas: int, devices: int, convolved: int) -> str:
    """Returns the strategy that "auto" selects.

    | where            | replicas on a device | model                | choice | because                             |
    |------------------|----------------------|----------------------|--------|-------------------------------------|
    | GPU              | any                  | any                  | vmap   | few large kernels                   |
    | TPU              | any                  | without convolutions | vmap   | few large kernels                   |
    | TPU              | any                  | small convolutions   | vmap   | few large kernels                   |
    | TPU              | any                  | large convolutions   | map    | one replica fills the fast memory   |
    | CPU              | 1                    | any                  | unroll | a single replica needs no batch     |
    | CPU              | more                 | without convolutions | vmap   | batched products, and few of them   |
    | CPU, one device  | 2 to 8               | with convolutions    | unroll | independent replicas fill the cores |
    | CPU, one device  | more                 | with convolutions    | map    | the program does not grow           |
    | CPU, several     | more                 | with convolutions    | map    | the devices fill the cores          |

    Measured on four idle cores (jax 0.10.2): full training steps with stock convolutions in `Engine.run`. Times are
    relative to the same number of jitted single steps in a row. Eight replicas of LeNet, batch 128: naive vmap of the
    bare step 2.0; on one device vmap 0.65, map 0.54, unroll 0.43; on four devices vmap 0.27, map 0.23, unroll 0.23.
    ResNet-20, batch 32: map on four devices 0.33; five replicas unrolled on one device 0.81, where naive vmap takes 5.
    The choice for GPUs and TPUs is not measured: nothing has run there. For TPUs it follows the compiler's estimates
    for a v5e (`benchmarks/compiled.py`). A convolution is large where its input, its output and their cotangents, taken
    as four arrays of the largest size for each replica, fill the fast memory of 128 MiB. Eight stacked LeNets on
    minibatches of 128 (4 x 21 MiB) take half the cycles of single steps, ResNet-20's blocks of 32 and 16 channels
    (4 x 32 and 4 x 64 MiB) 1.4 times as many; under "map" a step is that of a single replica. `jaxpt.tune` measures
    the choices on the devices at hand.

    Args:
        platform: "cpu", "gpu" or "tpu".
        replicas: number of replicas on each device.
        devices: number of devices that the replicas are spread over.
        convolved: bytes of the largest array that a convolution of one replica reads or gives, in a TPU's tiles of
            8 x 128 numbers; 0: it has none.
    """
    if platform != "cpu":
        return "map" if platform == "tpu" and 4 * replicas * convolved >= FAST_MEMORY else "vmap"
    if replicas == 1:
        return "unroll"
    if not convolved:
        return "vmap"
    return "unroll" if devices == 1 and replicas <= UNROLL_AT_MOST else "map"


class Lift(NamedTuple):
    """Makes functions of stacked replicas, or of several seeds, from functions of one.

    Attributes:
        strategy: "vmap", "unroll", "map" or "auto"; see `over_replicas`.
        platform: "cpu", "gpu" or "tpu".
        devices: number of devices that the replicas are spread over.
        replicas_at_once: replicas that each turn of "map" runs by vmap.
        has_seeds: whether arrays have an axis of seeds; without one, functions of a seed's ladder stay as they are.
    """

    strategy: str
    platform: str
    devices: int
    replicas_at_once: int
    has_seeds: bool

    def replicas(self, function: Callable[..., T], in_axes: Sequence[int | None] = (0, 0)) -> Callable[..., T]:
        """Lifts a function of one replica; `in_axes` as in `over_replicas`."""
        return over_replicas(*self[:3], function, in_axes, replicas_at_once=self.replicas_at_once)

    def seeds(self, function: Callable[..., T], in_axes: Sequence[int | None] = (0,)) -> Callable[..., T]:
        """Lifts a costly function of one seed's ladder: the seeds are executed as the replicas are."""
        if not self.has_seeds:
            return function
        return over_replicas(*self[:3], function, in_axes, True, self.replicas_at_once)

    def each_seed(self, function: Callable[..., T], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., T]:
        """Lifts a cheap function of one seed's ladder, by vmap."""
        lifted = jax.vmap(function, in_axes, out_axes) if self.has_seeds else function
        return rewrite.with_keys(lifted, self.platform)


def over_replicas(
    strategy: str,
    platform: str,
    devices: int,
    function: Callable[..., Any],
    in_axes: Sequence[int | None],
    seeds: bool = False,
    replicas_at_once: int = 1,
) -> Callable[..., Any]:
    """Lifts a function of one replica to stacked ones, as `jax.vmap` does; the strategies agree up to rounding.

    The function is rewritten for the platform (`lowering.rewrite`): on a CPU every strategy writes convolutions in the
    layout that is fast there; elsewhere vmap keeps gradients of kernels in a form that is. Random bits do not depend on
    the strategy for keys of the default kind. For "rbg" keys they do: JAX draws all bits of a vmapped batch of keys
    from its first key.

    Args:
        strategy: "vmap": one batched computation; "unroll": the replicas one by one in one program; "map": in a loop,
            one replica at a time, or `replicas_at_once`; "auto": see `choose`.
        platform: "cpu", "gpu" or "tpu".
        devices: number of devices that the replicas are spread over, for "auto".
        function: a function of one replica.
        in_axes: for each argument, 0: its leaves lead with the replicas; None: it is the same for all.
        seeds: whether the axis is the seeds, each a whole ladder of replicas; "auto" does not unroll seeds.
        replicas_at_once: replicas that each turn of "map" runs by vmap.
    """

    def lifted(*args: Any) -> Any:
        # Traced for one replica, so that the rewriting sees unbatched equations, the same for every strategy.
        one = [arg if axis is None else _first(arg) for arg, axis in zip(args, in_axes, strict=True)]
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*one)
        how = strategy
        if how == "auto":
            # Any argument with axis 0 tells the number of replicas.
            replicas = next(tree.leading(arg) for arg, axis in zip(args, in_axes, strict=True) if axis == 0)
            how = choose(platform, replicas, devices, rewrite.convolved_bytes(program.jaxpr))
            # A seed is a whole ladder: unrolled, the program would grow with seeds times replicas.
            how = "map" if seeds and how == "unroll" else how
        # A jaxpr takes and returns flat lists of leaves.
        structure = jax.tree.structure(shapes)

        def traced(*args: Any) -> Any:
            return jax.tree.unflatten(structure, rewrite.evaluate(program, *jax.tree.leaves(args), platform=platform))

        return _lifted(how, traced, in_axes, replicas_at_once)(*args)

    return lifted


def _lifted(
    strategy: str, function: Callable[..., Any], in_axes: Sequence[int | None], replicas_at_once: int
) -> Callable[..., Any]:
    if strategy == "vmap":
        return jax.vmap(function, tuple(in_axes))

    def one_by_one(*args: Any) -> Any:
        # Shared arguments are closed over, so that neither the loop nor the rows copy them.
        stacked = [arg for arg, axis in zip(args, in_axes, strict=True) if axis == 0]

        # One replica's arguments and the shared ones, in the order of `in_axes`.
        def one_replica(row: Sequence[Any]) -> Any:
            rest = iter(row)
            return function(*(arg if axis is None else next(rest) for arg, axis in zip(args, in_axes, strict=True)))

        if strategy == "map":
            # A batch_size of 1 would be a vmap over an axis of length one, so it is left out.
            return lax.map(one_replica, stacked, batch_size=replicas_at_once if replicas_at_once > 1 else None)
        # Unrolled in Python: independent parts of one program, which XLA may run side by side on the cores. Under jit
        # the replica's program is rewritten and lowered once, not once for each replica; XLA puts it in for each call.
        call = jax.jit(one_replica)
        rows = [call(tree.take(stacked, i)) for i in range(tree.leading(stacked))]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

    return one_by_one


def _first(stacked: Any) -> Any:
    """Returns the shapes of one replica's leaves."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacked)
