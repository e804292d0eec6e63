"""Scores of ensembles: the mean of the predictions of all replicas, of the coldest few, or with weights."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxpt.core import tree
from jaxpt.core.ladder import require_beta
from jaxpt.core.ranges import check_numbers
from jaxpt.core.state import RunState
from jaxpt.core.types import AnyArray, Batch, ModelState, Params, Problem
from jaxpt.devices.execution import Lift
from jaxpt.devices.placement import AXIS, EVERYWHERE, SEED, Placement
from jaxpt.devices.precision import tracing_with
from jaxpt.engine.engine import Engine
from jaxpt.engine.scoring import combine, mean_in_chunks
from jaxpt.models.scores import Metric, require_kind

EnsembleMetric = Callable[[Float[Array, "B *K"], Batch], Array]
"""(mean prediction, batch) -> [B], one number per example."""


def ensemble(
    engine: Engine,
    state: RunState,
    examples: PyTree,
    metrics: Mapping[str, EnsembleMetric],
    *,
    coldest: int | Sequence[int] | None = None,
    ladder: str | None = None,
    weights: AnyArray | Sequence[Any] | None = None,
) -> dict[str, Float[Array, "..."]]:
    """Returns {metric: []} for the mean prediction of several replicas, each averaged over all the examples.

        >>> mixed = jaxpt.ensemble(result.engine, result.state, valid, {
        ...     "error": lambda p, batch: jaxpt.zero_one_loss(p, batch["y"]),
        ...     "nll": lambda p, batch: jaxpt.negative_log_likelihood(p, batch["y"]),
        ... }, coldest=3)
        >>> {name: value.shape for name, value in mixed.items()}
        {'error': (), 'nll': ()}

    Evaluated on the device, at most `engine.evaluation_batch` examples at a time. A replica is left out wherever its
    probabilities are not finite; if none is left, the metrics are computed from NaN. Later calls with the same
    `metrics` object, or the same functions, compile nothing, whatever `coldest` and `weights` are.

    Args:
        engine: its problem needs `predict`.
        state: the state that holds the replicas; with S seeds there is one ensemble per seed, and metrics are [S] (or
            [K, S]).
        examples: leaves [N, ...].
        metrics: {name: function(predictions [B, ...], batch) -> [B]}. Predictions are class probabilities or values,
            depending on the problem's `prediction`. Or a `jaxpt.Metric` of such a function, for a metric of the whole
            split.
        coldest: use only the replicas that are now on this many coldest rungs; by default all. A sequence of K such
            numbers gives K ensembles, metrics [K], at the cost of one.
        ladder: the ladder whose rungs are meant; needed with `coldest` if there are several ladders.
        weights: instead of `coldest`, each replica's share in the mean, [M] or with seeds [S, M]; for example those of
            `jaxpt.ensemble_weights`. Not negative; 0 leaves a replica out. For each example they are divided by the sum
            over the replicas whose predictions are finite. [K, M] or [K, S, M] gives K ensembles, as above.

    Raises:
        ValueError: the problem has no `predict`; `predict` or a metric returns another shape; coldest is not 1 .. M;
            ladder is missing or not one of the engine's; weights have another shape, are negative or not finite, or
            are all 0; both coldest and weights are given.
    """
    require_predict(engine.problem)
    check_metrics(metrics)
    check_examples(engine.problem, examples)
    counts = np.asarray(engine.num_replicas if coldest is None else coldest)
    name = ladder_of(engine, ladder, coldest)
    lead, several = state.key.shape, counts.ndim > 0
    if weights is None:
        shares: Any = np.ones((*lead, counts.size, engine.num_replicas), np.float32)
    else:
        if coldest is not None:
            raise ValueError(f"give coldest={coldest!r} or weights, not both; the weight 0 leaves a replica out")
        shares = _checked_weights(engine.placed, weights, (*lead, engine.num_replicas))
        several = np.ndim(weights) > len(lead) + 1
        counts = np.full(shares.shape[-2], engine.num_replicas)
    # Not the engine: the program is the same for every rule.
    how = How(
        engine.problem,
        tuple(metrics.items()),
        engine.evaluation_batch,
        engine.placed,
        engine.lift(state.key),
        engine.precision,
    )
    found = ensemble_scores(
        how,
        (state.replicas.params, state.replicas.model_state),
        state.replicas.rung[name],
        engine.placed.put(shares, P(*(SEED,) * len(lead))),
        examples,
        jnp.asarray(counts.ravel(), jnp.int32),
    )
    return found if several else jax.tree.map(lambda metric: metric[0], found)


def _checked_weights(placed: Placement, weights: Any, shape: tuple[int, ...]) -> Float[np.ndarray, "*S K M"]:
    """Returns weights of K ensembles, the largest of each 1; `shape` is that of one ensemble, (M,) or (S, M)."""
    try:
        given = np.asarray(placed.to_host(weights), np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"weights must be numbers, one per replica, shape {shape}, but they are {weights!r}"
        ) from error
    if given.shape not in (shape, (*given.shape[:1], *shape)) or not given.size:
        raise ValueError(
            f"weights must have shape {shape}, one number per replica, or ({', '.join(map(str, ('K', *shape)))}) for K "
            f"ensembles, but their shape is {given.shape}"
        )
    if not (np.isfinite(given).all() and (given >= 0).all() and given.any(-1).all()):
        raise ValueError(
            f"weights must be 0 or positive and finite, with one that is positive in each ensemble, but they are "
            f"{given.tolist()}; 0 leaves a replica out"
        )
    rows = np.moveaxis(given.reshape(-1, *shape), 0, -2)
    return (rows / rows.max(-1, keepdims=True)).astype(np.float32)


def ladder_of(engine: Engine, ladder: str | None, coldest: int | Sequence[int] | None) -> str:
    """Returns the name of the ladder that `coldest` refers to; the first ladder if `coldest` is None.

    Raises:
        ValueError: coldest is not 1 .. M; ladder is missing or not one of the engine's; it has no temperatures.
    """
    replicas, ladders = engine.num_replicas, list(engine.ladders)
    counts = np.asarray(replicas if coldest is None else coldest)
    if counts.size == 0 or counts.dtype.kind not in "iu" or counts.min() < 1 or counts.max() > replicas:
        raise ValueError(f"coldest must be 1 .. {replicas}, the number of replicas, but it is {coldest}")
    if ladder is not None and ladder not in ladders:
        raise ValueError(f"ladder={ladder!r} is none of the engine's; there are {', '.join(ladders)}")
    if ladder is None and coldest is not None and len(ladders) > 1:
        raise ValueError(f"coldest on which ladder? give ladder=..., one of {', '.join(ladders)}")
    if coldest is not None:
        require_beta(engine.ladders[ladder or ladders[0]])
    return ladder or ladders[0]


def require_predict(problem: Problem) -> None:
    """Raises ValueError if a problem has no predictions."""
    if problem.predict is None:
        raise ValueError(
            "the problem has no predictions; give nnx_problem or linen_problem predict=..., a function "
            "(model, batch) -> logits [B, K], or other numbers and prediction=..."
        )


def check_metrics(metrics: Any) -> None:
    """Raises ValueError unless metrics are {name: function}, one at least."""
    if not isinstance(metrics, Mapping):
        raise ValueError(f"metrics must be {{name: function(probabilities, batch)}}, but it is {metrics!r}")
    if not metrics:
        raise ValueError(
            'metrics is empty; give one at least, e.g. {"error": lambda p, batch: zero_one_loss(p, batch["y"])}'
        )


def check_examples(problem: Problem, examples: PyTree) -> None:
    """Raises ValueError unless examples are arrays [N, ...] that JAX can represent, with labels if needed."""
    tree.leading(examples, "examples")
    check_numbers(examples, "examples")
    require_kind(problem, examples)


class How(NamedTuple):
    """What determines a compiled program; a pytree whose leaves are the problem's given weights.

    Attributes:
        problem: the problem.
        metrics: (name, metric) of an ensemble.
        chunk: most examples at a time.
        placed: where the replicas are.
        lift: how functions of one replica are executed.
        precision: precision of float32 products.
    """

    problem: Problem
    metrics: tuple[tuple[str, EnsembleMetric], ...]
    chunk: int
    placed: Placement
    lift: Lift
    precision: str


jax.tree_util.register_pytree_node(How, lambda how: (how[:1], how[1:]), lambda static, parts: How(parts[0], *static))


def predictions_of(how: How, params: Params, model_state: ModelState, batch: PyTree) -> Float[Array, "m B *K"]:
    """Returns the predictions of each replica of one device; checks their shape."""
    predict: Any = how.problem.predict
    each = how.lift.replicas(lambda params, rest: predict(params, rest, batch))(params, model_state)
    count = tree.leading(batch, "batch")
    if each.ndim < 2 or each.shape[1] != count:
        raise ValueError(
            f"predict must return a row for each example, shape ({count}, ...), but it returns {each.shape[1:]}"
        )
    return each


def is_known(each: Float[Array, "M B *K"]) -> Bool[Array, "M B"]:
    """Returns whether a replica's prediction for an example is finite."""
    return jnp.isfinite(each).all(tuple(range(2, each.ndim)))


