"""What every experiment here trains: a network that tells classes of images apart."""

from collections.abc import Callable

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

import jaxpt
from jaxpt.core.data import Data


def loss(model: nnx.Module, batch: dict) -> Array:
    """Cross-entropy of each image."""
    return jaxpt.cross_entropy(model(batch["image"]), batch["label"])


def error(model: nnx.Module, batch: dict) -> Array:
    """Whether each image is misclassified."""
    return jaxpt.zero_one_loss(model(batch["image"]), batch["label"])


def logits(model: nnx.Module, batch: dict) -> Array:
    """What the mixture of replicas averages, after a softmax."""
    return model(batch["image"])


def mixture_error(probabilities: Float[Array, "B K"], batch: dict) -> Array:
    """Whether the mixture misclassifies each image."""
    return jaxpt.zero_one_loss(probabilities, batch["label"])


def classifier(network: Callable[..., nnx.Module]) -> jaxpt.Problem:
    """Returns the problem of a network, `network(rngs=...)`: cross-entropy, and an "error" from 0 to 1."""
    return jaxpt.nnx_problem(network, loss, metrics={"error": error}, predict=logits)


def classes_of(data: Data) -> int:
    """Returns how many classes there are: the largest label of any split, plus one."""
    return 1 + max(int(np.max(split["label"])) for split in data)


def channels_of(data: Data) -> int:
    """Returns how many channels the images have."""
    return data.train["image"].shape[-1]
