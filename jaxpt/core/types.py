"""The types that every room uses: problems, and what a rule sees and returns."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

Params: TypeAlias = PyTree
ModelState: TypeAlias = PyTree
Batch: TypeAlias = PyTree
AnyArray: TypeAlias = Array | np.ndarray
Hyper = dict[str, Array]
Optimizer = Callable[[Mapping[str, Array]], Any]
"""From one replica's hyperparameters (scalars, traced) to an `optax.GradientTransformation`."""
Schedule = Callable[[Mapping[str, Array], Int[Array, ""]], Mapping[str, Array]]
"""From the rung's values and the step to the values that the step uses."""


class Given(NamedTuple):
    """Weights that a problem is given, as in fine-tuning; all replicas share them.

    Attributes:
        start: NumPy arrays that replicas start from; only `Problem.init` reads them.
        frozen: arrays of the parts that are not trained, which all functions but `init` read. A run holds them once on
            each device, not once per replica.
    """

    start: PyTree
    frozen: PyTree

    def __repr__(self) -> str:
        started, frozen = (len(jax.tree.leaves(part)) for part in self)
        return f"Given({started} arrays to start from, {frozen} frozen)"


class Problem(NamedTuple):
    """The problem that a replica trains on: pure functions of ONE replica; the engine adds the replica axis.

    Make one with `nnx_problem`, `linen_problem`, `equinox_problem` or `energy_problem`. A problem is a pytree whose
    leaves are the arrays of `given`, so compiled programs take these as arguments.

    Attributes:
        init: key -> (params, model_state).
        loss: (params, model_state, batch, hyper, key) -> (training loss of each example [B], new model_state).
        evaluate: (params, model_state, batch) -> {"energy": [B], metric: [B], ...} in evaluation mode; a pytree of
            [B, ...] for a metric that combines them (`jaxpt.Metric`).
        hyperparameters: names that the model itself reads, such as the rate of a `Dropout`.
        reads_hyper: whether the loss also takes the hyperparameters; it may then read any name.
        model: (params, model_state) -> the user's model with these weights, in evaluation mode.
        predict: (params, model_state, batch) -> probabilities, or values of a regression, [B, ...] in evaluation mode.
        prediction: kind of the predictions, "classes", "binary" or "values"; None: not given, read as classes [B, K].
        metrics: (name, `jaxpt.Metric`) of the metrics declared as a `jaxpt.Metric`.
        trained_on: (params, model_state, batch, hyper) -> the training loss [B] in evaluation mode, where the energy is
            another function; only looked at before a run.
        complete: (params, model_state) -> the same of the whole model, as it is saved: with frozen parts, or averaged
            weights; None: as they are.
        average: decay of the average of the weights that scores are computed with; None: of the weights themselves.
        given: the weights that the problem is given; None: none. The functions above read them.
        over: given weights -> the same problem with these; None without `given`.
    """

    init: Callable[[Key[Array, ""]], tuple[Params, ModelState]]
    loss: Callable[
        [Params, ModelState, Batch, Mapping[str, Array], Key[Array, ""]],
        tuple[Float[Array, " B"], ModelState],
    ]
    evaluate: Callable[[Params, ModelState, Batch], dict[str, Array]]
    hyperparameters: frozenset[str] = frozenset()
    reads_hyper: bool = False
    model: Callable[[Params, ModelState], Any] | None = None
    predict: Callable[[Params, ModelState, Batch], Float[Array, "B *K"]] | None = None
    prediction: str | None = None
    metrics: tuple[tuple[str, Any], ...] = ()
    trained_on: Callable[[Params, ModelState, Batch, Mapping[str, Array]], Float[Array, " B"]] | None = None
    complete: Callable[[Params, ModelState], tuple[Params, ModelState]] | None = None
    average: float | None = None
    given: Given | None = None
    over: Callable[[Given], Any] | None = None  # of a Problem, which has no name yet

    @property
    def frozen(self) -> PyTree:
        """The arrays that are not trained, shared by all replicas; None without given weights."""
        return None if self.given is None else self.given.frozen

    def changed(self, change: Callable[["Problem"], "Problem"]) -> "Problem":
        """Returns `change(problem)`, so that the change also holds for other given weights.

            noisy = problem.changed(lambda problem: problem._replace(loss=noise_around(problem.loss)))

        Functions made from those of a problem read the arrays of this problem. `changed` keeps the way to make them
        from other arrays, which a compiled program needs. A problem without given weights can be changed by `_replace`.

        Args:
            change: pure function of a problem.
        """
        made = change(self)
        return made if self.over is None else made._replace(given=self.given, over=partial(_changed, self.over, change))


def with_frozen(problem: Problem, place: Callable[[PyTree], PyTree]) -> Problem:
    """Returns the problem with its frozen arrays placed elsewhere; `place` returns the same numbers.

    Args:
        problem: the problem; without given weights it is returned as it is.
        place: function of the tree of frozen arrays, such as `Placement.put`.
    """
    if problem.over is None or problem.given is None:
        return problem
    return with_given(problem.over, problem.given._replace(frozen=place(problem.given.frozen)))


