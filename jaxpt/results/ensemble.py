"""The ensemble of replicas: the mean of the predictions of all replicas, or of the coldest few."""

import dataclasses
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
from jaxpt.core.state import Replicas, RunState
from jaxpt.core.types import Batch, Problem
from jaxpt.devices.execution import Lift
from jaxpt.devices.placement import AXIS, EVERYWHERE, SEED, Placement, single
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
    `metrics` object, or the same functions, compile nothing, whatever `coldest` is.

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

    Raises:
        ValueError: the problem has no `predict`; `predict` or a metric returns another shape; coldest is not 1 .. M;
            ladder is missing or not one of the engine's.
    """
    _require_predict(engine)
    if not isinstance(metrics, Mapping):
        raise ValueError(f"metrics must be {{name: function(probabilities, batch)}}, but it is {metrics!r}")
    if not metrics:
        raise ValueError(
            'metrics is empty; give one at least, e.g. {"error": lambda p, batch: zero_one_loss(p, batch["y"])}'
        )
    tree.leading(examples, "examples")
    check_numbers(examples, "examples")
    require_kind(engine.problem, examples)
    counts = np.asarray(engine.num_replicas if coldest is None else coldest)
    name = ladder_of(engine, ladder, coldest)
    # Not the engine: the program is the same for every rule.
    how = _How(
        engine.problem,
        tuple(metrics.items()),
        engine.evaluation_batch,
        engine.placed,
        engine.lift(state.key),
        engine.precision,
    )
    rung = state.replicas.rung[name]
    found = _ensemble(how, state.replicas, rung, examples, jnp.asarray(counts.ravel(), jnp.int32))
    return found if counts.ndim else jax.tree.map(lambda metric: metric[0], found)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """An ensemble of replicas; a call returns the mean of their predictions.

    A replica is left out wherever its probabilities are not finite. Compiled once for each shape of batch.

    Attributes:
        replicas: their slots, coldest first if they were selected by `coldest`.
        seed: the seed whose ladder they belong to; None for a run with one seed.
        params: their weights stacked, leaves [K, ...].
        model_state: their models' other state (batch statistics), stacked likewise.
    """

    replicas: tuple[int, ...]
    seed: int | None
    params: PyTree = dataclasses.field(repr=False)
    model_state: PyTree = dataclasses.field(repr=False)
    _how: "_How" = dataclasses.field(repr=False)

    def __call__(self, batch: Batch) -> Float[Array, "B *K"]:
        """Returns the mean prediction for each example of a batch; the batch is what the problem's `predict` takes."""
        check_numbers(batch, "batch")
        return _together(self._how, self.params, self.model_state, batch)


def together(
    engine: Engine, replicas: Sequence[int], seed: int | None, params: PyTree, model_state: PyTree
) -> Ensemble:
    """Returns stacked replicas, on one device, as an `Ensemble`.

    Raises:
        ValueError: the problem has no `predict`.
    """
    _require_predict(engine)
    where = single()
    lift = Lift(engine.replica_axis, where.platform, where.num_devices, engine.replicas_at_once, False)
    how = _How(engine.problem, (), 0, where, lift, engine.precision)
    return Ensemble(tuple(replicas), seed, params, model_state, how)


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


def _require_predict(engine: Engine) -> None:
    if engine.problem.predict is None:
        raise ValueError(
            "the problem has no predictions; give nnx_problem or linen_problem predict=..., a function "
            "(model, batch) -> logits [B, K], or other numbers and prediction=..."
        )


class _How(NamedTuple):
    """The static arguments that determine a compiled program."""

    problem: Problem
    metrics: tuple[tuple[str, EnsembleMetric], ...]
    chunk: int
    placed: Placement
    lift: Lift
    precision: str


def _mean(each: Float[Array, "M B *K"], chosen: Bool[Array, " M"]) -> Float[Array, "B *K"]:
    """Returns the mean over the chosen replicas, without those that are not finite."""
    # `where` and not a weight of 0, since 0 times infinity or NaN is NaN.
    known = chosen[:, None] & jnp.isfinite(each).all(tuple(range(2, each.ndim)))
    return jnp.mean(each, 0, where=known.reshape(known.shape + (1,) * (each.ndim - 2)))


def _check_count(each: Array, count: int) -> None:
    if each.ndim < 2 or each.shape[1] != count:
        raise ValueError(
            f"predict must return a row for each example, shape ({count}, ...), but it returns {each.shape[1:]}"
        )


@partial(jax.jit, static_argnums=0)
def _together(how: _How, params: PyTree, model_state: PyTree, batch: Batch) -> Float[Array, "B *K"]:
    predict: Any = how.problem.predict
    with tracing_with(how.precision):
        each = how.lift.replicas(lambda params, rest: predict(params, rest, batch))(params, model_state)
        _check_count(each, tree.leading(batch, "batch"))
        return _mean(each, jnp.ones(len(each), bool))


@partial(jax.jit, static_argnums=0)
def _ensemble(
    how: _How, replicas: Replicas, rung: Int[Array, "*S M"], examples: PyTree, coldest: Int[Array, " K"]
) -> dict[str, Array]:
    def all_seeds(replicas: Replicas, rung: Array, examples: PyTree, coldest: Array) -> dict[str, Array]:
        one = partial(_of_one_seed, how, examples=examples, coldest=coldest)
        if not how.lift.has_seeds:
            return one(replicas, rung)
        return jax.tree.map(lambda metric: jnp.moveaxis(metric, 0, 1), how.lift.replicas(one)(replicas, rung))

    lead = (SEED,) * how.lift.has_seeds
    cut = P(*lead, AXIS)
    with tracing_with(how.precision):
        run = how.placed.over_shards(all_seeds, (cut, cut, EVERYWHERE, EVERYWHERE), P(None, *lead))
        return how.placed.readable(run(replicas, rung, examples, coldest))


def _of_one_seed(
    how: _How, replicas: Replicas, rung: Int[Array, " m"], *, examples: PyTree, coldest: Int[Array, " K"]
) -> dict[str, Float[Array, " K"]]:
    """Returns the metrics of the ensembles of one seed's replicas; `replicas` holds those of one device."""
    predict: Any = how.problem.predict
    rung = how.placed.all_gather(rung)
    metrics = ((name, metric) for name, metric in how.metrics if isinstance(metric, Metric))
    combined = {name: metric for name, metric in metrics if metric.finish or metric.whole}

    def score(batch: PyTree) -> dict[str, Any]:
        count = tree.leading(batch, "examples")
        each = how.lift.replicas(lambda params, rest: predict(params, rest, batch))(
            replicas.params, replicas.model_state
        )
        each = how.placed.all_gather(each)
        _check_count(each, count)

        def mixed(coldest: Int[Array, ""]) -> dict[str, Any]:
            mean = _mean(each, rung < coldest)
            return {name: metric(mean, batch) for name, metric in how.metrics}

        found = jax.vmap(mixed)(coldest)
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
