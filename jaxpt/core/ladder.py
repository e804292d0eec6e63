"""Ladders: rungs of hyperparameter values, ordered from the coldest (rung 0) to the hottest."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpt.core import tree
from jaxpt.core.decimals import shortest

BETA: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "learning_rate": lambda v: 1 / v,
    "dropout_rate": lambda v: (1 - v) / v,
    "batch_size": lambda v: v,
    "temperature": lambda v: 1 / v,
    "gradient_noise": lambda v: 1 / v**2,
    "weight_noise": lambda v: 1 / v**2,
    "input_noise": lambda v: 1 / v**2,
}
"""{name: function from a hyperparameter's value v to its inverse temperature}. Learning rate 1/v and dropout (1-v)/v
are those of arXiv 1909.04013; a batch of v examples has gradient noise of variance ~ 1/v; a noise of standard deviation
v has variance v**2."""

_VALUE: dict[str, Callable[[Array], Array]] = {
    "learning_rate": lambda beta: 1 / beta,
    "dropout_rate": lambda beta: 1 / (1 + beta),
    "batch_size": jnp.round,
    "temperature": lambda beta: 1 / beta,
    "gradient_noise": lambda beta: beta**-0.5,
    "weight_noise": lambda beta: beta**-0.5,
    "input_noise": lambda beta: beta**-0.5,
}
"""The inverse functions: from an inverse temperature beta to the value."""

_DOMAIN: dict[str, tuple[float, float]] = {
    "learning_rate": (0, np.inf),
    "dropout_rate": (0, 1),
    "batch_size": (1, np.inf),
    "temperature": (0, np.inf),
    "gradient_noise": (0, np.inf),
    "weight_noise": (0, np.inf),
    "input_noise": (0, np.inf),
    "weight_decay": (0, np.inf),
    "label_smoothing": (0, 1),
}


def linear(start: float, stop: float, num_rungs: int) -> np.ndarray:
    """Returns `num_rungs` values from `start` to `stop` with equal differences.

        >>> jaxpt.linear(0.1, 0.4, 4)
        array([0.1, 0.2, 0.3, 0.4])

    Raises:
        ValueError: an end is not a number, or num_rungs is less than 1.
    """
    _check_spacing(start, stop, num_rungs)
    return np.linspace(start, stop, num_rungs)


def geometric(start: float, stop: float, num_rungs: int) -> np.ndarray:
    """Returns `num_rungs` values from `start` to `stop` with equal ratios.

        >>> jaxpt.geometric(1, 8, 4)
        array([1., 2., 4., 8.])

    Raises:
        ValueError: an end is not a positive number, or num_rungs is less than 1.
    """
    _check_spacing(start, stop, num_rungs)
    if not (start > 0 and stop > 0):
        raise ValueError(f"a geometric spacing needs positive ends, but they are {start} and {stop}")
    return np.geomspace(start, stop, num_rungs)


def _check_spacing(start: float, stop: float, num_rungs: int) -> None:
    """Raises ValueError unless the ends are numbers and there is at least one rung."""
    for name, value in {"start": start, "stop": stop}.items():
        if not isinstance(value, int | float | np.number):
            raise ValueError(f"{name} must be a number, but it is {value!r}")
    if not isinstance(num_rungs, int | np.integer) or num_rungs < 1:
        raise ValueError(f"num_rungs must be an integer of at least 1, but it is {num_rungs!r}")


@tree.register(data=("values", "beta"), meta=("name", "source", "unnamed"))
@dataclasses.dataclass(frozen=True, init=False, eq=False)
class Ladder:
    """One value of each named hyperparameter per rung, with the rung's inverse temperature.

    Rung 0 is the coldest (largest beta). Values given with the hot end first are reversed.

        >>> ladder = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.01, 0.04, 3))
        >>> ladder.values["learning_rate"], ladder.beta
        (array([0.01, 0.02, 0.04], dtype=float32), array([100.,  50.,  25.], dtype=float32))
        >>> rates, dropout = jaxpt.linear(0.01, 0.1, 4), jaxpt.linear(0.1, 0.4, 4)
        >>> jaxpt.Ladder(learning_rate=rates, dropout_rate=dropout, beta="learning_rate").name
        'learning_rate+dropout_rate'
        >>> ladder = jaxpt.Ladder(weight_decay=[1e-4, 3e-4], beta=[2.0, 1.0])

    Args:
        beta: inverse temperatures, one per rung; or, if several hyperparameters are coupled, the name of the one that
            determines them; or, if there is only one, a function of its values. By default beta follows from the name
            of a single hyperparameter: learning_rate and temperature 1 / v, dropout_rate (1 - v) / v, batch_size v,
            gradient_noise, weight_noise and input_noise 1 / v**2. If that does not give a descending row of finite
            numbers, the rungs keep the given order, and only rules that need no temperature accept the ladder (grid
            search, PBT, copying the best).
        name: the ladder's key in `state.replicas.rung` and `trace.rung`; by default the hyperparameters' names,
            joined by "+".
        **values: {hyperparameter: M values}.

    Raises:
        ValueError: no values; lengths differ; a value is not finite, or outside its domain; the given beta, or that of
            the given name, is unknown, not finite, or not monotone along the rungs.

    Attributes:
        values: {hyperparameter: its value on each rung [M]}, the coldest first.
        source: the hyperparameter whose name determines beta; None if beta was given, or if no name determines it.
        unnamed: whether no beta was given and no name determines it. Static, so it depends on names only, not values.
    """

    values: dict[str, Float[Array, " M"]]
    beta: Float[Array, " M"]
    name: str
    source: str | None
    unnamed: bool

    def __init__(
        self,
        *,
        beta: str | Sequence[float] | np.ndarray | Array | Callable[[np.ndarray], np.ndarray] | None = None,
        name: str | None = None,
        **values: Sequence[float] | np.ndarray | Array,
    ):
        arrays = {key: _row(key, value) for key, value in values.items()}
        if not arrays:
            raise ValueError("a ladder needs at least one hyperparameter, e.g. Ladder(learning_rate=[0.01, 0.02])")
        lengths = {key: array.shape for key, array in arrays.items()}
        if any(len(shape) != 1 or shape[0] == 0 for shape in lengths.values()) or len(set(lengths.values())) != 1:
            raise ValueError(
                "every hyperparameter of a ladder needs one value per rung, learning_rate=[0.01, 0.02] say, but the "
                "shapes are " + ", ".join(f"{key}: {shape}" for key, shape in lengths.items())
            )
        if name is not None and not isinstance(name, str):
            raise ValueError(f"name must be a string, the ladder's key in the trace, but it is {name!r}")
        for key, array in arrays.items():
            check_values(key, array)
        first = next(iter(arrays))
        source = first if beta is None and len(arrays) == 1 and first in BETA else None
        try:
            inverse, source = _inverse_temperature(beta, arrays)
        except ValueError:
            if beta is not None:
                raise
            inverse = np.arange(arrays[first].size, 0, -1).astype(np.float32)
        order = slice(None, None, -1) if len(inverse) > 1 and inverse[0] < inverse[-1] else slice(None)
        set_field = partial(object.__setattr__, self)
        set_field("values", {key: array[order] for key, array in arrays.items()})
        set_field("beta", inverse[order])
        set_field("name", name if name is not None else "+".join(arrays))
        set_field("source", source)
        set_field("unnamed", beta is None and source is None)

    @property
    def num_rungs(self) -> int:
        """M, the number of rungs."""
        return self.beta.shape[-1]

    @property
    def missing(self) -> str | None:
        """The reason why there are no inverse temperatures (`beta` then only numbers the rungs); None if there are.

        Computed from the values each time; they must be concrete.
        """
        if self.source is None and not self.unnamed:
            return None
        # The values are [S, M] in the state of a run with several seeds.
        rows = {name: np.asarray(value).reshape(-1, self.num_rungs) for name, value in self.values.items()}
        for row in range(len(next(iter(rows.values())))):
            try:
                _inverse_temperature(self.source, {name: values[row] for name, values in rows.items()})
            except ValueError as error:
                return str(error)
        return None


def require_beta(ladder: Ladder) -> None:
    """Raises ValueError if the ladder has no inverse temperatures; the message states what to give."""
    if (why := ladder.missing) is not None:
        raise ValueError(why)


def as_arrays(ladder: Ladder) -> Ladder:
    """Returns the ladder with its numbers as float32 arrays on the device, for use in a state."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), ladder)


