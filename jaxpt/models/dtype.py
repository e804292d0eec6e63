"""Training in bfloat16 with float32 weights."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jaxpt.core.types import Batch, ModelState, Params, Problem
from jaxpt.models.average import require_no_average


def with_compute_dtype(
    problem: Problem, dtype: Any = jnp.bfloat16, *, inputs: Callable[[Batch], Batch] | None = None
) -> Problem:
    """Returns the problem computed in another floating-point type; weights, optimiser and sums stay float32.

    Weights and minibatches are cast inside the loss, so gradients and updates are float32. Losses, energies, metrics
    and probabilities are returned as float32, and the model's state (batch statistics) in its own type. The model of
    `Result.best` has the float32 weights and its original compute type.

    Flax layers compute in the widest type of their inputs. So floats that a loss makes from integers (such as scaled
    uint8 pixels) must also be cast, or the whole network is computed in float32.

    Args:
        problem: any problem.
        dtype: the type to compute in.
        inputs: function that casts a minibatch; by default all its floating-point arrays are cast, also the targets of
            a regression.

    Raises:
        ValueError: dtype is not a floating-point type; the problem has an average of its weights (`with_average`).
    """
    if isinstance(dtype, str) or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating-point type, e.g. jax.numpy.bfloat16, but it is {dtype!r}")

    require_no_average(problem, "with_compute_dtype")
    return problem.changed(partial(_computed_in, dtype=dtype, inputs=inputs))


def _computed_in(problem: Problem, dtype: Any, inputs: Callable[[Batch], Batch] | None) -> Problem:
    def cast(arrays: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if _is_float(leaf) else leaf, arrays)

    cast_batch = inputs or cast

    def loss(
        params: Params, rest: ModelState, batch: Batch, hyper: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[Array, ModelState]:
        per_example, after = problem.loss(cast(params), rest, cast_batch(batch), hyper, key)
        after = jax.tree.map(lambda new, old: new.astype(old.dtype) if _is_float(old) else new, after, rest)
        return _at_least_float32(per_example), after

    def evaluate(params: Params, rest: ModelState, batch: Batch) -> dict[str, Array]:
        scores = problem.evaluate(cast(params), rest, cast_batch(batch))
        return jax.tree.map(_at_least_float32, scores)

    predict = problem.predict
    if predict is not None:

        def predict(params: Params, rest: ModelState, batch: Batch, predict: Any = problem.predict) -> Array:
            return _at_least_float32(predict(cast(params), rest, cast_batch(batch)))

    trained_on = problem.trained_on
    if trained_on is not None:

        def trained_on(
            params: Params, rest: ModelState, batch: Batch, hyper: Mapping[str, Array], of: Any = problem.trained_on
        ) -> Array:
            return _at_least_float32(of(cast(params), rest, cast_batch(batch), hyper))

    return problem._replace(loss=loss, evaluate=evaluate, predict=predict, trained_on=trained_on)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _at_least_float32(scores: Array) -> Array:
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) if _is_float(scores) else scores
