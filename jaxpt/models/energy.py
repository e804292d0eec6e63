"""Builds a `Problem` from a bare energy function."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxpt.core.arguments import check_takes
from jaxpt.core.types import Batch, ModelState, Params, Problem
from jaxpt.models.scores import Metric, declared_metrics, required, scores


def energy_problem(
    energy: Callable[..., Array],
    init: Callable[[Key[Array, ""]], Params],
    *,
    metrics: Mapping[str, Callable[..., Array]] | None = None,
) -> Problem:
    """Returns the problem of a bare energy over a pytree of parameters, with or without data.

    >>> wells = jaxpt.energy_problem(lambda w: 20 * (w**2 - 1) ** 2, jax.random.normal, metrics={"w": lambda w: w})
    >>> step = lambda h: jaxpt.langevin(1e-3, h["temperature"])
    >>> ladder = jaxpt.Ladder(temperature=[1.0, 3.0, 10.0])
    >>> found = jaxpt.fit(jaxpt.Engine(wells, step, ladder, jaxpt.Tempering(C=1.0), every=20), steps=400)
    >>> found.trace.valid["w"].shape  # [periods, replicas]
    (20, 3)

    Args:
        energy: `energy(params)` -> [] for a problem without data, or `energy(params, batch)` -> [B].
        init: key -> params.
        metrics: further functions of the same form to record.

    Raises:
        ValueError: a metric is called "energy".
    """
    check_takes("init", init, "key")
    scored = scores(energy, None, metrics)
    needs_batch = required(energy) > 1

    def score(function: Callable[..., Array], params: Params, batch: Batch) -> Array:
        value = function(params, batch) if needs_batch else function(params)
        if not needs_batch and isinstance(function, Metric) and (function.finish or function.whole):
            return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], value)
        if not needs_batch and jnp.size(value) != 1:
            raise ValueError(f"a function of the parameters alone must give one number, not shape {jnp.shape(value)}")
        return value if needs_batch else jnp.reshape(value, (1,))

    def training_loss(
        params: Params, rest: ModelState, batch: Batch, hyper: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[Array, ModelState]:
        return score(energy, params, batch), rest

    def evaluate(params: Params, rest: ModelState, batch: Batch) -> dict[str, Array]:
        return {name: score(function, params, batch) for name, function in scored.items()}

    return Problem(
        lambda key: (init(key), ()),
        training_loss,
        evaluate,
        model=lambda params, rest: params,
        metrics=declared_metrics(metrics),
    )