def weighted_mean(each: Float[Array, "M B *K"], weights: Float[Array, " M"]) -> Float[Array, "B *K"]:
    """Returns the weighted mean over the replicas whose predictions are finite; NaN where there are none."""
    shares = jnp.where(is_known(each), weights[:, None], 0)
    shares = (shares / shares.sum(0)).reshape(shares.shape + (1,) * (each.ndim - 2))
    # `where` and not a weight of 0, since 0 times infinity or NaN is NaN.
    return jnp.sum(jnp.where(shares == 0, 0, shares * each), 0)


@jax.jit
def ensemble_scores(
    how: How,
    replicas: tuple[Params, ModelState],
    rung: Int[Array, "*S M"],
    weights: Float[Array, "*S K M"],
    examples: PyTree,
    coldest: Int[Array, " K"],
) -> dict[str, Array]:
    """Returns {metric: [K, *S]} of K ensembles of each seed.

    Args:
        how: how it is computed.
        replicas: params and model_state, stacked.
        rung: the replicas' rungs.
        weights: their shares in each ensemble, as `weighted_mean` takes them.
        examples: leaves [N, ...].
        coldest: number of coldest rungs that belong to each ensemble.
    """

    def all_seeds(
        how: How, replicas: Any, rung: Array, weights: Array, examples: PyTree, coldest: Array
    ) -> dict[str, Array]:
        one = partial(_of_one_seed, how, examples=examples, coldest=coldest)
        if not how.lift.has_seeds:
            return one(replicas, rung, weights)
        found = how.lift.replicas(one, (0, 0, 0))(replicas, rung, weights)
        return jax.tree.map(lambda metric: jnp.moveaxis(metric, 0, 1), found)

    lead = (SEED,) * how.lift.has_seeds
    cut = P(*lead, AXIS)
    with tracing_with(how.precision):
        axes = EVERYWHERE, cut, cut, P(*lead), EVERYWHERE, EVERYWHERE
        run = how.placed.over_shards(all_seeds, axes, P(None, *lead))
        return how.placed.readable(run(how, replicas, rung, weights, examples, coldest))


