"""The learning rate as a temperature, LeNet on EMNIST-letters: figure 2 of arXiv 1909.04013.

uv run -m experiments.emnist_learning_rate
"""

import dataclasses
from pathlib import Path
from typing import Literal

import optax
from flax import nnx

import jaxpt
from experiments import datasets, runner
from experiments.augment import Standardise
from experiments.classification import channels_of, classes_of, classifier
from experiments.learning_rates import LearningRateOptions
from experiments.models import LeNetEMNIST
from experiments.options import Preset, paper_command, shorten
from experiments.runner import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(LearningRateOptions):
    """One learning rate for all replicas until --switch, then a ladder of learning rates.

    The ladder is that of the authors' code; the legend of their figure ends at 0.006 (--coldest 0.006).
    """

    steps: int = 351_200
    every: int = 1_000
    burn_in: int = 25_000
    switch: int = 62_000
    C: float = 60_000.0
    coldest: float = 0.007
    hottest: float = 0.012
    dropout_rate: float = 0.05
    """Dropout rate of all replicas."""
    head: Literal["rbf", "softmax"] = "rbf"
    """What gives the logits: squared distances to centres of the classes, or a dense layer."""
    directory: Path = Path("runs/emnist_learning_rate")


def preset(preset: Preset = "quick") -> Options:
    """Returns the options of a preset."""
    paper = Options(preset="paper")
    return paper if preset == "paper" else shorten(paper, 500, probe=256, curve=256)


def prepare(options: Options) -> Work:
    """Returns what is to be run."""
    data, dataset = datasets.load(options.dataset, data_dir=options.data_dir)

    def network(*, rngs: nnx.Rngs) -> nnx.Module:
        lenet = LeNetEMNIST(classes_of(data), channels=channels_of(data), head=options.head, rngs=rngs)
        return nnx.Sequential(Standardise(size=32), lenet)

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
    return Work("emnist_learning_rate", engine, data, dataset)


def main(options: Options) -> None:
    """Runs the experiment."""
    runner.run(prepare(options), options)


if __name__ == "__main__":
    paper_command(main, preset)
