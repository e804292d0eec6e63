"""The path of hyperparameters that led to a replica's weights; written as JSON, or used as a schedule."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpt.core.decimals import shortest
from jaxpt.core.state import Trace
from jaxpt.core.types import Schedule
from jaxpt.diagnostics.exchanges import check_trace


@dataclasses.dataclass(frozen=True, eq=False)
class Lineage:
    """The hyperparameters, period by period, under which a replica's weights were trained.

    `hyper` has the rungs' values. If the engine has a schedule, `scheduled` has its results for them, step by step. A
    schedule inside the optimizer's function, `lambda h: optax.sgd(lambda step: h["learning_rate"] * ...)`, is not
    visible and is in neither: apply it again when you train with this path.

    Attributes:
        step: steps done at each period's end.
        hyper: {name: value during each period}.
        replica: the slot in which the weights were trained during each period; it changes only if a rule copies
            weights.
        scheduled: {name: value at each of T steps} from the engine's schedule; None without one. `replay` computes it
            again.
    """

    step: Int[np.ndarray, " P"]
    hyper: dict[str, Float[np.ndarray, " P"]]
    replica: Int[np.ndarray, " P"]
    scheduled: dict[str, Float[np.ndarray, " T"]] | None = None

    def to_json(self) -> str:
        """Returns the path as a JSON object; all values are exact to the bit.

        It is {"step": [P], "replica": [P], "hyper": {name: [P]}}; with a schedule also "scheduled": {name: [T]}.
        """
        content = {"step": self.step.tolist(), "replica": self.replica.tolist(), "hyper": _plain(self.hyper)}
        return json.dumps(content if self.scheduled is None else {**content, "scheduled": _plain(self.scheduled)})

    @classmethod
    def from_json(cls, text: str) -> "Lineage":
        """Returns the path that `to_json` wrote.

        Raises:
            ValueError: the text is not such an object, or its lists differ in length.
        """
        try:
            given = json.loads(text)
            hyper = {name: np.asarray(values, np.float32) for name, values in given["hyper"].items()}
            step, replica = np.asarray(given["step"], np.int32), np.asarray(given["replica"], np.int32)
            forced = given.get("scheduled")
            if forced is not None:
                forced = {name: np.asarray(values, np.float32) for name, values in forced.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no lineage as `to_json` writes it: {type(error).__name__}: {error}") from error
        lengths = {"step": step.shape, "replica": replica.shape, **{name: v.shape for name, v in hyper.items()}}
        if len(set(lengths.values())) != 1 or step.ndim != 1 or not len(step):
            raise ValueError(f"a lineage has one number per period in each list, but their shapes are {lengths}")
        if forced is not None and any(values.shape != (step[-1],) for values in forced.values()):
            raise ValueError(
                f"a lineage of {step[-1]} steps has as many values in force, but it has other numbers of them"
            )
        return cls(step, hyper, replica, forced)

    def schedule(self, name: str) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
        """Returns one hyperparameter's path as an optax schedule: steps done -> value; the last value stays forever.

        In any training loop, `optax.sgd(lineage.schedule("learning_rate"))` uses the learning rates that were in force:
        those of the rungs, or the results of the engine's schedule. It does not include a schedule inside the
        optimizer's function.

        Raises:
            ValueError: no such hyperparameter.
        """
        known = self.hyper if self.scheduled is None else self.scheduled
        if name not in known:
            raise ValueError(f"the path has no hyperparameter {name!r}; it has {', '.join(known)}")
        values = jnp.asarray(known[name])
        if self.scheduled is not None:
            return lambda count: values[jnp.minimum(count, len(values) - 1)]
        ends = jnp.asarray(self.step)
        return lambda count: values[jnp.minimum(jnp.searchsorted(ends, count, side="right"), len(ends) - 1)]


def _plain(values: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: shortest(array) for name, array in values.items()}


def lineage(trace: Trace, replica: int, seed: int | None = None, *, schedule: Schedule | None = None) -> Lineage:
    """Returns the path of hyperparameters behind a replica's weights at the end of a trace.

    If a rule copies weights (PBT), the path follows the replica's ancestors: at each copy it switches to the replica
    that was copied.

    >>> path = jaxpt.lineage(result.trace, result.best().replica)
    >>> path.step[:3].tolist(), path.hyper["learning_rate"].shape
    ([10, 20, 30], (20,))
    >>> optimizer = optax.sgd(path.schedule("learning_rate"))  # for any training loop
    >>> jaxpt.Lineage.from_json(path.to_json()).step.tolist() == path.step.tolist()
    True

    Args:
        trace: the trace of the whole run, `result.trace`.
        replica: the replica's slot, such as `result.best().replica`.
        seed: an index into the run's seeds; needed if there are several.
        schedule: the engine's schedule, if it has one; the path then includes the values in force at each step.
            `Result.lineage` passes it.

    Raises:
        ValueError: no such replica, no such seed, or none given.
    """
    check_trace(trace)
    shape = np.shape(trace.loss)
    if len(shape) == 3 and (seed is None or not 0 <= seed < shape[1]):
        raise ValueError(f"the trace has {shape[1]} seeds; give seed=0 .. {shape[1] - 1}, not {seed}")
    if len(shape) == 2 and seed is not None:
        raise ValueError(f"the trace has one seed only, so seed={seed} names none; leave it out")
    if not isinstance(replica, int | np.integer) or not 0 <= replica < shape[-1]:
        raise ValueError(f"replica must be one of 0 .. {shape[-1] - 1}, but it is {replica!r}")

    def own(leaf: Any) -> np.ndarray:
        return np.asarray(leaf) if seed is None else np.asarray(leaf)[:, seed]

    slot = np.full(shape[0], replica, np.int32)
    if trace.info.parents is not None:
        parents, now = own(trace.info.parents), replica
        for period in reversed(range(shape[0])):
            slot[period] = now = parents[period, now]
    rows = np.arange(shape[0])
    step, hyper = np.asarray(trace.step), {name: own(v)[rows, slot] for name, v in trace.hyper.items()}
    return Lineage(step, hyper, slot, None if schedule is None else along(schedule, step, hyper))


def along(schedule: Schedule, step: np.ndarray, hyper: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a schedule's results for each step's values, {name: [T]}."""
    at = jnp.repeat(jnp.arange(len(step)), np.diff(step, prepend=0), total_repeat_length=int(step[-1]))
    values = {name: jnp.asarray(v)[at] for name, v in hyper.items()}
    made = jax.vmap(lambda h, count: dict(schedule(h, count)))(values, jnp.arange(len(at)))
    return {name: np.asarray(jnp.broadcast_to(v, at.shape), np.float32) for name, v in made.items()}
