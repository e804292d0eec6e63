"""Spaces in which population based training explores a hyperparameter: bounds on a linear or log scale, and sets."""

import abc
import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxpt.core import tree
from jaxpt.core.arguments import is_number
from jaxpt.core.decimals import shortest


class Space(abc.ABC):
    """A set of values, with a way to draw one and a way to go on from one; its numbers are traced.

    Below, `up` is whether the value grows, and `factor` the factor that goes with it.
    """

    @abc.abstractmethod
    def ends(self) -> tuple[float, float]:
        """Returns the least and the greatest value."""

    def contains(self, values: np.ndarray) -> np.ndarray:
        """Returns whether float32 values belong to the space."""
        low, high = map(np.float32, self.ends())
        return (values >= low) & (values <= high)

    @abc.abstractmethod
    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Returns independent draws."""

    @abc.abstractmethod
    def perturb(
        self, value: Float[Array, " M"], factor: Float[Array, " M"], up: Bool[Array, " M"]
    ) -> Float[Array, " M"]:
        """Returns values near the given ones, within the space."""


class _Bounds(Space):
    """What both kinds of bounds share: `low` and `high`."""

    low: Any
    high: Any

    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    def perturb(
        self, value: Float[Array, " M"], factor: Float[Array, " M"], up: Bool[Array, " M"]
    ) -> Float[Array, " M"]:
        del up
        return self._clip(value * factor)

    def _clip(self, value: Array) -> Array:
        return jnp.clip(value, jnp.asarray(self.low, jnp.float32), jnp.asarray(self.high, jnp.float32))

    def _check(self, least: float) -> None:
        """Makes floats of the bounds; raises ValueError unless they are numbers above `least`, low below high."""
        kind = type(self).__name__
        for name in ("low", "high"):
            value = _plain(getattr(self, name))
            if not is_number(value) or not least < _short(value) < np.inf:
                above = "" if least == -np.inf else f" above {least:g}"
                raise ValueError(f"{name} of a {kind} must be a finite number{above}, in float32, but it is {value!r}")
            object.__setattr__(self, name, float(value))  # numbers of one type: another one compiles nothing
        if not _short(self.low) < _short(self.high):
            raise ValueError(
                f"low of a {kind} must be below high, also in float32, but they are {self.low!r} and {self.high!r}"
            )


@tree.register(data=("low", "high", "step"))
@dataclasses.dataclass(frozen=True)
class Uniform(_Bounds):
    """Values between two bounds, each equally likely in a draw; for `jaxpt.PBT(explore=...)`.

    >>> rule = jaxpt.PBT(explore={"dropout_rate": jaxpt.Uniform(0.0, 0.5)})

    A perturbation multiplies by one of PBT's two factors. It cannot leave 0; with a `step` it adds or subtracts that
    instead. Both stay within the bounds.

    Args:
        low: the least value.
        high: the greatest value.
        step: what a perturbation adds or subtracts; by default it multiplies.

    Raises:
        ValueError: a bound is not a finite number, `low` is not below `high`, or `step` is not positive.
    """

    low: Float[Array, ""] | float | int
    high: Float[Array, ""] | float | int
    step: Float[Array, ""] | float | int | None = None

    def __post_init__(self) -> None:
        self._check(-np.inf)
        if self.step is not None:
            if not (is_number(self.step) and 0 < self.step < np.inf):
                raise ValueError(f"step of a Uniform must be a positive number, but it is {self.step!r}")
            object.__setattr__(self, "step", float(self.step))

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Returns independent draws."""
        return self._clip(self.low + (self.high - self.low) * jax.random.uniform(key, shape))

    def perturb(
        self, value: Float[Array, " M"], factor: Float[Array, " M"], up: Bool[Array, " M"]
    ) -> Float[Array, " M"]:
        """Returns values near the given ones, within the space."""
        if self.step is None:
            return super().perturb(value, factor, up)
        return self._clip(jnp.where(up, value + self.step, value - self.step))


