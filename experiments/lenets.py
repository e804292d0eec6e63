"""The paper's experiments with LeNets: two networks, two kinds of ladder; their modules hold the settings."""

import dataclasses
from typing import Any, Literal

import optax
from flax import nnx

import jaxpt
from experiments import datasets
from experiments.augment import Standardise, pixel_mean
from experiments.classification import channels_of, classes_of, classifier
from experiments.learning_rates import LearningRateOptions
from experiments.models import LeNetCIFAR10, LeNetEMNIST
from experiments.options import PaperOptions
from experiments.runner import Work
from jaxpt.core.data import Data


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropoutOptions(PaperOptions):
    """A ladder of dropout rates; plain SGD whose learning rate falls at --switch, the same for all replicas."""

    learning_rate: float = 0.1
    """Learning rate of all replicas until --switch."""
    later_learning_rate: float = 0.01
    """Learning rate of all replicas from then on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedDropoutOptions(LearningRateOptions):
    """A ladder of learning rates, with one dropout rate."""

    dropout_rate: float
    """Dropout rate of all replicas."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EMNISTOptions(PaperOptions):
    """Options of the network for EMNIST-letters."""

    steps: int = 351_200
    switch: int = 62_000
    head: Literal["rbf", "softmax"] = "rbf"
    """What gives the logits: squared distances to centres of the classes, or a dense layer."""

    def problem(self, data: Data) -> jaxpt.Problem:
        """Returns what each replica trains on."""

        def network(*, rngs: nnx.Rngs) -> nnx.Module:
            lenet = LeNetEMNIST(classes_of(data), channels=channels_of(data), head=self.head, rngs=rngs)
            return nnx.Sequential(Standardise(size=32), lenet)

        return classifier(network)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CIFAR10Options(PaperOptions):
    """Options of the network for CIFAR-10."""

    steps: int = 140_800
    switch: int = 25_000
    version: Literal["as_run", "table"] = "as_run"
    """The network that the paper's figure was made with, or the one that its table prints."""
    dataset: str = "cifar10"

    def problem(self, data: Data) -> jaxpt.Problem:
        """Returns what each replica trains on."""
        mean = pixel_mean(data.train["image"])

        def network(*, rngs: nnx.Rngs) -> nnx.Module:
            lenet = LeNetCIFAR10(classes_of(data), channels=channels_of(data), version=self.version, rngs=rngs)
            return nnx.Sequential(Standardise(mean, size=32), lenet)

        return classifier(network)


def prepare(name: str, options: DropoutOptions | FixedDropoutOptions) -> Work:
    """Returns what is to be run.

    Args:
        name: of the experiment.
        options: of one of the networks above; their kind says which ladder it is.
    """
    assert isinstance(options, EMNISTOptions | CIFAR10Options)
    data, dataset = datasets.load(options.dataset, data_dir=options.data_dir)
    if isinstance(options, DropoutOptions):
        fall = {options.switch: options.later_learning_rate / options.learning_rate}
        rate = optax.piecewise_constant_schedule(options.learning_rate, fall)
        kind: dict[str, Any] = {
            "optimizer": lambda h: optax.sgd(rate),
            "ladder": jaxpt.Ladder(dropout_rate=options.rungs()),  # beta = q / (1 - q), q = 1 - p
        }
    else:
        kind = {
            "optimizer": lambda h: optax.sgd(h["learning_rate"]),
            "ladder": jaxpt.Ladder(learning_rate=options.rungs()),  # beta = 1 / learning rate
            "schedule": options.schedule,
            "fixed": {"dropout_rate": options.dropout_rate},
        }
    engine = jaxpt.Engine(
        options.problem(data),
        **kind,
        rule=jaxpt.Independent(),  # each arm puts in its own
        every=options.every,
        burn_in=options.burn_in,
        batch_size=options.batch_size,
        probe=options.probe,
    )
    return Work(name, engine, data, dataset)
