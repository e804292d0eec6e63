"""From a few functions of a model library to a `Problem`: the part that all libraries share."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float, Key

from jaxpt.core.types import Batch, ModelState, Params, Problem
from jaxpt.models.scores import Prediction, Score, declared_metrics, predictions, scores, takes_hyper


def assemble(
    init: Callable[[Key[Array, ""]], tuple[Params, ModelState]],
    bind: Callable[[Params, ModelState, Mapping[str, Array], Key[Array, ""]], Any],
    carried: Callable[[Any, ModelState], ModelState],
    rebuild: Callable[[Params, ModelState], Any],
    hyperparameters: frozenset[str],
    *,
    loss: Callable[..., Float[Array, " B"]],
    energy: Score | None,
    metrics: Mapping[str, Score] | None,
    predict: Callable[[Any, Batch], Float[Array, "B *K"]] | None,
    prediction: Prediction | None,
    complete: Callable[[Params, ModelState], tuple[Params, ModelState]] | None = None,
) -> Problem:
    """Returns the problem of a model with a loss.

    Args:
        init: key -> (params, model_state), fresh weights.
        bind: (params, model_state, hyper, key) -> the user's model in training mode.
        carried: (that model after the loss, model_state before) -> the new model_state.
        rebuild: (params, model_state) -> the user's model in evaluation mode.
        hyperparameters: names that the model itself reads.
        loss: as in `nnx_problem`, like all that follow.
        energy: the energy for exchanges.
        metrics: further functions.
        predict: (model, batch) -> logits or values.
        prediction: kind of the predictions.
        complete: (params, model_state) -> those of the whole model.

    Raises:
        ValueError: see `scores` and `predictions`.
    """
    scored = scores(loss, energy, metrics)
    reads_hyper = takes_hyper(loss)

    def losses(model: Any, batch: Batch, hyper: Mapping[str, Array]) -> Float[Array, " B"]:
        return loss(model, batch, hyper) if reads_hyper else loss(model, batch)

    def training_loss(
        params: Params, rest: ModelState, batch: Batch, hyper: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[Array, ModelState]:
        model = bind(params, rest, hyper, key)
        value = losses(model, batch, hyper)
        return value, carried(model, rest)

    def evaluate(params: Params, rest: ModelState, batch: Batch) -> dict[str, Array]:
        model = rebuild(params, rest)
        return {name: score(model, batch) for name, score in scored.items()}

    def trained_on(params: Params, rest: ModelState, batch: Batch, hyper: Mapping[str, Array]) -> Array:
        return losses(rebuild(params, rest), batch, hyper)

    return Problem(
        init,
        training_loss,
        evaluate,
        hyperparameters,
        reads_hyper,
        rebuild,
        predictions(rebuild, predict, prediction),
        prediction,
        declared_metrics(metrics),
        None if energy is None else trained_on,
        complete,
    )