def respaced(ladder: Ladder, beta: Float[Array, " M"]) -> Ladder:
    """Returns the ladder with its rungs moved to other inverse temperatures; both ends are fixed.

    The hyperparameter that determines beta takes the value for the new beta. Batch sizes are rounded, and beta is
    recomputed from the rounded value. Other hyperparameters are interpolated linearly in beta between the old rungs.
    May be traced.

    Args:
        ladder: ladder whose numbers are arrays.
        beta: new inverse temperatures, descending, within the ladder's ends.
    """

    def between_ends(new: Array, old: Array) -> Array:
        return new.at[0].set(old[0]).at[-1].set(old[-1])

    beta = between_ends(beta, ladder.beta)
    values = {name: jnp.interp(-beta, -ladder.beta, value) for name, value in ladder.values.items()}
    if "batch_size" in values:
        values["batch_size"] = jnp.round(values["batch_size"])
    if ladder.source is not None:
        values[ladder.source] = _VALUE[ladder.source](beta)
        beta = between_ends(jnp.asarray(BETA[ladder.source](values[ladder.source])), ladder.beta)  # type: ignore[arg-type]
    moved = copy.copy(ladder)
    object.__setattr__(moved, "values", {name: between_ends(v, ladder.values[name]) for name, v in values.items()})
    object.__setattr__(moved, "beta", beta)
    return moved


