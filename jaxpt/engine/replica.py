"""One replica: its state, its initialisation, its train step and its evaluation. The engine stacks M of them."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxpt.core.ladder import Ladder
from jaxpt.core.types import Hyper, ModelState, Optimizer, Params, Problem, Schedule
from jaxpt.engine.updates import extra_arguments, updated, uphill


class Replicas(NamedTuple):
    """The replicas of a run; every leaf leads with M (or [S, M] for S seeds).

    Attributes:
        params: [M, ...] trained weights.
        model_state: [M, ...] what a model carries besides: batch statistics.
        opt_state: [M, ...] the optimiser's state. Like params and model_state it stays with the replica in a swap.
        key: [M] source of each replica's dropout and noise; steps fold their number in.
        hyper: {name: [M]} the only source of truth for hyperparameters, those of the ladders and fixed ones.
        rung: {ladder: [M]} where each replica stands.
    """

    params: Params
    model_state: ModelState
    opt_state: PyTree
    key: Key[Array, " M"]
    hyper: Hyper
    rung: dict[str, Int[Array, " M"]]


def init_replica(
    problem: Problem,
    optimizer: Optimizer,
    schedule: Schedule | None,
    key: Key[Array, ""],
    hyper: Hyper,
    rung: dict[str, Int[Array, ""]],
) -> Replicas:
    """Returns one replica with fresh weights (no leading axis; the engine vmaps)."""
    key_init, key_own = jax.random.split(key)
    params, model_state = problem.init(key_init)
    first = in_force(schedule, hyper, jnp.zeros((), jnp.int32))
    return Replicas(params, model_state, optimizer(first).init(params), key_own, hyper, rung)


@partial(jax.jit, static_argnames=("problem", "optimizer", "schedule"))
def init_replicas(
    problem: Problem,
    optimizer: Optimizer,
    schedule: Schedule | None,
    fixed: Mapping[str, Any],
    ladders: Mapping[str, Ladder],
    key: Key[Array, "..."],
) -> Replicas:
    """Returns fresh replicas of one seed or of several, replica k on rung k of every ladder.

    They are mapped, not vmapped, which halves the time to compile.

    Args:
        problem: what is trained.
        optimizer: hyperparameters -> optax transformation.
        schedule: (hyperparameters, step) -> the ones in force, or None.
        fixed: hyperparameters that all replicas share.
        ladders: one or more, of M rungs each.
        key: one key, or one for each seed.
    """
    if key.ndim:
        return jax.lax.map(partial(init_replicas, problem, optimizer, schedule, fixed, ladders), key)
    replicas = next(iter(ladders.values())).num_rungs
    hyper = {name: jnp.full(replicas, value, jnp.float32) for name, value in fixed.items()}
    hyper |= {name: value for ladder in ladders.values() for name, value in ladder.values.items()}
    rung = {name: jnp.arange(replicas, dtype=jnp.int32) for name in ladders}
    keys = jax.random.split(key, replicas)
    return jax.lax.map(lambda args: init_replica(problem, optimizer, schedule, *args), (keys, hyper, rung))


def train_step(
    problem: Problem,
    optimizer: Optimizer,
    schedule: Schedule | None,
    replica: Replicas,
    batch: PyTree,
    weight: Bool[Array, " B"] | None,
    step: Int[Array, ""],
) -> tuple[Replicas, Float[Array, ""]]:
    """Returns one replica after one optimiser step, and the step's training loss.

    The optimiser is built here, from traced hyperparameters, so a swap needs no bookkeeping in its state. If there is
    a hyperparameter `batch_size`, only that many of the batch's examples count.

    Args:
        problem: what is trained.
        optimizer: hyperparameters -> optax transformation; see `extra_arguments` for what its update is offered.
        schedule: (hyperparameters, step) -> the ones in force at this step, or None.
        replica: one replica.
        batch: leaves [B, ...], or None for a problem without data.
        weight: which examples of the batch count; None: all.
        step: number of steps before this one.
    """
    key_loss, key_update = jax.random.split(jax.random.fold_in(replica.key, step))
    hyper = in_force(schedule, replica.hyper, step)
    if weight is not None and "batch_size" in hyper:
        weight = weight & (jnp.arange(weight.shape[0]) < hyper["batch_size"])

    def objective(params: Params) -> tuple[Array, ModelState]:
        per_example, model_state = problem.loss(params, replica.model_state, batch, hyper, key_loss)
        _check_per_example("the loss", per_example, 1 if weight is None else weight.shape[0])
        return jnp.mean(per_example, where=weight), model_state

    (loss, model_state), grads = jax.value_and_grad(objective, has_aux=True)(replica.params)
    # JAX returns the derivative by a complex number as the conjugate of the direction of steepest ascent.
    grads = uphill(grads)

    def value(params: Params, key: Any = None) -> Array:  # line searches hand on what they are given, the key too
        del key
        return objective(params)[0]

    offered = extra_arguments(key_update, loss, grads, value)
    updates, opt_state = updated(optimizer(dict(hyper)), grads, replica.opt_state, replica.params, offered)
    params = optax.apply_updates(replica.params, updates)
    return replica._replace(params=params, model_state=model_state, opt_state=opt_state), loss


def _check_per_example(what: str, score: Array, count: int) -> None:
    """A reduced loss would broadcast against the weights and go unnoticed."""
    if jnp.shape(score) != (count,):
        raise ValueError(
            f"{what} must give one number per example, shape ({count},), but it gives {jnp.shape(score)}; leave out "
            "the mean or sum, or reduce all other axes"
        )


def in_force(schedule: Schedule | None, hyper: Hyper, step: Int[Array, ""]) -> Hyper:
    """Returns the hyperparameters that a step uses: the rung's, or what the schedule makes of them."""
    # A copy: a function that changes the dict which it is given must not change the replica's own values.
    return dict(hyper) if schedule is None else dict(schedule(dict(hyper), step))


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
    if examples is None:
        scores = over_replicas(lambda params, state: problem.evaluate(params, state, None), (0, 0))
        return jax.tree.map(lambda s: s.mean(-1), scores(replicas.params, replicas.model_state))
    combined = {name: metric for name, metric in problem.metrics if metric.finish or metric.whole}

    def score(batch: PyTree) -> Any:
        count = jax.tree.leaves(batch)[0].shape[0]

        def one(params: Params, state: ModelState) -> dict[str, Array]:
            scores = problem.evaluate(params, state, batch)
            for name, score in scores.items():
                if name not in combined:
                    _check_per_example(name, score, count)
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


def rescale_momentum(opt_state: PyTree, factor: Float[Array, "..."]) -> PyTree:
    """Multiplies every momentum buffer (`optax.TraceState`) of each replica by its factor.

    With factor = old rate / new rate the velocity, rate times momentum, is the same before and after a swap.

    Args:
        opt_state: leaves [*lead, ...].
        factor: [*lead], one number per replica.
    """

    def scale(node: Any) -> Any:
        if not isinstance(node, optax.TraceState):
            return node
        return optax.TraceState(
            jax.tree.map(
                lambda t: t * factor.astype(t.dtype).reshape(factor.shape + (1,) * (t.ndim - factor.ndim)),
                node.trace,
            )
        )

    return jax.tree.map(scale, opt_state, is_leaf=lambda node: isinstance(node, optax.TraceState))
