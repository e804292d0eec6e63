"""What a problem is scored by: its energy, its metrics, its predictions; shared by all model libraries."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpt.types import Batch, ModelState, Params

Metric = Callable[[Any, Batch], Array]
"""(model in evaluation mode, batch) -> [B], one number per example."""


def unknown(names: frozenset[str]) -> dict[str, Array]:
    """Hyperparameters in evaluation: NaN, so that a model which reads them there cannot go unnoticed."""
    return dict.fromkeys(names, jnp.full((), jnp.nan))


def takes_hyper(loss: Callable[..., Array]) -> bool:
    """Whether a loss has a third argument without a default: `loss(model, batch, hyper)`."""
    return required(loss) > 2


def required(function: Callable[..., Any]) -> int:
    """Returns how many positional arguments without a default a function has."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def scores(
    loss: Callable[..., Array], energy: Metric | None, metrics: Mapping[str, Metric] | None
) -> dict[str, Callable[..., Array]]:
    """Collects what evaluation computes: the energy first, then the metrics."""
    if not isinstance(metrics or {}, Mapping):
        raise ValueError(f'metrics must be {{name: function}}, e.g. {{"error": error}}, but it is {metrics!r}')
    for name, function in {"loss": loss, "energy": energy or loss, **(metrics or {})}.items():
        if not callable(function):
            raise ValueError(f"{name} must be a function (model, batch) -> [B], but it is {function!r}")
    if takes_hyper(loss) and energy is None:
        raise ValueError(
            "the loss reads hyperparameters, so it would score each rung by a function of its own; "
            "give energy=..., a function (model, batch) -> [B] that is the same for all"
        )
    if metrics and "energy" in metrics:
        raise ValueError('a metric may not be called "energy"; that name belongs to what exchanges look at')
    return {"energy": energy or loss, **(metrics or {})}


def probabilities(
    rebuild: Callable[[Params, ModelState], Any], predict: Callable[[Any, Batch], Array] | None
) -> Callable[[Params, ModelState, Batch], Float[Array, "B K"]] | None:
    """Returns `Problem.predict` from a function (model, batch) -> logits."""
    if predict is None:
        return None
    return lambda params, rest, batch: jax.nn.softmax(predict(rebuild(params, rest), batch), axis=-1)