def _of_one_seed(
    how: How,
    replicas: tuple[Params, ModelState],
    rung: Int[Array, " m"],
    weights: Float[Array, "K M"],
    *,
    examples: PyTree,
    coldest: Int[Array, " K"],
) -> dict[str, Float[Array, " K"]]:
    """Returns the metrics of the ensembles of one seed; `replicas` and `rung` are those of one device."""
    shares = jnp.where(how.placed.all_gather(rung) < coldest[:, None], weights, 0)
    metrics = ((name, metric) for name, metric in how.metrics if isinstance(metric, Metric))
    combined = {name: metric for name, metric in metrics if metric.finish or metric.whole}

    def score(batch: PyTree) -> dict[str, Any]:
        count = tree.leading(batch, "examples")
        each = how.placed.all_gather(predictions_of(how, *replicas, batch))

        def mixed(shares: Float[Array, " M"]) -> dict[str, Any]:
            mean = weighted_mean(each, shares)
            return {name: metric(mean, batch) for name, metric in how.metrics}

        found = jax.vmap(mixed)(shares)
        for name, value in found.items():
            if name in combined:
                found[name] = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, -1), value)
            elif jnp.shape(value)[1:] != (count,):
                raise ValueError(
                    f"metric {name!r} must give one number per example, shape ({count},), but it gives shape "
                    f"{jnp.shape(value)[1:]}; leave out the mean"
                )
        return found

    whole = {name for name in combined if combined[name].whole}
    return combine(*mean_in_chunks(score, examples, how.chunk, whole), combined)
