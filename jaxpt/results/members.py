"""An ensemble as an object: called on batches, scored on splits, saved and loaded without its engine."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxpt.core import tree
from jaxpt.core.extras import versions
from jaxpt.core.ranges import check_numbers
from jaxpt.core.types import AnyArray, Batch, ModelState, Params, Problem, with_frozen
from jaxpt.devices.execution import Lift
from jaxpt.devices.placement import single
from jaxpt.devices.precision import tracing_with
from jaxpt.engine.engine import Engine
from jaxpt.engine.scoring import mean_in_chunks
from jaxpt.results.ensemble import (
    EnsembleMetric,
    How,
    check_examples,
    check_metrics,
    ensemble_scores,
    is_known,
    predictions_of,
    require_predict,
    weighted_mean,
)
from jaxpt.results.record import alone
from jaxpt.results.summary import plain
from jaxpt.saving.model_files import load_weights, save_model


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """An ensemble of replicas; a call returns the mean of their predictions.

        >>> both = result.ensemble(best=2)
        >>> both(valid).shape, both.weights.tolist()
        ((80, 2), [0.5, 0.5])
        >>> scores = both.evaluate(valid, {"error": lambda p, batch: jaxpt.zero_one_loss(p, batch["y"])})
        >>> 0 <= scores["error"] <= 1 and 0 <= both.disagreement(valid) <= 1
        True
        >>> both.save("both")
        >>> again = jaxpt.load_ensemble("both", problem)  # in another process, too: no engine, no run
        >>> bool((again(valid) == both(valid)).all())
        True

    A replica is left out wherever its probabilities are not finite. Compiled once for each shape of batch.

    Attributes:
        replicas: their slots; coldest first if they were selected by `coldest`, lowest energy first by `best`, largest
            weight first by `weighted_on`.
        seed: the seed whose ladder they belong to; None for a run with one seed.
        params: their weights stacked, leaves [K, ...].
        model_state: their models' other state (batch statistics), stacked likewise.
        weights: their shares in the mean prediction, [K], of sum 1.
        scores: their scores at the end of the run, {"valid": {"energy": [K], metric: [K]}, "test": {...}}; None in
            place of a number that is not finite.
    """

    replicas: tuple[int, ...]
    seed: int | None
    params: PyTree = dataclasses.field(repr=False)
    model_state: PyTree = dataclasses.field(repr=False)
    weights: AnyArray
    scores: dict[str, dict[str, list[float | None]]] = dataclasses.field(repr=False)
    _how: How = dataclasses.field(repr=False)

    def __call__(self, batch: Batch) -> Float[Array, "B *K"]:
        """Returns the mean prediction for each example of a batch; the batch is what the problem's `predict` takes."""
        check_numbers(batch, "batch")
        return _together(self._how, self.params, self.model_state, self.weights, batch)

    def evaluate(self, examples: PyTree, metrics: Mapping[str, EnsembleMetric]) -> dict[str, float]:
        """Returns {metric: its value} for the mean prediction, over all the examples of a split.

        Evaluated at most `evaluation_batch` of the engine at a time. `jaxpt.ensemble` scores several ensembles and
        seeds at the cost of one.

        Args:
            examples: leaves [N, ...].
            metrics: {name: function(predictions [B, ...], batch) -> [B]}, or a `jaxpt.Metric` of such a function.

        Raises:
            ValueError: metrics is empty or not a dict; examples hold no arrays; a metric returns another shape.
        """
        check_metrics(metrics)
        check_examples(self._how.problem, examples)
        how = self._how._replace(metrics=tuple(metrics.items()))
        count = len(self.replicas)
        found = ensemble_scores(
            how,
            (self.params, self.model_state),
            jnp.arange(count),
            jnp.asarray(self.weights)[None],
            examples,
            jnp.array([count]),
        )
        return {name: float(value[0]) for name, value in found.items()}

    def disagreement(self, examples: PyTree) -> float:
        """Returns the share of examples for which two replicas predict different classes, averaged over all pairs.

        0: all replicas predict the same, so the ensemble gains nothing. For `prediction="binary"` the answers are yes
        where the probability is above one half. An example with several labels counts with the share of its labels.
        Replicas whose prediction for an example is not finite do not count for it; NaN if fewer than two are left.

        Args:
            examples: leaves [N, ...]; labels are not used, but may be there.

        Raises:
            ValueError: the problem predicts values; the ensemble has one replica; examples hold no arrays.
        """
        if self._how.problem.prediction == "values":
            raise ValueError(
                'disagreement compares predicted classes, but the problem has prediction="values"; compare the spread '
                "of the values instead"
            )
        if len(self.replicas) < 2:
            raise ValueError(f"disagreement compares two replicas or more, but the ensemble has {len(self.replicas)}")
        tree.leading(examples, "examples")
        check_numbers(examples, "examples")
        return float(_disagreement(self._how, self.params, self.model_state, examples))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the ensemble; `jaxpt.load_ensemble` reads it, without the engine or the run.

        Weights go into the folder PATH by Orbax, and a description (replicas, seed, shares, scores, how predictions are
        computed, package versions) into its model.json. A path NAME.safetensors gives one file. With several processes
        all must call it; one writes.

        Args:
            path: path of the folder, where an earlier model or ensemble is replaced, or of the file.

        Raises:
            ValueError: path is a URL; the folder holds files other than a model.
            ModuleNotFoundError: the path ends in .safetensors, and safetensors is not installed.
        """
        how = self._how
        about = {
            "replicas": list(self.replicas),
            "seed": self.seed,
            "weights": self.weights,
            "scores": self.scores,
            "prediction": how.problem.prediction,
            "execution": {
                "replica_axis": how.lift.strategy,
                "replicas_at_once": how.lift.replicas_at_once,
                "precision": how.precision,
                "evaluation_batch": how.chunk,
            },
        }
        whole = {"ensemble": plain(about), "versions": versions()}
        save_model(path, self.params, self.model_state, whole, how.problem.frozen)


def together(
    engine: Engine,
    replicas: Sequence[int],
    seed: int | None,
    weights: AnyArray,
    scores: Mapping[str, Mapping[str, AnyArray]],
    params: Params,
    model_state: ModelState,
) -> Ensemble:
    """Returns stacked replicas, on one device, as an `Ensemble`.

    Args:
        engine: the engine that trained them.
        replicas: their slots.
        seed: the seed whose ladder they belong to.
        weights: their shares, [K].
        scores: {split: {score: [K]}}.
        params: their weights, leaves [K, ...].
        model_state: their models' other state, likewise.

    Raises:
        ValueError: the problem has no `predict`.
    """
    require_predict(engine.problem)
    how = _alone(
        alone(engine), str(engine.replica_axis), engine.replicas_at_once, engine.precision, engine.evaluation_batch
    )
    return Ensemble(tuple(map(int, replicas)), seed, params, model_state, weights, plain(scores), how)


def load_ensemble(path: str | os.PathLike[str], problem: Problem) -> Ensemble:
    """Returns the ensemble that `Ensemble.save` wrote; no engine and no run is needed.

        problem = jaxpt.nnx_problem(Net, loss, predict=logits)  # the problem of the run
        probabilities = jaxpt.load_ensemble("ensemble", problem)({"x": images})  # [B, K]

    On the same kind of device and with the same packages, the predictions are the same to the bit.

    Args:
        path: path of the folder, or of the file NAME.safetensors.
        problem: the problem of the run, with `predict`; only shapes of its weights are computed.

    Raises:
        ValueError: path is a URL; there is no ensemble, it is incomplete, or it has the format of another release;
            names, shapes or types of its arrays are not those of the problem's weights; the problem has no `predict`,
            or another `prediction`.
        ModuleNotFoundError: the path ends in .safetensors, and safetensors is not installed.
    """
    if not isinstance(problem, Problem):
        raise ValueError(
            f"problem must be the jaxpt.Problem of the run, as nnx_problem returns it, but it is of {type(problem)}"
        )
    require_predict(problem)
    about, params, model_state, frozen = load_weights(path, problem)
    saved = about["ensemble"]
    _check_kind(path, saved, problem)
    return Ensemble(
        tuple(saved["replicas"]),
        saved["seed"],
        params,
        model_state,
        jnp.asarray(np.array(saved["weights"], np.float32)),
        saved["scores"],
        _alone(with_frozen(problem, lambda _: frozen), **saved["execution"]),
    )


def _check_kind(path: Any, saved: Mapping[str, Any], problem: Problem) -> None:
    """Raises ValueError if a saved ensemble predicts another kind than a problem; classes are the default."""
    if "prediction" not in saved:  # written before it was kept
        return
    then, now = saved["prediction"] or "classes", problem.prediction or "classes"
    if then != now:
        raise ValueError(
            f'{path} holds an ensemble with prediction="{then}", but the problem has prediction="{now}"; give the '
            "problem of the run"
        )


def _alone(problem: Problem, replica_axis: str, replicas_at_once: int, precision: str, evaluation_batch: int) -> How:
    """Returns how an ensemble is computed on one device."""
    where = single()
    lift = Lift(replica_axis, where.platform, where.num_devices, replicas_at_once, False)
    return How(problem, (), evaluation_batch, where, lift, precision)


@jax.jit
def _together(
    how: How, params: Params, model_state: ModelState, weights: Float[Array, " M"], batch: Batch
) -> Float[Array, "B *K"]:
    with tracing_with(how.precision):
        return weighted_mean(predictions_of(how, params, model_state, batch), weights)


@jax.jit
def _disagreement(how: How, params: Params, model_state: ModelState, examples: PyTree) -> Float[Array, ""]:
    def score(batch: PyTree) -> dict[str, Array]:
        each = predictions_of(how, params, model_state, batch)
        binary = how.problem.prediction == "binary"
        answers = (each > 0.5).astype(jnp.int32) if binary else jnp.argmax(each, -1)
        known = is_known(each).reshape(each.shape[:2] + (1,) * (answers.ndim - 2))
        # The replicas that give each answer; those of n replicas that agree form votes * (votes - 1) ordered pairs.
        votes = jnp.sum(jax.nn.one_hot(answers, 2 if binary else each.shape[-1]) * known[..., None], 0)
        total = votes.sum(-1)
        differs = 1 - jnp.sum(votes * (votes - 1), -1) / (total * (total - 1))
        return {"differs": differs.mean(tuple(range(1, differs.ndim)))}

    with tracing_with(how.precision):
        return mean_in_chunks(score, examples, how.chunk)[0]["differs"]
