"""Scores of a problem: its energy, metrics and predictions; shared by all model libraries."""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpt.core.types import Batch, ModelState, Params, Problem

Score: TypeAlias = Callable[[Any, Batch], Any]
"""(model in evaluation mode, batch) -> [B], one number per example."""
Prediction: TypeAlias = Literal["classes", "binary", "values"]

# fmt: off
_HIGHER = frozenset((
    "accuracy", "acc", "f1", "fscore", "auc", "auroc", "auprc", "r2", "reward", "return", "returns", "precision",
    "recall", "sensitivity", "specificity", "iou", "miou", "dice", "bleu", "rouge", "correlation", "corr", "kappa",
    "mcc", "ndcg", "psnr", "ssim",
))
# fmt: on
# fmt: off
# Words that negate or change the meaning of another; the name then does not determine the direction.
_TURNED = frozenset((
    "neg", "negative", "negated", "minus", "inverse", "inv", "inverted", "drop", "gap", "reduction", "std",
    "stddev", "variance", "var", "drawdown", "improvement", "decrease", "increase", "delta", "change", "difference",
    "diff", "slope",
))
_LOWER = frozenset((
    "error", "errors", "err", "loss", "nll", "mse", "rmse", "mae", "mape", "perplexity", "ppl", "energy", "ece",
    "brier", "regret", "wer", "cer", "distance", "divergence", "kl", "crossentropy", "bpc", "deviance", "fpr",
    "fnr",
))
# fmt: on


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric with a direction, or one of a whole split.

    >>> def correct(model, batch):
    ...     return ~jaxpt.zero_one_loss(model(batch["x"]), batch["y"])
    >>> metrics = {"hits": jaxpt.Metric(correct, higher_is_better=True)}

    A plain function suffices if its name implies the direction (accuracy, f1, reward; error, nll, rmse, ...).

    A metric that is not a mean over examples takes `finish` or `whole`. Examples are the root mean square, and a
    correlation of all predictions with all targets:

    >>> rms = jaxpt.Metric(lambda model, batch: model(batch["x"])[:, 0] ** 2, finish=jnp.sqrt, higher_is_better=False)
    >>> both = lambda model, batch: (model(batch["x"])[:, 0], batch["x"][:, 0])
    >>> corr = jaxpt.Metric(both, whole=lambda outputs: jnp.corrcoef(*outputs)[0, 1])

    Attributes:
        function: (model in evaluation mode, batch) -> [B]; with `finish` or `whole` a pytree of [B, ...].
        higher_is_better: whether the best replica has the highest value; by default inferred from the metric's name.
        finish: function from the means over all examples, a pytree of [...], to one number: for example from true and
            false positives to an F1 score, or from moments to a correlation. Memory does not grow with the split.
        whole: function from the outputs for all N examples, a pytree of [N, ...], to one number, computed on the
            device. Needs memory for all replicas' outputs.
    """

    function: Score
    higher_is_better: bool | None = None
    finish: Callable[[Any], Array] | None = dataclasses.field(default=None, kw_only=True)
    whole: Callable[[Any], Array] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("function", "finish", "whole"):
            value = getattr(self, name)
            if not callable(value) and (name == "function" or value is not None):
                raise ValueError(f"{name} of a Metric must be a function, but it is {value!r}")
        if self.higher_is_better not in (None, True, False):
            raise ValueError(f"higher_is_better must be True or False, but it is {self.higher_is_better!r}")
        if self.finish is not None and self.whole is not None:
            raise ValueError(
                "a Metric takes finish, of means, or whole, of all outputs, but both are given; leave one out"
            )

    def __call__(self, model: Any, *batch: Batch) -> Any:
        """Returns the function's outputs for one batch; without data it is called with the model alone."""
        return self.function(model, *batch)


def is_higher_better(problem: Problem, name: str) -> bool:
    """Returns a score's direction.

    Raises:
        ValueError: neither the problem nor the name determines it.
    """
    metric = dict(problem.metrics).get(name)
    if metric is not None and metric.higher_is_better is not None:
        return metric.higher_is_better
    words = set(re.findall(r"[a-z]+\d*", name.lower()))
    up, down = bool(words & _HIGHER), bool(words & _LOWER)
    turned = bool(words & _TURNED) or re.match(r"\s*(1\s*)?-", name) is not None
    if up == down or turned:
        raise ValueError(
            f"is more or less of {name!r} better? Its name does not tell: give the problem "
            f"metrics={{{name!r}: jaxpt.Metric(function, higher_is_better=True)}}, or False"
        )
    return up


