"""Dropout as a temperature, LeNet on EMNIST-letters: figure 2 of arXiv 1909.04013.

uv run -m experiments.emnist_dropout
"""

import dataclasses
from pathlib import Path

from experiments import lenets, runner
from experiments.options import Preset, paper_command, shorten
from experiments.runner import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(lenets.EMNISTOptions, lenets.DropoutOptions):
    """A ladder of dropout rates; plain SGD whose learning rate falls at --switch, the same for all replicas."""

    every: int = 1_000
    burn_in: int = 25_000
    C: float = 500.0
    coldest: float = 0.05
    hottest: float = 0.12
    directory: Path = Path("runs/emnist_dropout")


def preset(preset: Preset = "quick") -> Options:
    """Returns the options of a preset."""
    paper = Options(preset="paper")
    return paper if preset == "paper" else shorten(paper, 500, probe=256, curve=256)


def prepare(options: Options) -> Work:
    """Returns what is to be run."""
    return lenets.prepare("emnist_dropout", options)


def main(options: Options) -> None:
    """Runs the experiment."""
    runner.run(prepare(options), options)


if __name__ == "__main__":
    paper_command(main, preset)
