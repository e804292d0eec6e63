"""Energies and metrics of stacked replicas, averaged over examples, one slice of examples at a time."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxpt.core.state import Replicas
from jaxpt.core.types import ModelState, Params, Problem


def check_per_example(what: str, score: Array, count: int) -> None:
    """Raises ValueError unless a score is one number per example; a reduced loss would silently broadcast."""
    if jnp.shape(score) != (count,):
        raise ValueError(
            f"{what} must give one number per example, shape ({count},), but it gives {jnp.shape(score)}; leave out "
            "the mean or sum, or reduce all other axes"
        )


def mean_scores(
    problem: Problem,
    over_replicas: Callable[[Callable[..., Any], tuple[int, ...]], Callable[..., Any]],
    replicas: Replicas,
    examples: PyTree,
    chunk: int,
) -> dict[str, Float[Array, "..."]]:
    """Returns the scores in evaluation mode, {"energy": [M], metric: [M], ...}.

    They are means over all examples, or the results of a `jaxpt.Metric`.

    Examples are read in place, in slices of one size, at most `chunk` at a time. So memory is bounded and nothing is
    copied or padded. The last slice overlaps the one before; repeated examples do not count.

    Args:
        problem: the problem.
        over_replicas: lifts a function of (params, model_state) to all replicas: `jax.vmap` or an equivalent.
        replicas: the stacked replicas.
        examples: leaves [N, ...], the same for all replicas; None for a problem without data.
        chunk: most examples at a time.
    """
    combined = {name: metric for name, metric in problem.metrics if metric.finish or metric.whole}
    if examples is None:
        lifted = over_replicas(lambda params, state: problem.evaluate(params, state, None), (0, 0))
        scores = lifted(replicas.params, replicas.model_state)  # [M, 1], or a pytree of [M, 1, ...]
        scores = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, -1), scores)
        outputs = {name: scores.pop(name) for name, metric in combined.items() if metric.whole}
        return combine(jax.tree.map(lambda leaf: leaf.mean(-1), scores), outputs, combined)

    def score(batch: PyTree) -> Any:
        count = jax.tree.leaves(batch)[0].shape[0]

        def one(params: Params, state: ModelState) -> dict[str, Array]:
            scores = problem.evaluate(params, state, batch)
            for name, score in scores.items():
                if name not in combined:
                    check_per_example(name, score, count)
            return scores

        # `mean_in_chunks` takes the examples as the last axis.
        each = over_replicas(one, (0, 0))(replicas.params, replicas.model_state)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, -1), each) if combined else each

    whole = {name for name in combined if combined[name].whole}
    means, outputs = mean_in_chunks(score, examples, chunk, whole)
    return combine(means, outputs, combined)


def combine(
    means: Mapping[str, Any], outputs: Mapping[str, PyTree], metrics: Mapping[str, Any]
) -> dict[str, Float[Array, " M"]]:
    """Returns scores with those that a `jaxpt.Metric` makes of means or of all outputs.

    Args:
        means: {name: [M]}, or a pytree of [M, ...] for a metric with `finish`.
        outputs: {name: pytree of [M, ..., N]} for metrics with `whole`.
        metrics: {name: metric} with `finish` or `whole`.
    """
    made = dict(means)
    for name, metric in metrics.items():
        if metric.whole:
            rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 1), outputs[name])
            made[name] = jax.vmap(metric.whole)(rows)
        else:
            made[name] = jax.vmap(metric.finish)(made[name])
        if made[name].ndim != 1:
            raise ValueError(f"the metric {name!r} must come to one number, but it has shape {made[name].shape[1:]}")
    return made


def paired_variance(
    problem: Problem,
    over_replicas: Callable[[Callable[..., Any], tuple[int, ...]], Callable[..., Any]],
    whole: Callable[[Array], Array],
    replicas: Replicas,
    examples: PyTree,
    chunk: int,
    population: int,
) -> Float[Array, "M M"]:
    """Returns the sampling variance of each difference of two replicas' mean energies: [M, M].

    All replicas are scored on the same n examples, so the variance is that of the paired per-example differences,
    divided by n. As replicas are correlated, it is only a part of what independent batches would give. The n examples
    are drawn from N without replacement, which multiplies the variance by (1 - n / N).

    Args:
        problem: the problem.
        over_replicas: as in `mean_scores`.
        whole: gathers the rows [m, n] of all devices into [M, n].
        replicas: the stacked replicas of one device.
        examples: leaves [n, ...], n >= 2, the same for all replicas.
        chunk: most examples at a time.
        population: N, the number of examples that they were drawn from.
    """

    def pairs(batch: PyTree) -> dict[str, Array]:
        energy = over_replicas(lambda params, state: problem.evaluate(params, state, batch)["energy"], (0, 0))
        values = whole(energy(replicas.params, replicas.model_state))
        difference = values[:, None] - values[None]
        return {"difference": difference, "square": difference**2}

    count = jax.tree.leaves(examples)[0].shape[0]
    mean, _ = mean_in_chunks(pairs, examples, chunk)
    spread = jnp.maximum(mean["square"] - mean["difference"] ** 2, 0.0)
    return spread / (count - 1) * (1 - count / population)


def mean_in_chunks(
    score: Callable[[PyTree], dict[str, Any]], examples: PyTree, chunk: int, kept: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns means of `score(batch)` -> {name: [..., B]} over all examples, and outputs kept whole, {name: [..., N]}.

    Args:
        score: function of at most `chunk` examples.
        examples: leaves [N, ...].
        chunk: see `mean_scores`.
        kept: names whose outputs are concatenated, not averaged: pytrees of [..., N].
    """
    count = jax.tree.leaves(examples)[0].shape[0]
    if not count:
        raise ValueError("there are no examples to average over; give one or more")
    chunk = -(-count // -(-count // chunk))  # the fewest slices, as equal as possible

    def add(start: Int[Array, ""]) -> tuple[dict[str, Any], dict[str, Any]]:
        begin = jnp.minimum(start, count - chunk)
        batch = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, begin, chunk), examples)
        fresh = begin + jnp.arange(chunk) >= start
        found = score(batch)
        own = {name: found.pop(name) for name in list(found) if name in kept}
        return (
            jax.tree.map(lambda s: jnp.sum(s, -1, where=fresh, dtype=jnp.result_type(s, jnp.float32)), found),
            own,
        )

    starts = jnp.arange(0, count, chunk)
    parts, slices = jax.lax.map(add, starts)
    place = jnp.minimum(starts, count - chunk)[:, None] + jnp.arange(chunk)

    def joined(leaf: Array) -> Array:
        rows = jnp.moveaxis(leaf, 0, -2)  # [..., slices, chunk]
        whole = jnp.zeros((*rows.shape[:-2], count), rows.dtype)
        return whole.at[..., place.ravel()].set(rows.reshape(*rows.shape[:-2], -1))

    return jax.tree.map(lambda part: part.sum(0) / count, parts), jax.tree.map(joined, slices)
