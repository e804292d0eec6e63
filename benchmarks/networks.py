"""The networks that the benchmarks train, for jaxpt and, if it is installed, for PyTorch; and their work by hand."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

import jaxpt
from experiments.models import LeNetEMNIST, ResNet

SHAPES = {"lenet": (32, 32, 1), "resnet20": (32, 32, 3)}
CLASSES = {"lenet": 26, "resnet20": 10}
LEARNING_RATE, MOMENTUM, DROPOUT = 0.01, 0.9, 0.1


def loss(model: nnx.Module, batch: dict) -> Array:
    """Cross-entropy of each image."""
    return jaxpt.cross_entropy(model(batch["image"]), batch["label"])


def problem(model: str, convolution: Callable[..., Array]) -> jaxpt.Problem:
    """Returns the problem of a network whose convolutions are computed by a function."""
    if model == "lenet":
        return jaxpt.nnx_problem(lambda *, rngs: LeNetEMNIST(convolution=convolution, rngs=rngs), loss)
    return jaxpt.nnx_problem(lambda *, rngs: ResNet(20, convolution=convolution, rngs=rngs), loss)


def optimizer(h: Any) -> optax.GradientTransformation:
    """SGD with momentum; fused by XLA with the rest of the step."""
    return optax.sgd(h["learning_rate"], momentum=MOMENTUM)


def fixed(model: str) -> dict[str, float]:
    """Returns what all replicas share."""
    return {"dropout_rate": DROPOUT} if model == "lenet" else {}


def images(model: str, count: int) -> dict[str, np.ndarray]:
    """Returns random images and labels; what they show has no influence on the time."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(count, *SHAPES[model])).astype(np.float32),
        "label": rng.integers(0, CLASSES[model], count).astype(np.int32),
    }


def flops_per_image(model: str) -> float:
    """Returns the floating-point operations of one training step per image: layers by hand, a multiply-add as two.

    Forward, gradient of the weights and gradient of the input cost the same; the first layer has no gradient of its
    input. Only convolutions and dense layers count.
    """
    if model == "lenet":
        #        out pixels * window * channels * maps
        first = 28 * 28 * 25 * 1 * 6
        others = 10 * 10 * 25 * 6 * 16 + 1 * 25 * 16 * 120 + 120 * 84 + 84 * 26
    else:
        first = 32 * 32 * 9 * 3 * 16
        others = 6 * 32 * 32 * 9 * 16 * 16  # 3 blocks of 2 with 16 channels
        others += 16 * 16 * 9 * 16 * 32 + 5 * 16 * 16 * 9 * 32 * 32
        others += 8 * 8 * 9 * 32 * 64 + 5 * 8 * 8 * 9 * 64 * 64
        others += 64 * 10
    return 2.0 * (2 * first + 3 * others)


def torch_model(model: str) -> Any:
    """Returns the same network in PyTorch, weights aside.

    Raises:
        ImportError: PyTorch is not installed.
    """
    from benchmarks import torch_networks

    return torch_networks.lenet(DROPOUT) if model == "lenet" else torch_networks.resnet20()


def parameters(tree: Any) -> int:
    """Returns how many numbers a tree of arrays holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
