"""The learning rate as a temperature, ResNet-20 and ResNet-44 on CIFAR-10: figure 2 of arXiv 1909.04013.

uv run -m experiments.resnet --depth 20
"""

import dataclasses
from pathlib import Path
from typing import Literal

import optax
from flax import nnx

import jaxpt
from experiments import datasets, runner
from experiments.augment import Augment, Standardise, pixel_mean
from experiments.classification import channels_of, classes_of, classifier
from experiments.learning_rates import LearningRateOptions
from experiments.models import ResNet
from experiments.options import Preset, paper_command, shorten
from experiments.runner import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(LearningRateOptions):
    """One learning rate for all replicas until --switch, then a ladder of learning rates; random crops and flips.

    The ladder is that of the authors' code; the legends of their figure say 0.009 to 0.018 for ResNet-20, 0.005 to 0.05
    for ResNet-44. The quick preset takes smaller minibatches and samples: on a CPU a step on 128 images takes seconds.
    """

    depth: int = 20
    """Layers with weights, 6n+2."""
    steps: int = 64_000
    every: int = 300
    burn_in: int = 32_000
    switch: int = 32_000
    C: float = 20.0
    coldest: float = 0.009
    hottest: float = 0.014
    momentum: float = 0.9
    """Momentum of SGD; it stays with the replica in a swap."""
    weight_decay: float = 1e-4
    """Strength of L2, added to the gradient."""
    version: Literal["preactivation", "original"] = "preactivation"
    """The network that the paper's figure was made with, or that of He et al. 2016."""
    batch_statistics: bool = False
    """Normalise by the batch's statistics in evaluation too, as the paper's code does; both presets do not."""
    dataset: str = "cifar10"
    directory: Path = Path("runs/resnet")


def preset(preset: Preset = "quick", depth: int = 20) -> Options:
    """Returns the options of a preset."""
    deep = depth > 20
    paper = Options(preset="paper", depth=depth, C=30.0 if deep else 20.0, directory=Path(f"runs/resnet{depth}"))
    if preset == "paper":
        return paper
    scored = 16 if deep else 32
    less = {"batch_size": 8 if deep else 16, "probe": scored, "curve": scored, "sample": 500}
    return shorten(paper, 600 if deep else 300, **less)


def prepare(options: Options) -> Work:
    """Returns what is to be run."""
    data, dataset = datasets.load(options.dataset, data_dir=options.data_dir)
    mean = pixel_mean(data.train["image"])

    def network(*, rngs: nnx.Rngs) -> nnx.Module:
        resnet = ResNet(
            options.depth,
            classes_of(data),
            channels=channels_of(data),
            version=options.version,
            batch_statistics=options.batch_statistics,
            rngs=rngs,
        )
        return nnx.Sequential(Standardise(mean), Augment(rngs=rngs), resnet)

    engine = jaxpt.Engine(
        classifier(network),
        lambda h: optax.chain(
            optax.add_decayed_weights(options.weight_decay),
            optax.sgd(h["learning_rate"], momentum=options.momentum),
        ),
        jaxpt.Ladder(learning_rate=options.rungs()),  # beta = 1 / learning rate
        jaxpt.Independent(),  # each arm puts in its own
        schedule=options.schedule,
        every=options.every,
        burn_in=options.burn_in,
        batch_size=options.batch_size,
        probe=options.probe,
    )
    return Work(f"resnet{options.depth}", engine, data, dataset)


def main(options: Options) -> None:
    """Runs the experiment."""
    runner.run(prepare(options), options)


if __name__ == "__main__":
    paper_command(main, preset)
