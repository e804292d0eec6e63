"""Per-example losses and metrics for classifiers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped


def cross_entropy(
    logits: Float[Array, "*B K"],
    labels: Int[Array, "*B"],
    label_smoothing: Float[Array, ""] | float | None = None,
    *,
    ignore_label: int | None = None,
) -> Float[Array, "*B"]:
    """Returns the cross-entropy of each label; an example may have several labels (one per word or pixel).

    >>> jaxpt.cross_entropy(jnp.array([[0.0, 0.0], [0.0, 100.0]]), jnp.array([0, 1])).round(3).tolist()
    [0.693..., 0.0]

    Args:
        logits: unnormalised log probabilities of K classes.
        labels: the class, 0 .. K - 1.
        label_smoothing: probability mass spread evenly over all classes, 0 to 1; may be traced.
        ignore_label: the value that marks a missing label (padding), such as -1 or -100; its loss is 0. `label_mean`
            averages over an example's other labels.

    Raises:
        ValueError: a label is out of range. Checked if the labels are concrete: `Engine.check` and `fit` pass all
            labels of a data set to the loss before training.
    """
    _check_labels(logits, labels, ignore_label)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))  # sums in bfloat16 would be too inexact
    known = _known(labels, ignore_label)
    if label_smoothing is None:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, known)
    else:
        targets = jax.nn.one_hot(known, logits.shape[-1], dtype=logits.dtype)
        smooth = optax.smooth_labels(targets, jnp.asarray(label_smoothing, logits.dtype))
        loss = optax.softmax_cross_entropy(logits, smooth)
    return loss if ignore_label is None else jnp.where(labels == ignore_label, 0.0, loss)


def label_mean(values: Shaped[Array, "B *T"], labels: Int[Array, "B *T"], ignore_label: int) -> Float[Array, " B"]:
    """Returns each example's mean over the labels that count; 0 for an example without such labels.

    >>> labels = jnp.array([[2, 0, -1], [1, -1, -1]])
    >>> wrong = jaxpt.zero_one_loss(jnp.zeros((2, 3, 4)), labels, ignore_label=-1)
    >>> jaxpt.label_mean(wrong, labels, ignore_label=-1).tolist()
    [0.5, 1.0]

    Every example has the same weight in the loss and in the energy, however many labels it has.

    Args:
        values: a loss or an error of each label.
        labels: the labels, T of them (or [H, W]) in each example.
        ignore_label: the value that marks a missing label.
    """
    axes = tuple(range(1, jnp.ndim(labels)))
    counts = labels != ignore_label
    total = jnp.sum(jnp.where(counts, values, 0), axes, dtype=jnp.promote_types(values.dtype, jnp.float32))
    return total / jnp.maximum(counts.sum(axes), 1)


def zero_one_loss(
    logits: Float[Array, "*B K"], labels: Int[Array, "*B"], *, ignore_label: int | None = None
) -> Bool[Array, "*B"]:
    """Returns whether the most probable class differs from the label, for each label; the mean is the error rate.

    >>> jaxpt.zero_one_loss(jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([0, 0])).tolist()
    [False, True]

    Accepts probabilities or logits. A label equal to `ignore_label` gives no error (see `cross_entropy`).

    Raises:
        ValueError: not one integer label per row of logits, or one out of range.
    """
    _check_labels(logits, labels, ignore_label)
    wrong = jnp.argmax(logits, -1) != labels
    return wrong if ignore_label is None else wrong & (labels != ignore_label)


def negative_log_likelihood(
    probabilities: Float[Array, "*B K"], labels: Int[Array, "*B"], *, ignore_label: int | None = None
) -> Float[Array, "*B"]:
    """Returns minus the logarithm of the probability of each label's class; infinite for probability zero.

    A label equal to `ignore_label` gives 0 (see `cross_entropy`).

    Raises:
        ValueError: as for `zero_one_loss`.
    """
    _check_labels(probabilities, labels, ignore_label)
    known = _known(labels, ignore_label)
    loss = -jnp.log(jnp.take_along_axis(probabilities, known[..., None], -1)[..., 0])
    return loss if ignore_label is None else jnp.where(labels == ignore_label, 0.0, loss)


def _known(labels: Array, ignore_label: int | None) -> Array:
    """Returns labels that are safe as indices: class 0 in place of `ignore_label`."""
    return labels if ignore_label is None else jnp.where(labels == ignore_label, 0, labels)


def check_kinds(logits: Array, labels: Array) -> None:
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


def _check_labels(logits: Array, labels: Array, ignore_label: int | None) -> None:
    """Raises ValueError unless there is one integer per row of logits, in range if labels are concrete."""
    check_kinds(logits, labels)
    if ignore_label is not None and not isinstance(ignore_label, int | np.integer):
        raise ValueError(f"ignore_label must be an integer, the label that stands for none, but it is {ignore_label!r}")
    if isinstance(labels, jax.core.Tracer) or labels.size == 0:
        return
    known, classes = np.asarray(labels), logits.shape[-1]
    known = known if ignore_label is None else known[known != ignore_label]
    if not known.size:
        return
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= classes:
        hint = f". If {low} stands for no label, give ignore_label={low}" if low < 0 and ignore_label is None else ""
        raise ValueError(
            f"labels must lie in 0 .. {classes - 1} for a model with {classes} outputs, but the data has labels "
            f"{low} .. {high}; shift them to begin at 0, or give the model as many outputs as there are classes{hint}"
        )
