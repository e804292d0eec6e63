"""Rules against each other on one experiment: the same seeds, equal compute, one table and one figure with intervals.

uv run -m experiments.compare --experiment digits --rules tempering deo pbt independent --seeds 5
uv run -m experiments.compare --experiment resnet --depth 44 --preset paper     # any option of the experiment follows
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure

import jaxpt
from experiments import (
    cifar10_dropout,
    cifar10_learning_rate,
    digits,
    emnist_dropout,
    emnist_learning_rate,
    language_model,
    report,
    resnet,
    runner,
)
from experiments.options import BaseOptions, RuleName, paper_command
from experiments.runner import Work
from jaxpt.results import plots

Name = Literal[
    "digits",
    "emnist_dropout",
    "emnist_learning_rate",
    "cifar10_dropout",
    "cifar10_learning_rate",
    "resnet",
    "language_model",
]
EXPERIMENTS: Mapping[Name, tuple[Callable[..., Any], Callable[[Any], Work]]] = {
    "digits": (digits.Options, digits.prepare),
    "emnist_dropout": (emnist_dropout.preset, emnist_dropout.prepare),
    "emnist_learning_rate": (emnist_learning_rate.preset, emnist_learning_rate.prepare),
    "cifar10_dropout": (cifar10_dropout.preset, cifar10_dropout.prepare),
    "cifar10_learning_rate": (cifar10_learning_rate.preset, cifar10_learning_rate.prepare),
    "resnet": (resnet.preset, resnet.prepare),
    "language_model": (language_model.Options, language_model.prepare),
}
"""{name: (what makes its options, what prepares it)}."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Rules against each other on one experiment, whose own options may follow."""

    experiment: Name = "digits"
    """What is trained."""
    rules: tuple[RuleName, ...] = ("tempering", "deo", "pbt", "independent")
    """The arms; differences are taken to independent, the grid search."""
    seeds: int = 5
    """How many seeds; the same for every arm."""


def main(work: Work, options: BaseOptions) -> None:
    """Runs all arms, then draws and says how they compare."""
    summary = runner.run(work, options)
    if not jaxpt.placement.is_first():
        return
    file = options.directory / "comparison.png"
    picture(summary).savefig(file)
    used = {arm["replica_images"] for arm in summary["arms"].values()}
    print(f"compute: {' or '.join(f'{u:,}' for u in sorted(used))} training images per arm, all replicas and seeds")
    print(f"the figure is {file}")


def picture(summary: dict[str, Any]) -> Figure:
    """Draws a summary's test errors, and their differences to the baseline's."""
    errors: dict[str, dict[str, Sequence[float | None]]] = {"best replica": {}}
    for name, arm in summary["arms"].items():
        errors["best replica"][name] = arm["test_error"]["per_seed"]
        for which, error in arm["mixture"].items():
            errors.setdefault(f"mixture of {which}", {})[name] = error["test_error"]["per_seed"]
    found = {which: {name: _numbers(values) for name, values in arms.items()} for which, arms in errors.items()}
    return plots.comparison_picture(found, report.BASELINE, what="test error %", better="lower", unit="points")


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


def start(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison from the command line (or from `arguments`); a mistake ends in one line and exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked_for_help = [argument for argument in given if argument in ("-h", "--help")]
    own = [argument for argument in given if argument not in asked_for_help]
    chosen, rest = tyro.cli(Options, args=own, return_unknown_args=True, add_help=False)
    preset, prepare = EXPERIMENTS[chosen.experiment]
    if any(argument.partition("=")[0] == "--rule" for argument in rest):
        print("error: --rule is for one experiment by itself; a comparison takes --rules", file=sys.stderr)
        raise SystemExit(2)
    if asked_for_help:
        with contextlib.suppress(SystemExit):
            tyro.cli(Options, args=["--help"], description=__doc__)
        print(f"\nOptions of --experiment {chosen.experiment}, which may follow; for --rule there is --rules:\n")
    defaults = ["--directory", str(Path("runs/compare") / chosen.experiment)]
    fixed = ["--rule", *chosen.rules, "--seeds", str(chosen.seeds)]
    paper_command(
        lambda options: main(prepare(options), options), preset, [*defaults, *rest, *fixed, *asked_for_help[:1]]
    )


if __name__ == "__main__":
    start()
