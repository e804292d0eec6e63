"""The tasks of the evidence: data, network, optimiser, ladders and times; the same for every arm."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Num

import jaxpt
from experiments import datasets
from experiments.augment import Standardise, pixel_mean
from experiments.classification import channels_of, classes_of, classifier
from experiments.models import LeNetCIFAR10, LeNetEMNIST, SmallConvNet
from jaxpt.core.data import Data

TaskName = Literal["digits", "letters14", "letters", "cifar10"]
LadderName = Literal["careless", "placed"]


class MLP(nnx.Module):
    """One hidden layer of 96, for uint8 images of 14 x 14 pixels; 21,434 weights."""

    def __init__(self, classes: int = 26, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(14 * 14, 96, rngs=rngs)
        self.out = nnx.Linear(96, classes, rngs=rngs)

    def __call__(self, image: Num[Array, "B 14 14 1"]) -> Array:
        """Returns logits."""
        x = (image.astype(np.float32).reshape(len(image), -1) / 255 - 0.17) / 0.33  # about zero mean, unit variance
        return self.out(jax.nn.relu(self.hidden(x)))


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        problem: the problem.
        data: all three splits.
        dataset: what the data is, in words.
        ends: the least and the greatest learning rate of the ladder.
        steps: optimiser steps of each replica.
        every: steps between exchanges.
        burn_in: steps before the first.
        momentum: of SGD.
        fixed: hyperparameters that all replicas share.
        probe: validation examples of an energy; None: the whole split.
        batch_size: examples in a minibatch.
    """

    problem: jaxpt.Problem
    data: Data
    dataset: str
    ends: tuple[float, float]
    steps: int
    every: int
    burn_in: int
    momentum: float = 0.0
    fixed: dict[str, float] = dataclasses.field(default_factory=dict)
    probe: int | None = None
    batch_size: int = 16

    def rates(self, replicas: int) -> np.ndarray:
        """Returns the ladder's learning rates."""
        return np.asarray(jaxpt.geometric(*self.ends, replicas))

    def engine(
        self,
        rule: jaxpt.Rule,
        rates: np.ndarray,
        *,
        cooldown: float | jaxpt.Cooldown | None = None,
        search: jaxpt.Search | None = None,
        every: int | None = None,
        problem: jaxpt.Problem | None = None,
    ) -> jaxpt.Engine:
        """Returns the engine of an arm.

        Args:
            rule: the arm's.
            rates: a learning rate for each replica.
            cooldown: share of the run; 1 lets rates fall along half a cosine from the first step.
            search: with which it begins.
            every: instead of the task's.
            problem: instead of the task's.
        """
        momentum = self.momentum or None
        return jaxpt.Engine(
            self.problem if problem is None else problem,
            lambda h: optax.sgd(h["learning_rate"], momentum=momentum),
            jaxpt.Ladder(learning_rate=rates),
            rule,
            every=every or self.every,
            burn_in=self.burn_in,
            batch_size=self.batch_size,
            fixed=self.fixed,
            probe=self.probe,
            cooldown=cooldown,
            search=search,
        )


def digits(ladder: LadderName, data_dir: Path | None) -> Task:
    """Handwritten digits of scikit-learn, a small convolutional network with momentum and dropout."""
    del data_dir
    ends = {"careless": (0.003, 0.3), "placed": (0.02, 0.1)}[ladder]
    problem, what = classifier(SmallConvNet), "digits from scikit-learn, 1,077 / 360 / 360 examples"
    return Task(problem, datasets.digits(), what, ends, 1000, 20, 100, momentum=0.9, fixed={"dropout_rate": 0.1})


def letters14(ladder: LadderName, data_dir: Path | None) -> Task:
    """EMNIST letters at 14 x 14 pixels, 22,000 training images, a small dense network."""
    data, what = datasets.load("emnist_letters", data_dir=data_dir)
    rows = np.random.default_rng(1).permutation(len(data.train["label"]))
    train, valid = ({name: leaf[part] for name, leaf in data.train.items()} for part in (rows[:22_000], rows[-4000:]))
    small = Data(*(_halved(split) for split in (train, valid, data.test)))
    ends = {"careless": (0.0064, 0.64), "placed": (0.1, 0.5)}[ladder]
    what += "; at 14 x 14 pixels, 22,000 for training, 4,000 for validation"
    return Task(classifier(MLP), small, what, ends, 6000, 60, 300)


def letters(ladder: LadderName, data_dir: Path | None) -> Task:
    """EMNIST letters, the paper's LeNet with minibatches of 16."""
    data, what = datasets.load("emnist_letters", data_dir=data_dir)

    def network(*, rngs: nnx.Rngs) -> nnx.Module:
        lenet = LeNetEMNIST(classes_of(data), channels=channels_of(data), head="rbf", rngs=rngs)
        return nnx.Sequential(Standardise(size=32), lenet)

    ends = {"careless": (0.003, 0.3), "placed": (0.02, 0.1)}[ladder]
    few = data._replace(valid={name: leaf[:2000] for name, leaf in data.valid.items()})
    what += "; 2,000 for validation"
    return Task(classifier(network), few, what, ends, 1500, 30, 150, fixed={"dropout_rate": 0.1}, probe=500)


def cifar10(ladder: LadderName, data_dir: Path | None) -> Task:
    """CIFAR-10, the network as the paper's table prints it, minibatches of 32; as run it takes ten times as long."""
    data, what = datasets.load("cifar10", data_dir=data_dir)
    mean = pixel_mean(data.train["image"])

    def network(*, rngs: nnx.Rngs) -> nnx.Module:
        lenet = LeNetCIFAR10(classes_of(data), channels=channels_of(data), version="table", rngs=rngs)
        return nnx.Sequential(Standardise(mean, size=32), lenet)

    ends = {"careless": (0.003, 0.3), "placed": (0.03, 0.15)}[ladder]
    few = data._replace(valid={name: leaf[:2000] for name, leaf in data.valid.items()})
    return Task(
        classifier(network), few, what + "; 2,000 for validation", ends, 2000, 40, 200, fixed={"dropout_rate": 0.1},
        probe=500, batch_size=32,
    )  # fmt: skip


TASKS: dict[TaskName, Callable[[LadderName, Path | None], Task]] = {
    "digits": digits,
    "letters14": letters14,
    "letters": letters,
    "cifar10": cifar10,
}
"""{name: function that prepares it}."""


def _halved(split: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the images at half the height and width: means of 2 x 2 pixels, rounded to uint8."""
    images = split["image"]
    count, height, width, channels = images.shape
    blocks = images.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    return {**split, "image": np.rint(blocks).astype(np.uint8)}
