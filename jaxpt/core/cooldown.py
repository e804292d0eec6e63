"""The cooldown: the last part of a run, without exchanges, in which learning rates fall towards zero."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxpt.core import tree
from jaxpt.core.arguments import NEVER, as_names, check_share, check_steps, is_number
from jaxpt.core.search import Search
from jaxpt.core.types import Schedule

Shape = Literal["cosine", "linear"]


@tree.register(data=("start", "steps", "floor"), meta=("share", "names", "shape"))
@dataclasses.dataclass(frozen=True)
class Cooldown:
    """The end of a run: exchanges stop, and each named hyperparameter falls from its replica's value to zero.

    Every replica keeps the rung on which the last exchange left it. In step `start` + n the named values are multiplied
    by f(n / steps): half a cosine, f(x) = (1 + cos(pi x)) / 2, or a straight line, 1 - x. A schedule of the engine
    comes first, so a warm-up goes together with a cooldown.

        >>> cooled = dataclasses.replace(engine, cooldown=0.3)  # the last 30 % of the steps of `fit`
        >>> slowly = jaxpt.Cooldown(0.5, shape="linear", floor=0.01)
        >>> in_steps = jaxpt.Cooldown(start=700, steps=300)  # for `Engine.run`, which knows no end

    Args:
        share: the share of the run's steps, above 0 and at most 1; `fit` turns it into `start` and `steps`.
        start: instead of a share, the number of steps before it (traced).
        steps: its number of steps, with `start` (traced); in later steps the values stay as they are at its end.
        names: the hyperparameters that fall; by default the learning rate. Each is one of the engine's, or of those
            that its schedule returns.
        shape: "cosine" or "linear".
        floor: the share of the value that is left at the end, from 0 to below 1 (traced).

    Raises:
        ValueError: neither a share nor both `start` and `steps`, or both; an argument is out of range.
    """

    share: float | None = None
    start: Int[Array, ""] | int | None = dataclasses.field(default=None, kw_only=True)
    steps: Int[Array, ""] | int | None = dataclasses.field(default=None, kw_only=True)
    names: str | Sequence[str] = dataclasses.field(default=("learning_rate",), kw_only=True)
    shape: Shape = dataclasses.field(default="cosine", kw_only=True)
    floor: Float[Array, ""] | float = dataclasses.field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if (self.share is None) == (self.start is None or self.steps is None) or (
            self.share is not None and (self.start is not None or self.steps is not None)
        ):
            raise ValueError(
                "a cooldown takes either a share of the run, Cooldown(0.3), or both start and steps, "
                f"Cooldown(start=700, steps=300), but share={self.share!r}, start={self.start!r}, steps={self.steps!r}"
            )
        check_share("share", self.share, most=1)
        for name, low in {"start": 0, "steps": 1}.items():
            check_steps(name, getattr(self, name), "cooldown", low)
        if self.shape not in ("cosine", "linear"):
            raise ValueError(f"shape must be cosine or linear, but it is {self.shape!r}")
        if not (is_number(self.floor) and 0 <= self.floor < 1):
            raise ValueError(f"floor must be at least 0 and below 1, a share of the value, but it is {self.floor!r}")
        object.__setattr__(self, "names", as_names(self.names, "cooldown"))
        object.__setattr__(self, "floor", float(self.floor))  # numbers of one type: another one compiles nothing
        for name in ("start", "steps"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, int(getattr(self, name)))

    def over(self, steps: int | None) -> "Cooldown":
        """Returns the same cooldown with `start` and `steps`, for a run of so many steps; None: it never begins.

        The length is rounded to whole steps, at least one. A cooldown that is given in steps stays as it is.
        """
        if self.share is None:
            return self
        length = 1 if steps is None else max(1, round(self.share * steps))
        start = NEVER if steps is None else steps - length
        return dataclasses.replace(self, share=None, start=start, steps=length)

    @property
    def begin(self) -> int:
        """The number of steps before it."""
        return int(self._timed()[0])

    def begun(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        """Returns whether any of the first `step` steps belongs to it; no exchange follows them then."""
        return jnp.asarray(step > self._timed()[0])

    def fall(self, step: Int[Array, "..."] | int) -> Float[Array, "..."]:
        """Returns the factor on the named hyperparameters in a step, from 1 before it begins to `floor` at its end.

        Args:
            step: number of steps before this one.

        Raises:
            ValueError: the cooldown is a share of a run; see `over`.
        """
        start, steps = self._timed()
        done = jnp.clip((jnp.asarray(step) - start) / steps, 0.0, 1.0).astype(jnp.float32)
        left = (1 + jnp.cos(jnp.pi * done)) / 2 if self.shape == "cosine" else 1 - done
        return self.floor + (1 - self.floor) * left

    def _timed(self) -> tuple[Any, Any]:
        """Returns start and steps; raises ValueError if the cooldown is a share of a run of unknown length."""
        if self.start is None or self.steps is None:
            raise ValueError(
                f"the cooldown is the last {self.share:g} of a run, whose length only fit knows; with Engine.run give "
                "jaxpt.Cooldown(start=..., steps=...), or use engine.over(steps)"
            )
        return self.start, self.steps


def in_force(schedule: Schedule | None, falls: Sequence[Search | Cooldown | None]) -> Schedule | None:
    """Returns the schedule of a run: the given one, followed by search and cooldown; None if there is none of them."""
    given = tuple(fall for fall in falls if fall is not None)
    return partial(_lowered, schedule, given) if given else schedule


def _lowered(
    schedule: Schedule | None,
    falls: Sequence[Search | Cooldown],
    hyper: Mapping[str, Array],
    step: Int[Array, ""],
) -> dict[str, Any]:
    values = dict(hyper) if schedule is None else dict(schedule(dict(hyper), step))
    for fall in falls:
        left = fall.fall(step)
        values |= {name: values[name] * left for name in fall.names}
    return values