def with_given(over: Callable[[Given], Problem], given: Given) -> Problem:
    """Returns the problem `over(given)`, whose leaves are these weights.

    Args:
        over: function of given weights; it only passes them on, since JAX also calls it with other objects.
        given: the weights.
    """
    return over(given)._replace(given=given, over=over)


def check_unchanged(problem: Problem) -> None:
    """Raises ValueError if a function of a problem with given weights was replaced otherwise than by `changed`."""
    if problem.over is None or problem.given is None:
        return
    made = problem.over(problem.given)
    for name, own, expected in zip(problem._fields, problem, made, strict=True):
        if name not in ("given", "over") and _code(own) != _code(expected):
            raise ValueError(
                f"{name} of a problem with given weights was replaced, and the run would not use it; write "
                f"problem.changed(lambda problem: problem._replace({name}=...))"
            )


def _code(part: Any) -> Any:
    """Returns what a function that is made twice has in common with itself; any other value as it is."""
    return _code(part.func) if isinstance(part, partial) else getattr(part, "__code__", part)


def _changed(over: Callable[[Given], Problem], change: Callable[[Problem], Problem], given: Given) -> Problem:
    return change(with_given(over, given))


def _flatten(problem: Problem) -> tuple[Any, Any]:
    # Functions of a problem with given weights read these arrays; only `over` is free of them.
    return ((jax.tree_util.GetAttrKey("given"), problem.given),), problem if problem.over is None else problem.over


def _unflatten(static: Any, children: Any) -> Problem:
    return static if isinstance(static, Problem) else with_given(static, children[0])


# Without this JAX would take the functions of a named tuple as its leaves.
jax.tree_util.register_pytree_with_keys(Problem, _flatten, _unflatten)


class Observation(NamedTuple):
    """What a rule sees at the end of a period. M replicas, of all devices.

    Attributes:
        turn: exchanges so far, burn-in included.
        energy: evaluation loss of each replica.
        rung: {ladder: rung of each replica}.
        hyper: each replica's hyperparameters, fixed ones included.
        ladders: {name: Ladder} as arrays.
        allowed: false during burn-in, in the search and in the cooldown: no replica moves then.
        variance: the variance of each difference of two replicas' energies due to the probe batch; given only to rules
            with `noise_corrected`, else None.
        cooldown: true in the cooldown, where `allowed` is false again; None for an engine without one.
        search: true in the search, whose energies tell nothing of the later ladder; None for an engine without one.
        reported: {name: mean over the period's steps} of numbers that the optimiser reports; None if it reports none.
    """

    turn: Int[Array, ""]
    energy: Float[Array, " M"]
    rung: dict[str, Int[Array, " M"]]
    hyper: dict[str, Float[Array, " M"]]
    ladders: Mapping[str, Any]
    allowed: Bool[Array, ""]
    variance: Float[Array, "M M"] | None = None
    cooldown: Bool[Array, ""] | None = None
    search: Bool[Array, ""] | None = None
    reported: Mapping[str, Float[Array, " M"]] | None = None


class Info(NamedTuple):
    """The record of one exchange, for the trace. P = M - 1 adjacent pairs; pair i is rungs i and i + 1.

    Attributes:
        ladder: the ladder that exchanged: its index among the sorted names.
        attempted: pairs that were offered a swap.
        accepted: pairs that swapped.
        probability: acceptance probability of every pair, attempted or not.
        beta: inverse temperatures of that ladder's rungs, as used in the exchange.
        C: the factor between energies and inverse temperatures, likewise.
        correction: the amount subtracted from each pair's log acceptance ratio for the noise of the energies; None
            without such a correction.
        parents: the replica whose weights each replica takes; None for rules that never copy weights.
    """

    ladder: Int[Array, ""]
    attempted: Bool[Array, " P"]
    accepted: Bool[Array, " P"]
    probability: Float[Array, " P"]
    beta: Float[Array, " M"] | None = None
    C: Float[Array, ""] | None = None
    correction: Float[Array, " P"] | None = None
    parents: Int[Array, " M"] | None = None

    @classmethod
    def none(cls, replicas: int, parents: Int[Array, " M"] | None = None) -> "Info":
        """Returns the record of a period without swaps.

        Args:
            replicas: M.
            parents: the replica whose weights each replica takes, if the rule copies weights.
        """
        none = jnp.zeros(replicas - 1, bool)
        return cls(jnp.zeros((), jnp.int32), none, none, jnp.zeros(none.shape, jnp.float32), parents=parents)


class Move(NamedTuple):
    """Each replica's position and values for the next period; leaves of rung, hyper and parents [M].

    Attributes:
        rung: {ladder: rung of each replica}.
        hyper: {name: value for each replica}.
        parents: the replica whose weights each replica takes; None (static) when weights do not move.
        ladders: {name: Ladder} in force from now on; None (static) if a rule never changes them. `hyper` must match.
    """

    rung: dict[str, Int[Array, " M"]]
    hyper: dict[str, Float[Array, " M"]]
    parents: Int[Array, " M"] | None = None
    ladders: dict[str, Any] | None = None
