"""Scores of trained replicas: the best one, ensembles, calibration, disagreement.

In NumPy from the replicas' probabilities, apart from jaxpt's own functions for the same, so that the evidence does not
rest on them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

import jaxpt

BINS = 15
"""Of the calibration error."""


def probabilities(engine: jaxpt.Engine, state: jaxpt.RunState, images: np.ndarray) -> Float[np.ndarray, "S M N K"]:
    """Returns what every replica of every seed predicts, in evaluation mode, in slices of 1,024 images."""
    predict: Any = engine.problem.predict

    @jax.jit
    def some(params: Any, rest: Any, images: jax.Array) -> jax.Array:
        one = lambda params, rest: predict(params, rest, {"image": images})  # noqa: E731
        return jax.lax.map(lambda seed: jax.lax.map(lambda own: one(*own), seed), (params, rest))

    held = state.replicas.params, state.replicas.model_state
    size = 1024
    parts = [np.asarray(some(*held, jnp.asarray(images[k : k + size]))) for k in range(0, len(images), size)]
    return np.concatenate(parts, 2)


def scores(p: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> dict[str, float]:
    """Returns error and calibration error in percent, and the negative log likelihood in nats."""
    rows = np.arange(len(labels))
    confidence, right = p.max(-1), p.argmax(-1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence - right, BINS)
    return {
        "error": 100 * float(1 - right.mean()),
        "nll": float(-np.log(np.maximum(p[rows, labels], 1e-12)).mean()),
        "ece": 100 * float(np.abs(gaps).sum() / len(labels)),
    }


def mixture_weights(p: Float[np.ndarray, "M N K"], labels: Int[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
    """Returns the weights of the mean prediction with the greatest likelihood, by expectation maximisation."""
    own = np.maximum(p[:, np.arange(len(labels)), labels], 1e-12).astype(np.float64)
    weights = np.full(len(own), 1 / len(own))
    for _ in range(300):
        joint = weights[:, None] * own
        weights = (joint / joint.sum(0)).mean(1)
    return weights


def disagreement(p: Float[np.ndarray, "M N K"]) -> float:
    """Returns the mean share of images, in percent, on which two replicas give different classes."""
    said = p.argmax(-1)
    pairs = [(a != b).mean() for k, a in enumerate(said) for b in said[k + 1 :]]
    return 100 * float(np.mean(pairs))


def of_seed(
    valid: Float[np.ndarray, "M N K"],
    valid_labels: Int[np.ndarray, " N"],
    test: Float[np.ndarray, "M N K"],
    labels: Int[np.ndarray, " N"],
    rates: Float[np.ndarray, " M"],
) -> dict[str, Any]:
    """Returns the scores of one seed's replicas; all choices are made on validation.

    Replicas whose predictions are not finite are left out.
    """
    healthy = np.flatnonzero(np.isfinite(valid).all((1, 2)) & np.isfinite(test).all((1, 2)))
    if not len(healthy):
        return {"healthy": 0}
    valid, test = valid[healthy].astype(np.float64), test[healthy].astype(np.float64)
    each = [scores(p, valid_labels) for p in valid]
    ranked = sorted(range(len(each)), key=lambda k: (each[k]["error"], each[k]["nll"]))
    half = ranked[: max(1, len(ranked) // 2)]
    weights = mixture_weights(valid, valid_labels)
    return {
        "healthy": len(healthy),
        "best": scores(test[ranked[0]], labels),
        "best_rate": float(rates[healthy[ranked[0]]]),
        "all": scores(test.mean(0), labels),
        "half": scores(test[half].mean(0), labels),
        "weighted": scores(np.tensordot(weights, test, 1), labels),
        "weights": [round(float(w), 4) for w in weights],
        "disagreement": disagreement(test),
        "mean replica": float(np.mean([scores(p, labels)["error"] for p in test])),
    }
