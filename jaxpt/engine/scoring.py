"""Energies and metrics of stacked replicas: means over examples that are taken in slices."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxpt.core.state import Replicas
from jaxpt.core.types import ModelState, Params, Problem


def check_per_example(what: str, score: Array, count: int) -> None:
    """A reduced loss would broadcast against the weights and go unnoticed."""
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

    They are means over all examples, or what a `jaxpt.Metric` makes of them.

    Examples are taken at most `chunk` at a time, in slices of one size where they lie, so memory is bounded and nothing
    is copied or padded: the last slice overlaps the one before, and what it repeats does not count.

    Args:
        problem: what is evaluated.
        over_replicas: lifts a function of (params, model_state) to all replicas, `jax.vmap` or what does the same.
        replicas: the stacked replicas.
        examples: leaves [N, ...], the same for all replicas; None for a problem without data.
        chunk: examples at a time, at most.
    """
    combined = {name: metric for name, metric in problem.metrics if metric.finish or metric.whole}
    if examples is None:
        lifted = over_replicas(lambda params, state: problem.evaluate(params, state, None), (0, 0))
        scores = lifted(replicas.params, replicas.model_state)  # [M, 1], or a pytree of [M, 1, ...]
        made = {name: _combined(combined[name], scores.pop(name)) for name in combined}
        return {**jax.tree.map(lambda s: s.mean(-1), scores), **made}

    def score(batch: PyTree) -> Any:
        count = jax.tree.leaves(batch)[0].shape[0]

        def one(params: Params, state: ModelState) -> dict[str, Array]:
            scores = problem.evaluate(params, state, batch)
            for name, score in scores.items():
                if name not in combined:
                    check_per_example(name, score, count)
            return scores

        # Examples last, as `mean_in_chunks` wants them.
        each = over_replicas(one, (0, 0))(replicas.params, replicas.model_state)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, -1), each) if combined else each

    whole = {name for name in combined if combined[name].whole}
    means, outputs = mean_in_chunks(score, examples, chunk, whole)
    for name, metric in combined.items():
        if name in whole:
            rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 1), outputs[name])
            means[name] = jax.vmap(metric.whole)(rows)
        elif name in means:
            means[name] = jax.vmap(metric.finish)(means[name])
        if name in means and means[name].ndim != 1:
            raise ValueError(f"the metric {name!r} must come to one number, but it has shape {means[name].shape[1:]}")
    return means


def _combined(metric: Any, outputs: PyTree) -> Float[Array, " M"]:
    """Returns what a metric makes of all outputs, a pytree of [M, N, ...]."""
    if metric.whole:
        return jax.vmap(metric.whole)(outputs)
    return jax.vmap(metric.finish)(jax.tree.map(lambda leaf: leaf.mean(1), outputs))


def paired_variance(
    problem: Problem,
    over_replicas: Callable[[Callable[..., Any], tuple[int, ...]], Callable[..., Any]],
    whole: Callable[[Array], Array],
    replicas: Replicas,
    examples: PyTree,
    chunk: int,
    population: int,
) -> Float[Array, "M M"]:
    """Returns the variance of every difference of two replicas' mean energies due to the choice of the examples.

    All replicas are scored on the same n examples, so the variance is that of the paired per-example differences,
    divided by n: correlation between replicas takes away all but a part of what independent batches would give. The
    examples are n of N without replacement, which leaves (1 - n / N) of it.

    Args:
        problem: what is evaluated.
        over_replicas: as in `mean_scores`.
        whole: shows what one device has of [m, n] to all of them, [M, n].
        replicas: the stacked replicas, of one device.
        examples: leaves [n, ...], n >= 2, the same for all replicas.
        chunk: examples at a time, at most.
        population: N, how many examples they were drawn from.
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
    """Returns means over all examples of `score(batch)` -> {name: [..., B]}, and what is kept whole, {name: [..., N]}.

    Args:
        score: of at most `chunk` examples.
        examples: leaves [N, ...].
        chunk: see `mean_scores`.
        kept: names whose outputs are not averaged but put together, pytrees of [..., N].
    """
    count = jax.tree.leaves(examples)[0].shape[0]
    chunk = -(-count // -(-count // chunk))  # as few slices, as even as can be

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