def contracted(ladder: Ladder, place: Float[Array, ""], factor: Float[Array, ""] | float) -> Ladder:
    """Returns the ladder with its M rungs laid out anew around a place; see `jaxpt.Search`. May be traced.

    Args:
        ladder: ladder whose numbers are arrays.
        place: the middle of the new ladder, in rungs of the old one; moved as far inside as the new length needs.
        factor: the new ladder's length on each side, a factor in beta, 1 or more. At most the old ladder is returned;
            also if its betas are not positive.
    """
    last = ladder.num_rungs - 1
    span = jnp.log(jnp.where(ladder.beta[-1] > 0, ladder.beta[0] / ladder.beta[-1], 1.0))
    # As if all rungs were at equal ratios; a span of 0 gives the whole ladder.
    reach = jnp.minimum(jnp.nan_to_num(last * jnp.log(factor) / span, nan=jnp.inf), last / 2)
    reach = jnp.where(span > 0, reach, last / 2)
    where = jnp.clip(jnp.clip(place, reach, last - reach) + reach * jnp.linspace(-1.0, 1.0, last + 1), 0, last)
    below, above = jnp.floor(where).astype(jnp.int32), jnp.ceil(where).astype(jnp.int32)

    def between(old: Array) -> Array:
        rungs, low, high = jnp.arange(last + 1), old[below], old[above]
        geometric = jnp.exp(jnp.interp(where, rungs, jnp.log(jnp.abs(old))))
        found = jnp.where((old > 0).all(), geometric, jnp.interp(where, rungs, old))
        # Logarithms round: exactly the old value on an old rung, and never outside two neighbours.
        return jnp.clip(found, jnp.minimum(low, high), jnp.maximum(low, high)).astype(old.dtype)

    values = {name: between(value) for name, value in ladder.values.items()}
    if "batch_size" in values:
        values["batch_size"] = jnp.round(values["batch_size"])
    beta = between(ladder.beta)
    if ladder.source is not None:
        known = jnp.asarray(BETA[ladder.source](values[ladder.source]))  # type: ignore[arg-type]
        # A ladder without inverse temperatures (a dropout rate of 0, say) keeps those that number its rungs.
        beta = jnp.where(jnp.isfinite(known).all() & (jnp.diff(known) <= 0).all(), known, beta)
    moved = copy.copy(ladder)
    object.__setattr__(moved, "values", values)
    object.__setattr__(moved, "beta", beta)
    return moved


