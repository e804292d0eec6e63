"""The types that every room uses: problems, and what a rule returns."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

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


class Problem(NamedTuple):
    """What one replica trains on: pure functions over ONE replica; the engine adds the replica axis.

    Make one with `nnx_problem`, `linen_problem` or `energy_problem`.

    Attributes:
        init: key -> (params, model_state).
        loss: (params, model_state, batch, hyper, key) -> (training loss of each example [B], new model_state).
        evaluate: (params, model_state, batch) -> {"energy": [B], metric: [B], ...} in evaluation mode; a pytree of
            [B, ...] for a metric that combines them (`jaxpt.Metric`).
        hyperparameters: names that the model itself reads (the rate of a `Dropout`, say).
        reads_hyper: whether the loss takes the hyperparameters too, so that any name may be read there.
        model: (params, model_state) -> the user's model with these weights, in evaluation mode.
        predict: (params, model_state, batch) -> probabilities, or values of a regression, [B, ...] in evaluation mode.
        prediction: what `predict` returns, "classes", "binary" or "values"; None: not said, so classes [B, K].
        metrics: (name, `jaxpt.Metric`) of the metrics that have more to them than a mean over examples.
        trained_on: (params, model_state, batch, hyper) -> the training loss [B] in evaluation mode, where the energy is
            another function; only looked at before a run.
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


class Info(NamedTuple):
    """What one exchange did, for the trace. P = M - 1 adjacent pairs; pair i is rungs i and i + 1.

    Attributes:
        ladder: which ladder had its turn: its place among the sorted names.
        attempted: pairs that were offered a swap.
        accepted: pairs that swapped.
        probability: acceptance probability of every pair, attempted or not.
        beta: inverse temperatures of that ladder's rungs, by which the exchange went.
        C: the factor between energies and inverse temperatures, likewise.
        correction: what the noise of the energies took off each pair's log acceptance ratio; None without such a
            correction.
        parents: whose weights each replica goes on with; None for rules that never copy any.
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
            parents: whose weights each replica goes on with, if the rule copies any.
        """
        none = jnp.zeros(replicas - 1, bool)
        return cls(jnp.zeros((), jnp.int32), none, none, jnp.zeros(none.shape, jnp.float32), parents=parents)


class Move(NamedTuple):
    """Where each replica goes on from; leaves of rung, hyper and parents [M].

    Attributes:
        rung: {ladder: rung of each replica}.
        hyper: {name: value for each replica}.
        parents: whose weights each replica goes on with; None (static) when weights stay where they are.
        ladders: {name: Ladder} in force from now on; None (static) when a rule never changes them. `hyper` must agree.
    """

    rung: dict[str, Int[Array, " M"]]
    hyper: dict[str, Float[Array, " M"]]
    parents: Int[Array, " M"] | None = None
    ladders: dict[str, Any] | None = None