def unknown(names: frozenset[str]) -> dict[str, Array]:
    """Returns the hyperparameters for evaluation: NaN, so that a model that reads them there is noticed."""
    return dict.fromkeys(names, jnp.full((), jnp.nan))


def takes_hyper(loss: Callable[..., Array]) -> bool:
    """Returns whether a loss has a third argument without a default: `loss(model, batch, hyper)`."""
    return required(loss) > 2


def required(function: Callable[..., Any]) -> int:
    """Returns the number of positional arguments without a default."""
    function = function.function if isinstance(function, Metric) else function
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def scores(
    loss: Callable[..., Array], energy: Score | None, metrics: Mapping[str, Score] | None
) -> dict[str, Callable[..., Any]]:
    """Returns the functions that evaluation computes: the energy first, then the metrics."""
    if not isinstance(metrics or {}, Mapping):
        raise ValueError(f'metrics must be {{name: function}}, e.g. {{"error": error}}, but it is {metrics!r}')
    for name, function in {"loss": loss, "energy": energy or loss, **(metrics or {})}.items():
        if not callable(function):
            raise ValueError(f"{name} must be a function (model, batch) -> [B], but it is {function!r}")
    if isinstance(energy or loss, Metric):
        raise ValueError(
            "the energy must be a function (model, batch) -> [B], a mean over examples, not a jaxpt.Metric"
        )
    if takes_hyper(loss) and energy is None:
        raise ValueError(
            "the loss reads hyperparameters, so it would score each rung by a function of its own; "
            "give energy=..., a function (model, batch) -> [B] that is the same for all"
        )
    if metrics and "energy" in metrics:
        raise ValueError('a metric may not be called "energy"; that name belongs to what exchanges look at')
    return {"energy": energy or loss, **(metrics or {})}


def declared_metrics(metrics: Mapping[str, Score] | None) -> tuple[tuple[str, Metric], ...]:
    """Returns the metrics that are a `Metric`, with their names, for `Problem.metrics`."""
    return tuple((name, metric) for name, metric in (metrics or {}).items() if isinstance(metric, Metric))


def predictions(
    rebuild: Callable[[Params, ModelState], Any],
    predict: Callable[[Any, Batch], Array] | None,
    prediction: Prediction | None,
) -> Callable[[Params, ModelState, Batch], Float[Array, "B *K"]] | None:
    """Returns `Problem.predict` from a function (model, batch) -> logits or values.

    Raises:
        ValueError: no such kind of prediction.
    """
    if prediction not in (None, *get_args(Prediction)):
        raise ValueError(f"prediction must be one of {', '.join(get_args(Prediction))}, but it is {prediction!r}")
    if predict is None:
        return None
    if not callable(predict):
        raise ValueError(f"predict must be a function (model, batch) -> logits, but it is {predict!r}")

    def found(params: Params, rest: ModelState, batch: Batch) -> Float[Array, "B *K"]:
        returned = predict(rebuild(params, rest), batch)
        if not hasattr(returned, "dtype"):
            raise ValueError(f"predict must return one array, but it returns {type(returned).__name__}; {ASK}")
        given = jnp.asarray(returned)
        if prediction == "values":
            return given
        if prediction == "binary":
            return jax.nn.sigmoid(given)
        if given.ndim < 2 or given.shape[-1] < 2 or (prediction is None and given.ndim > 2):
            raise ValueError(f"predict returns shape {given.shape}; {ASK}")
        return jax.nn.softmax(given, axis=-1)

    return found


ASK = (
    'say what these numbers are: prediction="classes" (logits of K >= 2 classes on the last axis), "binary" (one logit '
    'for each yes or no) or "values" (of a regression). Without it, predict must return the logits of classes, [B, K]'
)


def require_kind(problem: Problem, examples: Any) -> None:
    """Raises ValueError if a problem predicts without giving `prediction` and the data hold no class labels.

    Class labels are one integer for each example; images of bytes are not labels.
    """
    if problem.predict is None or problem.prediction is not None or not jax.tree.leaves(examples):
        return
    kinds = [(jnp.result_type(leaf), jnp.shape(leaf)) for leaf in jax.tree.leaves(examples)]
    if not any(jnp.issubdtype(kind, jnp.integer) and math.prod(shape[1:]) == 1 for kind, shape in kinds):
        raise ValueError(
            "the problem has predict=..., but the data hold no array with one integer for each example, as labels of "
            f"classes are; {ASK}"
        )
