"""The learning rate as a temperature, the paper's small network on CIFAR-10: figure 2 of arXiv 1909.04013.

uv run -m experiments.cifar10_learning_rate
"""

import dataclasses
from pathlib import Path

from experiments import lenets, runner
from experiments.options import Preset, paper_command, shorten
from experiments.runner import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(lenets.CIFAR10Options, lenets.FixedDropoutOptions):
    """One learning rate for all replicas until --switch, then a ladder of learning rates.

    The ladder is that of the authors' code; the legend of their figure says 0.002 to 0.018.
    """

    every: int = 800
    burn_in: int = 25_000
    C: float = 300_000.0
    coldest: float = 0.010
    hottest: float = 0.015
    dropout_rate: float = 0.4
    directory: Path = Path("runs/cifar10_learning_rate")


def preset(preset: Preset = "quick") -> Options:
    """Returns the options of a preset."""
    paper = Options(preset="paper")
    return paper if preset == "paper" else shorten(paper, 800, probe=128, curve=64)


def prepare(options: Options) -> Work:
    """Returns what is to be run."""
    return lenets.prepare("cifar10_learning_rate", options)


def main(options: Options) -> None:
    """Runs the experiment."""
    runner.run(prepare(options), options)


if __name__ == "__main__":
    paper_command(main, preset)