@tree.register(data=("low", "high"))
@dataclasses.dataclass(frozen=True)
class LogUniform(_Bounds):
    """Values between two positive bounds, uniform on a log scale in a draw; for `jaxpt.PBT(explore=...)`.

    >>> rule = jaxpt.PBT(explore={"learning_rate": jaxpt.LogUniform(1e-4, 1.0)})

    A perturbation multiplies by one of PBT's two factors, within the bounds.

    Args:
        low: the least value.
        high: the greatest value.

    Raises:
        ValueError: a bound is not a positive finite number, or `low` is not below `high`.
    """

    low: Float[Array, ""] | float | int
    high: Float[Array, ""] | float | int

    def __post_init__(self) -> None:
        self._check(0.0)

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Returns independent draws."""
        low, high = jnp.log(self.low), jnp.log(self.high)
        return self._clip(jnp.exp(low + (high - low) * jax.random.uniform(key, shape)))


@tree.register(data=("values",))
@dataclasses.dataclass(frozen=True)
class Choice(Space):
    """A set of numbers, each equally likely in a draw; for `jaxpt.PBT(explore=...)`.

    >>> rule = jaxpt.PBT(explore={"batch_size": jaxpt.Choice([16, 32, 64])})

    A perturbation goes to the next greater or the next smaller number, each with probability one half. At an end, the
    number stays in the second case.

    Args:
        values: two different numbers or more, in any order; sorted.

    Raises:
        ValueError: they are not such numbers.
    """

    values: Any

    def __post_init__(self) -> None:
        given = self.values if isinstance(self.values, Iterable) and not isinstance(self.values, str) else ()
        values = tuple(map(_plain, given))
        if len(values) < 2 or not all(is_number(v) and np.isfinite(_short(v)) for v in values):
            raise ValueError(f"values of a Choice must be two or more finite numbers, but they are {self.values!r}")
        if len({_short(v) for v in values}) < len(values):
            raise ValueError(f"values of a Choice must be different float32 numbers, but they are {self.values!r}")
        object.__setattr__(self, "values", tuple(sorted(map(float, values))))

    def ends(self) -> tuple[float, float]:
        """Returns the least and the greatest value."""
        return self.values[0], self.values[-1]

    def contains(self, values: np.ndarray) -> np.ndarray:
        """Returns whether float32 values belong to the space."""
        return np.isin(values, np.asarray(self.values, np.float32))

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Returns independent draws."""
        return self._row()[jax.random.randint(key, shape, 0, len(self.values))]

    def perturb(
        self, value: Float[Array, " M"], factor: Float[Array, " M"], up: Bool[Array, " M"]
    ) -> Float[Array, " M"]:
        """Returns neighbours in the set."""
        del factor
        row = self._row()
        place = jnp.abs(value[:, None] - row).argmin(1) + jnp.where(up, 1, -1)
        return row[jnp.clip(place, 0, len(self.values) - 1)]

    def _row(self) -> Float[Array, " K"]:
        return jnp.stack([jnp.asarray(value, jnp.float32) for value in self.values])


def _plain(value: Any) -> Any:
    """Returns an array without axes as a Python number, and anything else as it is."""
    return value.item() if isinstance(value, jax.Array | np.ndarray | np.generic) and np.ndim(value) == 0 else value


def _short(value: Any) -> np.float32:
    """Returns a number as the program holds it: infinite, or 0, if it is out of range."""
    with np.errstate(over="ignore", under="ignore"):
        return np.float32(value)


def check_space(name: str, space: Space, values: np.ndarray, domain: Any) -> None:
    """Raises ValueError unless a space fits a hyperparameter and holds its first values.

    Args:
        name: the hyperparameter.
        space: its space.
        values: its values on the ladder, [M].
        domain: function (name, values) that raises ValueError for values that the hyperparameter cannot take.
    """
    points = space.values if isinstance(space, Choice) else space.ends()
    try:
        domain(name, np.asarray(points, np.float32))
    except ValueError as error:
        raise ValueError(f"explore[{name!r}] = {space!r} holds values that it cannot take: {error}") from error
    inside = space.contains(np.asarray(values, np.float32))
    if not inside.all():
        raise ValueError(
            f"{name} begins with {shortest(np.unique(np.asarray(values)[~inside]))} on its ladder, outside of "
            f"explore[{name!r}] = {space!r}; widen the space, or take these values off the ladder"
        )
