"""Exponential moving averages of the weights."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from jaxpt.core.types import Batch, ModelState, Params, Problem


class Averaged(NamedTuple):
    """The model state of a problem with an average.

    Attributes:
        inner: the model state of the problem itself.
        total: the sum of decay^(t - k) (1 - decay) w_k over the weights after steps k = 1 .. t, t = steps - 1; in
            float32 at least, since in shorter types small terms would be lost.
        steps: steps done.
    """

    inner: ModelState
    total: Params
    steps: Int[Array, ""]


def with_average(problem: Problem, decay: float = 0.999) -> Problem:
    """Returns the problem scored with an exponential moving average of the trained weights.

    After t steps the average is sum_k decay^(t - k) w_k / sum_k decay^(t - k), k = 1 .. t, where w_k are the weights
    after step k. It needs no start value and has no bias towards one. Energies, metrics and predictions use it, and so
    do exchanges, `best().model`, ensembles and `save_model`. Training uses the weights themselves, which are
    `state.replicas.params`. A replica's average stays with its weights in a swap, and is copied with them.

    >>> averaged = dataclasses.replace(engine, problem=jaxpt.with_average(problem, 0.99))
    >>> result = jaxpt.fit(averaged, train, valid, steps=100)
    >>> model = result.best().model  # with the averaged weights

    The average needs as much memory as the trained weights, in float32 for those of 16 bits. Batch statistics are not
    averaged: they are those of the weights in training. Apply `with_compute_dtype` and `with_weight_noise` first.

    Args:
        problem: any problem.
        decay: the factor by which older weights count less, per step; the last 1 / (1 - decay) steps count most. 0 to
            1, both excluded.

    Raises:
        ValueError: decay is out of range, or the problem has an average already.
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"problem must come from nnx_problem, linen_problem or energy_problem, not {problem!r}")
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay < 1:
        raise ValueError(f"decay must be a number between 0 and 1, 0.999 say, but it is {decay!r}")
    if problem.average is not None:
        raise ValueError(f"the problem has an average already, of decay {problem.average}; leave one out")
    return problem.changed(partial(_averaged, decay=float(decay)))


def _averaged(problem: Problem, decay: float) -> Problem:
    def init(key: Key[Array, ""]) -> tuple[Params, ModelState]:
        params, inner = problem.init(key)
        return params, Averaged(inner, jax.tree.map(_nothing, params), jnp.zeros((), jnp.int32))

    def loss(
        params: Params, rest: ModelState, batch: Batch, hyper: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[Array, ModelState]:
        values, inner = problem.loss(params, rest.inner, batch, hyper, key)
        # The step begins with the weights after the one before; the first begins with those of no step.
        total = _added(rest.total, jax.lax.stop_gradient(params), decay)
        total = jax.tree.map(lambda leaf: jnp.where(rest.steps > 0, leaf, jnp.zeros_like(leaf)), total)
        return values, Averaged(inner, total, rest.steps + 1)

    def mean(params: Params, rest: ModelState) -> Params:
        # 1 - decay^t, without cancellation.
        counted = -jnp.expm1(rest.steps * math.log(decay))

        def divided(total: Array, leaf: Array) -> Array:
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                return leaf
            average = total / counted.astype(total.real.dtype)
            return jnp.where(rest.steps > 0, average.astype(leaf.dtype), leaf)

        return jax.tree.map(divided, _added(rest.total, params, decay), params)

    def evaluate(params: Params, rest: ModelState, batch: Batch) -> dict[str, Array]:
        return problem.evaluate(mean(params, rest), rest.inner, batch)

    def of_mean(function: Any) -> Any:
        return function and (lambda params, rest, *args: function(mean(params, rest), rest.inner, *args))

    own = problem.trained_on
    return problem._replace(
        init=init,
        loss=loss,
        evaluate=evaluate,
        model=of_mean(problem.model),
        predict=of_mean(problem.predict),
        trained_on=own and (lambda params, rest, *args: own(params, rest.inner, *args)),
        complete=of_mean(problem.complete or (lambda params, rest: (params, rest))),
        average=decay,
    )


def _nothing(leaf: Array) -> Array:
    """Returns the sum before the first step."""
    wide = jnp.promote_types(leaf.dtype, jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf.dtype
    return jnp.zeros(leaf.shape, wide)


def _added(total: PyTree, params: Params, decay: float) -> PyTree:
    """Returns the sum after one more step: decay times the sum, plus 1 - decay times the weights."""
    return jax.tree.map(lambda t, w: (decay * t + (1 - decay) * w.astype(t.dtype)).astype(t.dtype), total, params)


def require_no_average(problem: Problem, name: str) -> None:
    """Raises ValueError if a problem's weights are averaged already, since a change of them would be averaged, too."""
    if problem.average is not None:
        raise ValueError(f"average the weights last: with_average({name}(problem)), not {name}(with_average(problem))")
