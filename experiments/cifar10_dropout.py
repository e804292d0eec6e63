"""Dropout as a temperature, the paper's small network on CIFAR-10: figure 2 of arXiv 1909.04013.

uv run -m experiments.cifar10_dropout
"""

import dataclasses
from pathlib import Path
from typing import Literal

import optax
from flax import nnx

import jaxpt
from experiments import datasets, runner
from experiments.augment import Standardise, pixel_mean
from experiments.classification import channels_of, classes_of, classifier
from experiments.models import LeNetCIFAR10
from experiments.options import PaperOptions, Preset, paper_command, shorten
from experiments.runner import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(PaperOptions):
    """A ladder of dropout rates; plain SGD whose learning rate falls at --switch, the same for all replicas."""

    steps: int = 140_800
    every: int = 600
    burn_in: int = 10_000
    switch: int = 25_000
    C: float = 2_000.0
    coldest: float = 0.47
    hottest: float = 0.55
    learning_rate: float = 0.1
    """Learning rate of all replicas until --switch."""
    later_learning_rate: float = 0.01
    """Learning rate of all replicas from then on."""
    version: Literal["as_run", "table"] = "as_run"
    """The network that the paper's figure was made with, or the one that its table prints."""
    dataset: str = "cifar10"
    directory: Path = Path("runs/cifar10_dropout")


def preset(preset: Preset = "quick") -> Options:
    """Returns the options of a preset."""
    paper = Options(preset="paper")
    return paper if preset == "paper" else shorten(paper, 600, probe=128, curve=64)


def prepare(options: Options) -> Work:
    """Returns what is to be run."""
    data, dataset = datasets.load(options.dataset, data_dir=options.data_dir)
    mean = pixel_mean(data.train["image"])

    def network(*, rngs: nnx.Rngs) -> nnx.Module:
        lenet = LeNetCIFAR10(classes_of(data), channels=channels_of(data), version=options.version, rngs=rngs)
        return nnx.Sequential(Standardise(mean, size=32), lenet)

    fall = {options.switch: options.later_learning_rate / options.learning_rate}
    learning_rate = optax.piecewise_constant_schedule(options.learning_rate, fall)
    engine = jaxpt.Engine(
        classifier(network),
        lambda h: optax.sgd(learning_rate),
        jaxpt.Ladder(dropout_rate=options.rungs()),  # beta = q / (1 - q), q = 1 - p
        jaxpt.Independent(),  # each arm puts in its own
        every=options.every,
        burn_in=options.burn_in,
        batch_size=options.batch_size,
        probe=options.probe,
    )
    return Work("cifar10_dropout", engine, data, dataset)


def main(options: Options) -> None:
    """Runs the experiment."""
    runner.run(prepare(options), options)


if __name__ == "__main__":
    paper_command(main, preset)
