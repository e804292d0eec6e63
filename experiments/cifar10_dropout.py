"""Dropout as a temperature, the paper's small network on CIFAR-10: figure 2 of arXiv 1909.04013.

uv run -m experiments.cifar10_dropout
"""

import dataclasses
from pathlib import Path

from experiments import lenets, runner
from experiments.options import Preset, paper_command, shorten
from experiments.runner import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(lenets.CIFAR10Options, lenets.DropoutOptions):
    """A ladder of dropout rates; plain SGD whose learning rate falls at --switch, the same for all replicas."""

    every: int = 600
    burn_in: int = 10_000
    C: float = 2_000.0
    coldest: float = 0.47
    hottest: float = 0.55
    directory: Path = Path("runs/cifar10_dropout")


def preset(preset: Preset = "quick") -> Options:
    """Returns the options of a preset."""
    paper = Options(preset="paper")
    return paper if preset == "paper" else shorten(paper, 600, probe=128, curve=64)


def prepare(options: Options) -> Work:
    """Returns what is to be run."""
    return lenets.prepare("cifar10_dropout", options)


def main(options: Options) -> None:
    """Runs the experiment."""
    runner.run(prepare(options), options)


if __name__ == "__main__":
    paper_command(main, preset)
