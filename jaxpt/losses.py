"""Losses and metrics of one example each, for classifiers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(
    logits: Float[Array, "*B K"],
    labels: Int[Array, "*B"],
    label_smoothing: Float[Array, ""] | float | None = None,
) -> Float[Array, "*B"]:
    """Cross-entropy of each example.

    >>> jaxpt.cross_entropy(jnp.array([[0.0, 0.0], [0.0, 100.0]]), jnp.array([0, 1])).round(3).tolist()
    [0.693..., 0.0]

    Args:
        logits: unnormalised log probabilities of K classes.
        labels: the class, 0 .. K - 1.
        label_smoothing: probability mass spread evenly over all classes, 0 to 1; may be traced.

    Raises:
        ValueError: a label is out of range. Checked wherever the labels are concrete: `Engine.check` and `fit` show
            all labels of a data set to the loss before training.
    """
    _check_labels(logits, labels)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))  # sums of bfloat16 would be too coarse
    if label_smoothing is None:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    smooth = optax.smooth_labels(targets, jnp.asarray(label_smoothing, logits.dtype))
    return optax.softmax_cross_entropy(logits, smooth)


def errors(logits: Float[Array, "*B K"], labels: Int[Array, "*B"]) -> Bool[Array, "*B"]:
    """Whether the most probable class of each example is the wrong one; its mean is the error rate.

    >>> jaxpt.errors(jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([0, 0])).tolist()
    [False, True]

    Probabilities will do as well as logits.

    Raises:
        ValueError: not one integer label per example.
    """
    _check_kinds(logits, labels)
    return jnp.argmax(logits, -1) != labels


def negative_log_likelihood(probabilities: Float[Array, "*B K"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Minus the logarithm of the probability of each example's class; infinite where that is zero."""
    _check_labels(probabilities, labels)
    return -jnp.log(jnp.take_along_axis(probabilities, labels[..., None], -1)[..., 0])


def _check_kinds(logits: Array, labels: Array) -> None:
    """Raises ValueError unless there is one integer per example."""
    for name, value in {"logits": logits, "labels": labels}.items():
        if not hasattr(value, "dtype"):
            raise ValueError(f"{name} must be an array, but it is {value!r}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers, the classes, but their dtype is {labels.dtype}; cast them, or take the argmax "
            "of one-hot ones"
        )
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels need one class per example, shape {logits.shape[:-1]} for logits of shape {logits.shape}, but "
            f"their shape is {labels.shape}"
        )


def _check_labels(logits: Array, labels: Array) -> None:
    """Raises ValueError unless there is one integer per example, in range wherever it is known."""
    _check_kinds(logits, labels)
    if isinstance(labels, jax.core.Tracer) or labels.size == 0:
        return
    known, classes = np.asarray(labels), logits.shape[-1]
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must lie in 0 .. {classes - 1} for a model with {classes} outputs, but the data has labels "
            f"{low} .. {high}; shift them to begin at 0, or give the model as many outputs as there are classes"
        )
