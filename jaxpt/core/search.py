"""The search: a short grid search at the start of a run, after which the ladder contracts around its best rung."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxpt.core import tree
from jaxpt.core.arguments import as_names, check_share, check_steps, is_number


@tree.register(data=("steps", "factor"), meta=("share", "names"))
@dataclasses.dataclass(frozen=True)
class Search:
    """The start of a run: each replica trains on its own rung, and then the ladder contracts around the best one.

    During its steps there are no exchanges, and each named hyperparameter falls to zero along half a cosine, so that
    energies at its end tell which rate is good and not which rate is low. The best place on the ladder is the mean of
    the rungs' numbers, weighted by exp(-(E - lowest E) / spread); the spread is the median absolute deviation of the
    energies. The M rungs are then laid out anew around it, within a factor in beta on each side and within the old
    ends, and every replica goes on with its weights, on the rung of the same number. Values between old rungs are
    interpolated, geometrically if they are positive. Several ladders contract around the same place. The values of a
    ladder without inverse temperatures must rise or fall from rung to rung.

        >>> searched = dataclasses.replace(engine, search=0.1, cooldown=0.3)  # shares of the steps of `fit`
        >>> all_alike = jaxpt.Search(0.1, factor=1.0)  # afterwards all replicas have one rate

    Args:
        share: the share of the run's steps, above 0 and at most 0.9; `fit` turns it into `steps`, in whole periods.
        steps: instead of a share, the number of its steps (traced), a multiple of the engine's `every`.
        factor: the factor in beta on each side of the best place, 1 or more (traced). For a learning rate the default,
            2, means from half the best rate to twice the best. If the ladder has a smaller span, it stays as it is.
        names: the hyperparameters that fall during the search; by default the learning rate.

    Raises:
        ValueError: neither a share nor `steps`, or both; an argument is out of range.
    """

    share: float | None = None
    steps: Int[Array, ""] | int | None = dataclasses.field(default=None, kw_only=True)
    factor: Float[Array, ""] | float = dataclasses.field(default=2.0, kw_only=True)
    names: str | Sequence[str] = dataclasses.field(default=("learning_rate",), kw_only=True)

    def __post_init__(self) -> None:
        if (self.share is None) == (self.steps is None):
            raise ValueError(
                "a search takes either a share of the run, Search(0.1), or its steps, Search(steps=100), but "
                f"share={self.share!r}, steps={self.steps!r}"
            )
        check_share("share", self.share, most=0.9)
        check_steps("steps", self.steps, "search", 1)
        if not (is_number(self.factor) and 1 <= self.factor < np.inf):
            raise ValueError(f"factor of a search must be a number of at least 1, but it is {self.factor!r}")
        object.__setattr__(self, "names", as_names(self.names, "search"))
        object.__setattr__(self, "factor", float(self.factor))  # numbers of one type: another one compiles nothing
        if self.steps is not None:
            object.__setattr__(self, "steps", int(self.steps))

    def over(self, steps: int | None, every: int, most: int | None = None) -> "Search":
        """Returns the same search with `steps`, for a run of so many steps in periods of `every`; None: one period.

        Rounded to whole periods, at least one, and if `most` is given to no more than so many steps. A search that is
        given in steps stays as it is.
        """
        if self.share is None:
            return self
        periods = 1 if steps is None else round(self.share * steps / every)
        periods = max(1, periods if most is None else min(periods, most // every))
        return dataclasses.replace(self, share=None, steps=every * periods)

    @property
    def end(self) -> int:
        """The number of its steps."""
        return int(self._length())

    def fall(self, step: Int[Array, "..."] | int) -> Float[Array, "..."]:
        """Returns the factor on the named hyperparameters in a step: from 1 towards 0 in the search, 1 after it.

        Args:
            step: number of steps before this one.

        Raises:
            ValueError: the search is a share of a run; see `over`.
        """
        done = (jnp.asarray(step) / self._length()).astype(jnp.float32)
        return jnp.where(done < 1, (1 + jnp.cos(jnp.pi * done)) / 2, 1.0)

    def running(self, step: Int[Array, ""], every: int) -> Bool[Array, ""]:
        """Returns whether any step of a period belongs to the search; no exchange follows the period then.

        Args:
            step: number of steps done at the period's end.
            every: steps in a period.
        """
        return jnp.asarray(step - every < self._length())

    def ends(self, step: Int[Array, ""], every: int) -> Bool[Array, ""]:
        """Returns whether a period holds the last step of the search; the ladder contracts after it."""
        return self.running(step, every) & (step >= self._length())

    def _length(self) -> Any:
        """Returns steps; raises ValueError if the search is a share of a run of unknown length."""
        if self.steps is None:
            raise ValueError(
                f"the search is the first {self.share:g} of a run, whose length only fit knows; with Engine.run give "
                "jaxpt.Search(steps=...), or use engine.over(steps)"
            )
        return self.steps


def best_place(energy: Float[Array, " M"], rung: Int[Array, " M"], spread: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the place on a ladder, 0 to M - 1, around which it contracts; see `Search`.

    Replicas whose energies are not finite have no weight; if there is no other, it is the coldest rung.
    """
    known = jnp.isfinite(energy)
    least = jnp.min(energy, where=known, initial=jnp.inf)
    weight = jnp.where(known, jnp.exp(-(energy - least) / spread), 0.0)
    return jnp.sum(weight * rung) / jnp.maximum(jnp.sum(weight), 1e-30)
