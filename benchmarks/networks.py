"""The networks that the benchmarks train, for jaxpt and, if it is installed, for PyTorch; and their work by hand."""

import itertools
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
    import torch
    from torch import nn

    class Pooling(nn.Module):
        def __init__(self, maps: int):
            super().__init__()
            self.scale, self.bias = nn.Parameter(torch.ones(maps, 1, 1)), nn.Parameter(torch.zeros(maps, 1, 1))

        def forward(self, x: Any) -> Any:
            return torch.tanh(nn.functional.avg_pool2d(x, 2) * self.scale + self.bias)

    class Distance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centres = nn.Parameter(0.1 * torch.randn(84, 26))

        def forward(self, x: Any) -> Any:
            return ((x[:, :, None] - self.centres) ** 2).sum(1)

    class Block(nn.Module):
        def __init__(self, fan_in: int, fan_out: int):
            super().__init__()
            self.stride, self.grow = (1 if fan_in == fan_out else 2), fan_out - fan_in
            self.conv1 = nn.Conv2d(fan_in, fan_out, 3, self.stride, 1, bias=False)
            self.conv2 = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False)
            self.norm1, self.norm2 = nn.BatchNorm2d(fan_out), nn.BatchNorm2d(fan_out)

        def forward(self, x: Any) -> Any:
            y = torch.relu(self.norm1(self.conv1(x)))
            y = self.norm2(self.conv2(y))
            if self.grow:
                half = self.grow // 2
                x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
            return torch.relu(x + y)

    if model == "lenet":
        drop = nn.Dropout(DROPOUT)
        return nn.Sequential(
            *(nn.Conv2d(1, 6, 5), nn.Tanh(), Pooling(6), drop, nn.Conv2d(6, 16, 5), nn.Tanh(), Pooling(16), drop),
            *(nn.Conv2d(16, 120, 5), nn.Tanh(), drop, nn.Flatten(), drop, nn.Linear(120, 84), nn.Tanh(), drop),
            Distance(),
        )
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(i, o) for i, o in itertools.pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def parameters(tree: Any) -> int:
    """Returns how many numbers a tree of arrays holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
