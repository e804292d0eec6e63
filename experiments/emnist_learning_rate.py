"""The learning rate as a temperature, LeNet on EMNIST-letters: figure 2 of arXiv 1909.04013.

uv run -m experiments.emnist_learning_rate
"""

import dataclasses
from pathlib import Path

from experiments import lenets, runner
from experiments.options import Preset, paper_command, shorten
from experiments.runner import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(lenets.EMNISTOptions, lenets.FixedDropoutOptions):
    """One learning rate for all replicas until --switch, then a ladder of learning rates.

    The ladder is that of the authors' code; the legend of their figure ends at 0.006 (--coldest 0.006).
    """

    every: int = 1_000
    burn_in: int = 25_000
    C: float = 60_000.0
    coldest: float = 0.007
    hottest: float = 0.012
    dropout_rate: float = 0.05
    directory: Path = Path("runs/emnist_learning_rate")


def preset(preset: Preset = "quick") -> Options:
    """Returns the options of a preset."""
    paper = Options(preset="paper")
    return paper if preset == "paper" else shorten(paper, 500, probe=256, curve=256)


def prepare(options: Options) -> Work:
    """Returns what is to be run."""
    return lenets.prepare("emnist_learning_rate", options)


def main(options: Options) -> None:
    """Runs the experiment."""
    runner.run(prepare(options), options)


if __name__ == "__main__":
    paper_command(main, preset)
