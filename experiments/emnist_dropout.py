"""Dropout as a temperature, LeNet on EMNIST-letters: figure 2 of arXiv 1909.04013.

uv run -m experiments.emnist_dropout
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
from experiments.models import LeNetEMNIST
from experiments.options import PaperOptions, Preset, paper_command, shorten
from experiments.runner import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(PaperOptions):
    """A ladder of dropout rates; plain SGD whose learning rate falls at --switch, the same for all replicas."""

    steps: int = 351_200
    every: int = 1_000
    burn_in: int = 25_000
    switch: int = 62_000
    C: float = 500.0
    coldest: float = 0.05
    hottest: float = 0.12
    learning_rate: float = 0.1
    """Learning rate of all replicas until --switch."""
    later_learning_rate: float = 0.01
    """Learning rate of all replicas from then on."""
    head: Literal["rbf", "softmax"] = "rbf"
    """What gives the logits: squared distances to centres of the classes, or a dense layer."""
    directory: Path = Path("runs/emnist_dropout")


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
    return Work("emnist_dropout", engine, data, dataset)


def main(options: Options) -> None:
    """Runs the experiment."""
    runner.run(prepare(options), options)


if __name__ == "__main__":
    paper_command(main, preset)
