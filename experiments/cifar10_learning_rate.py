"""The learning rate as a temperature, the paper's small network on CIFAR-10: figure 2 of arXiv 1909.04013.

uv run -m experiments.cifar10_learning_rate
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
from experiments.learning_rates import LearningRateOptions
from experiments.models import LeNetCIFAR10
from experiments.options import Preset, paper_command, shorten
from experiments.runner import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(LearningRateOptions):
    """One learning rate for all replicas until --switch, then a ladder of learning rates.

    The ladder is that of the authors' code; the legend of their figure says 0.002 to 0.018.
    """

    steps: int = 140_800
    every: int = 800
    burn_in: int = 25_000
    switch: int = 25_000
    C: float = 300_000.0
    coldest: float = 0.010
    hottest: float = 0.015
    dropout_rate: float = 0.4
    """Dropout rate of all replicas."""
    version: Literal["as_run", "table"] = "as_run"
    """The network that the paper's figure was made with, or the one that its table prints."""
    dataset: str = "cifar10"
    directory: Path = Path("runs/cifar10_learning_rate")


def preset(preset: Preset = "quick") -> Options:
    """Returns the options of a preset."""
    paper = Options(preset="paper")
    return paper if preset == "paper" else shorten(paper, 800, probe=128, curve=64)


def prepare(options: Options) -> Work:
    """Returns what is to be run."""
    data, dataset = datasets.load(options.dataset, data_dir=options.data_dir)
    mean = pixel_mean(data.train["image"])

    def network(*, rngs: nnx.Rngs) -> nnx.Module:
        lenet = LeNetCIFAR10(classes_of(data), channels=channels_of(data), version=options.version, rngs=rngs)
        return nnx.Sequential(Standardise(mean, size=32), lenet)

    engine = jaxpt.Engine(
        classifier(network),
        lambda h: optax.sgd(h["learning_rate"]),
        jaxpt.Ladder(learning_rate=options.rungs()),  # beta = 1 / learning rate
        jaxpt.Independent(),  # each arm puts in its own
        schedule=options.schedule,
        fixed={"dropout_rate": options.dropout_rate},
        every=options.every,
        burn_in=options.burn_in,
        batch_size=options.batch_size,
        probe=options.probe,
    )
    return Work("cifar10_learning_rate", engine, data, dataset)


def main(options: Options) -> None:
    """Runs the experiment."""
    runner.run(prepare(options), options)


if __name__ == "__main__":
    paper_command(main, preset)