def _row(name: str, values: Any) -> np.ndarray:
    """Returns numbers as an array.

    Raises:
        ValueError: they are not numbers, or are still traced.
    """
    if isinstance(values, jax.core.Tracer):
        raise ValueError(
            f"{name} is traced, but a ladder is made of known numbers; make it outside jit, and hand it, or an engine "
            "that has it, to the function as an argument"
        )
    try:
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} needs numbers, one per rung, but it is {values!r}") from error


def check_values(name: str, values: np.ndarray) -> None:
    """Raises ValueError unless the values are finite and in the domain of a hyperparameter of that name."""
    if not np.all(np.isfinite(values)):
        raise ValueError(f"the values of {name} must be finite, but they are {shortest(values)}")
    low, high = _DOMAIN.get(name, (-np.inf, np.inf))
    if np.any(values < low) or np.any(values > high):
        raise ValueError(f"{name} must lie between {low:g} and {high:g}, but it is {shortest(values)}")
    if name == "batch_size" and np.any(values != np.round(values)):
        raise ValueError(f"batch_size must be a whole number of examples, but it is {shortest(values)}")


def _inverse_temperature(
    beta: str | Sequence[float] | np.ndarray | Array | Callable[[np.ndarray], np.ndarray] | None,
    values: dict[str, np.ndarray],
) -> tuple[np.ndarray, str | None]:
    """Resolves the `beta` argument of `Ladder`: finite numbers, one per rung, and the name that determines them."""
    named: str | None = None
    rungs = len(next(iter(values.values())))
    source = next(iter(values))
    if (beta is None or callable(beta)) and len(values) > 1:
        raise ValueError(
            f"the ladder couples {', '.join(values)}: say which of them gives the inverse temperature, e.g. "
            f"beta={source!r}, or give beta one number per rung; a grid of their combinations (jaxpt.product) has no "
            "order from cold to hot, so give the engine rule=jaxpt.Independent() or jaxpt.PBT()"
        )
    if isinstance(beta, str):
        if beta not in values:
            raise ValueError(f"beta={beta!r} names no hyperparameter of the ladder; it has {', '.join(values)}")
        source = beta
    if beta is None or isinstance(beta, str) or callable(beta):
        if not callable(beta) and source not in BETA:
            raise ValueError(
                f"no inverse temperature is known for {source!r} (known: {', '.join(BETA)}); give beta one number per "
                "rung, largest at the coldest"
            )
        function = beta if callable(beta) else BETA[source]
        named = None if callable(beta) else source
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            inverse = np.asarray(function(values[source]), np.float32)
        origin = f"beta from {source} = {shortest(values[source])}"
    else:
        inverse, origin = _row("beta", beta), "the given beta"
    if inverse.shape != (rungs,):
        raise ValueError(f"beta needs one number per rung, shape ({rungs},), but {origin} has shape {inverse.shape}")
    if not np.all(np.isfinite(inverse)):
        raise ValueError(
            f"beta must be finite, but {origin} is {shortest(inverse)}; move the value away from its limit "
            "(a dropout rate above 0, say) or give beta yourself"
        )
    difference = np.diff(inverse)
    if not (np.all(difference <= 0) or np.all(difference >= 0)):
        raise ValueError(
            f"the ladder over {', '.join(values)} is not monotone: beta must fall from rung to rung, but it is "
            f"{shortest(inverse)}; sort the values"
        )
    return inverse, named
