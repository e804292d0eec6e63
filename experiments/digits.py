"""Learning-rate tempering against a grid search on handwritten digits that ship with scikit-learn.

uv run -m experiments.digits
"""

import dataclasses
from pathlib import Path

import optax
from flax import nnx
from jaxtyping import Array

import jaxpt
from experiments import datasets, runner
from experiments.models import SmallConvNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(runner.Options):
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
    dropout_rate: float = 0.1
    """Dropout rate of all replicas."""


def loss(model: nnx.Module, batch: dict) -> Array:
    """Cross-entropy of each image."""
    return jaxpt.cross_entropy(model(batch["image"]), batch["label"])


def error(model: nnx.Module, batch: dict) -> Array:
    """Whether each image is misclassified."""
    return jaxpt.errors(model(batch["image"]), batch["label"])


def main(options: Options) -> None:
    """Runs the experiment."""
    if options.coldest >= options.hottest:
        raise ValueError(f"--coldest {options.coldest} must be below --hottest {options.hottest}")
    engine = jaxpt.Engine(
        jaxpt.nnx_problem(SmallConvNet, loss, metrics={"error": error}),
        lambda h: optax.sgd(h["learning_rate"], momentum=options.momentum),
        jaxpt.Ladder(learning_rate=jaxpt.geometric(options.coldest, options.hottest, options.replicas)),
        jaxpt.Independent(),  # each arm puts in its own
        every=options.every,
        burn_in=options.burn_in,
        batch_size=options.batch_size,
        fixed={"dropout_rate": options.dropout_rate},
    )
    runner.run("digits", engine, datasets.digits(), options)


if __name__ == "__main__":
    runner.command(main, Options)
