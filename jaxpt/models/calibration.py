"""The calibration of predicted probabilities, as a metric."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpt.core.arguments import check_takes
from jaxpt.models.losses import check_kinds, zero_one_loss
from jaxpt.models.scores import Metric

_INEXACT = 0.01
"""How far a row of probabilities in bfloat16 may be from sum 1."""


def calibration_error(function: Callable[..., tuple[Float[Array, "B K"], Int[Array, " B"]]], bins: int = 15) -> Metric:
    """Returns the expected calibration error as a metric: how far confidence and accuracy are apart, 0 to 1.

    The confidence of a prediction is the probability of its most probable class. Examples are divided by confidence
    into bins of equal width, (m - 1) / bins < confidence <= m / bins. The error is the sum over bins of
    |mean over all N examples of (confidence - correct) in the bin|, that is sum_m n_m / N |accuracy_m - confidence_m|
    (Guo et al. 2017, arXiv 1706.04599, equation 3).

    It is a metric of an ensemble, or one of a problem's metrics:

    >>> calibration = jaxpt.calibration_error(lambda p, batch: (p, batch["y"]))
    >>> mixed = jaxpt.ensemble(result.engine, result.state, valid, {"ece": calibration})
    >>> 0 <= mixed["ece"] <= 1
    Array(True, dtype=bool)
    >>> own = jaxpt.calibration_error(lambda model, batch: (jax.nn.softmax(model(batch["x"])), batch["y"]))
    >>> watched = jaxpt.nnx_problem(lambda rngs: nnx.Linear(2, 2, rngs=rngs), loss, metrics={"ece": own})

    Rows that are no probabilities (logits, say) are refused where their values are known; in a compiled program, as in
    `fit`, the error is NaN.

    With few examples in a bin the error is too large on average; compare scores on splits of the same size.

    Args:
        function: function of the metric's two arguments (the mean prediction and the batch; or the model and the batch)
            to probabilities [B, K], of sum 1 over the last axis, and labels [B], the classes 0 .. K - 1. Of a single
            probability of yes, p [B], make `jnp.stack([1 - p, p], -1)`.
        bins: number of bins.

    Raises:
        ValueError: function is not a function; bins is not a positive integer; when it is computed, function does not
            return probabilities [B, K] and integer labels [B], or concrete rows lie outside of 0 .. 1 or have another
            sum than 1.
    """
    check_takes("function", function, "predictions", "batch", hint="it returns (probabilities [B, K], labels [B])")
    if not isinstance(bins, int | np.integer) or bins < 1:
        raise ValueError(f"bins must be an integer of at least 1, but it is {bins!r}")
    inner = np.arange(1, bins) / bins

    def gaps(*arguments: Any) -> Float[Array, "B bins"]:
        found = function(*arguments)
        _check_shapes(found)
        check_kinds(*found)
        probabilities, labels = map(jnp.asarray, found)
        probabilities = probabilities.astype(jnp.promote_types(probabilities.dtype, jnp.float32))
        probabilities = _checked(probabilities)
        confidence = probabilities.max(-1)
        gap = confidence - ~zero_one_loss(probabilities, labels)
        place = jnp.sum(confidence[:, None] > inner.astype(confidence.dtype), -1)
        return jax.nn.one_hot(place, bins, dtype=gap.dtype) * gap[:, None]

    return Metric(gaps, higher_is_better=False, finish=lambda means: jnp.abs(means).sum())


def _check_shapes(found: Any) -> None:
    """Raises ValueError unless a function returned probabilities [B, K] and labels."""
    if isinstance(found, tuple | list) and len(found) == 2 and jnp.ndim(found[0]) == 2:
        return
    shapes: Any = jax.tree.map(np.shape, found)
    hint = ""
    if isinstance(found, tuple | list) and len(found) == 2 and jnp.ndim(found[0]) == 1:
        hint = "; of a probability of yes, p [B], make jnp.stack([1 - p, p], -1)"
    raise ValueError(
        f"function of calibration_error must return (probabilities [B, K], labels [B]), but it returns {shapes}{hint}"
    )


def _checked(probabilities: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """Returns probabilities, NaN for traced rows that are none; NaN stays NaN.

    Raises:
        ValueError: the values are known, and those of a row lie outside of 0 .. 1 or have another sum than 1.
    """
    total = probabilities.sum(-1)
    wrong = (jnp.abs(total - 1) > _INEXACT) | ((probabilities < -_INEXACT) | (probabilities > 1 + _INEXACT)).any(-1)
    if not isinstance(wrong, jax.core.Tracer) and wrong.any():
        row = np.asarray(probabilities[jnp.argmax(wrong)])
        raise ValueError(
            "calibration_error needs probabilities, rows in 0 .. 1 of sum 1, but a row is "
            f"{row[:8].tolist()}; take jax.nn.softmax of logits"
        )
    return jnp.where(wrong[:, None], jnp.nan, probabilities)
