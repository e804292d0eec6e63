"""The networks of `networks` in PyTorch, weights aside; imports no JAX, so that a worker of a peer starts quickly."""

import itertools
from collections import OrderedDict

import torch
from torch import Tensor, nn


class Pooling(nn.Module):
    """A 2x2 average, scaled and shifted per feature map, through tanh."""

    def __init__(self, maps: int):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(maps, 1, 1)), nn.Parameter(torch.zeros(maps, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns half the rows and columns."""
        return torch.tanh(nn.functional.avg_pool2d(x, 2) * self.scale + self.bias)


class Distance(nn.Module):
    """Squared distances to a centre of each class."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.centres = nn.Parameter(0.1 * torch.randn(features, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits."""
        return ((x[:, :, None] - self.centres) ** 2).sum(1)


class Block(nn.Module):
    """A residual block; twice as many maps come with half the rows and columns."""

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__()
        self.stride, self.grow = (1 if fan_in == fan_out else 2), fan_out - fan_in
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(fan_out), nn.BatchNorm2d(fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.grow:
            half = self.grow // 2
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
        return torch.relu(x + y)


def lenet(dropout: float, classes: int = 26) -> nn.Sequential:
    """Returns `experiments.models.LeNetEMNIST`; layers with weights have its names."""
    layers = {
        **{"conv1": nn.Conv2d(1, 6, 5), "tanh1": nn.Tanh(), "pool1": Pooling(6), "drop1": nn.Dropout(dropout)},
        **{"conv2": nn.Conv2d(6, 16, 5), "tanh2": nn.Tanh(), "pool2": Pooling(16), "drop2": nn.Dropout(dropout)},
        **{"conv3": nn.Conv2d(16, 120, 5), "tanh3": nn.Tanh(), "drop3": nn.Dropout(dropout)},
        **{"flat": nn.Flatten(), "drop4": nn.Dropout(dropout)},
        **{"dense": nn.Linear(120, 84), "tanh4": nn.Tanh(), "drop5": nn.Dropout(dropout)},
        "head": Distance(84, classes),
    }
    return nn.Sequential(OrderedDict(layers))


def resnet20() -> nn.Sequential:
    """Returns `experiments.models.ResNet(20)`."""
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(i, o) for i, o in itertools.pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
