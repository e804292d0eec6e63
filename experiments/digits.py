"""Learning-rate tempering against a grid search on handwritten digits that ship with scikit-learn.

uv run -m experiments.digits
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import optax
from jaxtyping import Array

import jaxpt
from experiments import datasets, runner
from experiments.classification import classifier
from experiments.learning_rates import falling
from experiments.models import SmallConvNet
from experiments.options import BaseOptions, command
from experiments.runner import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(BaseOptions):
    """Replicas of a small convolutional network on 1,797 handwritten digits, with exchanges and without."""

    steps: int = 1000
    every: int = 20
    burn_in: int = 200
    batch_size: int = 64
    C: float = 300.0
    seeds: int = 5
    directory: Path = Path("runs/digits")
    coldest: float = 0.01
    """Learning rate of the coldest rung."""
    hottest: float = 0.1
    """Learning rate of the hottest rung; the rungs between are spaced geometrically."""
    momentum: float = 0.9
    """Momentum of SGD; it stays with the replica in a swap."""
    decay: bool = False
    """Let every learning rate fall to zero along half a cosine, as one would without exchanges."""
    dropout_rate: float = 0.1
    """Dropout rate of all replicas."""


def prepare(options: Options) -> Work:
    """Returns what is to be run."""
    if options.coldest >= options.hottest:
        raise ValueError(f"--coldest {options.coldest} must be below --hottest {options.hottest}")

    def schedule(h: Mapping[str, Array], step: Array) -> dict[str, Array]:
        return {**h, "learning_rate": falling(h["learning_rate"], step, options.steps)}

    engine = jaxpt.Engine(
        classifier(SmallConvNet),
        lambda h: optax.sgd(h["learning_rate"], momentum=options.momentum),
        jaxpt.Ladder(learning_rate=jaxpt.geometric(options.coldest, options.hottest, options.replicas)),
        jaxpt.Independent(),  # each arm puts in its own
        every=options.every,
        burn_in=options.burn_in,
        schedule=schedule if options.decay else None,
        batch_size=options.batch_size,
        fixed={"dropout_rate": options.dropout_rate},
        probe=options.probe,
    )
    what = "digits from scikit-learn, 1,797 examples, a fixed split of 1,077 / 360 / 360"
    return Work("digits", engine, datasets.digits(), what)


def main(options: Options) -> None:
    """Runs the experiment."""
    runner.run(prepare(options), options)


if __name__ == "__main__":
    command(main, Options)
