"""The networks that the benchmarks train, for jaxpt and, if it is installed, for PyTorch; and their work by hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

import jaxpt
from experiments.models import LeNetEMNIST, ResNet, resnet

SHAPES = {"lenet": (32, 32, 1), "resnet20": (32, 32, 3)}
BLOCKS = {"block16": (32, 32, 16), "block32": (16, 16, 32), "block64": (8, 8, 64)}
"""Two blocks of a ResNet of one width on images of so many rows, columns and channels, for `compiled.py`."""
CLASSES = {"lenet": 26}
LEARNING_RATE, MOMENTUM, DROPOUT = 0.01, 0.9, 0.1


def loss(model: nnx.Module, batch: dict) -> Array:
    """Cross-entropy of each image."""
    return jaxpt.cross_entropy(model(batch["image"]), batch["label"])


class Blocks(nnx.Module):
    """Two residual blocks of one width after a 1x1 convolution, so that the first has a gradient of its input."""

    def __init__(self, width: int, convolution: Callable[..., Array], *, rngs: nnx.Rngs):
        def conv(fan_in: int, fan_out: int, stride: int, size: int = 3) -> nnx.Conv:
            return nnx.Conv(
                fan_in,
                fan_out,
                (size, size),
                strides=stride,
                use_bias=False,
                conv_general_dilated=convolution,
                rngs=rngs,
            )

        norm = partial(resnet.BatchNorm, rngs=rngs)
        self.stem = conv(width, width, 1, size=1)
        self.blocks = nnx.List([resnet.OriginalBlock(width, width, norm, conv) for _ in range(2)])
        self.out = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, image: Array) -> Array:
        """Returns logits."""
        x = self.stem(image)
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean((1, 2)))


def problem(model: str, convolution: Callable[..., Array]) -> jaxpt.Problem:
    """Returns the problem of a network whose convolutions are computed by a function."""
    if model in BLOCKS:
        return jaxpt.nnx_problem(lambda *, rngs: Blocks(BLOCKS[model][-1], convolution, rngs=rngs), loss)
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
        "label": rng.integers(0, CLASSES.get(model, 10), count).astype(np.int32),
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
