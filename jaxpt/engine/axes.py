"""The seed and replica axes of a run's arrays, in the form that a placement takes."""

from typing import Any

from jax.sharding import PartitionSpec as P

from jaxpt.core.state import RunState, Trace
from jaxpt.devices.placement import AXIS, SEED


def state_axes(seeds: int) -> Any:
    """Returns the seed and replica axes of a `RunState`'s leaves, in the form that `Placement` takes.

    Args:
        seeds: 1 if the run has an axis of seeds, else 0.
    """
    make: Any = RunState
    lead = (SEED,) * seeds
    return make(replicas=P(*lead, AXIS), step=P(), period=P(), key=P(*lead), ladders=P(*lead), rule=P(*lead))


def batches_axes(own: bool) -> Any:
    """Returns the same for `Batches`.

    Args:
        own: whether each replica has its own minibatches, along an axis after the periods.
    """
    return P(None, AXIS) if own else P()


def trace_axes(seeds: int) -> Any:
    """Returns the same for a `Trace`, whose leading axis is the periods."""
    make: Any = Trace
    lead = None, *(SEED,) * seeds
    row = P(*lead, AXIS)
    rows = dict.fromkeys(("loss", "valid", "test", "rung", "hyper", "reported", "draws"), row)
    return make(step=P(), info=P(*lead), cooldown=P(), **rows)
