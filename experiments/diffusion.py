"""Which hyperparameters act like a temperature? Diffusion of a LeNet's weights: figure 1 of arXiv 1909.04013.

uv run -m experiments.diffusion
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import optax
from flax import nnx

import jaxpt
from experiments import datasets, report, runner
from experiments.augment import Standardise
from experiments.classification import channels_of, classes_of, classifier
from experiments.models import LeNetEMNIST
from experiments.options import DataOptions, Preset, paper_command, shorten
from jaxpt.results import plots
from jaxpt.saving import files

Name = Literal["learning_rate", "dropout_rate", "batch_size", "temperature", "weight_decay"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """Replicas that start from the same weights, at three values of ONE hyperparameter at a time.

    The paper states neither the values nor the length of its runs; here the network trains --burn-in steps, and then
    |W(t) - W(t0)| is recorded for --steps more.
    """

    hyperparameters: tuple[Name, ...] = ("learning_rate", "dropout_rate", "batch_size", "temperature", "weight_decay")
    """Which ones; a larger learning rate, dropout rate, Langevin temperature or weight decay counts as hotter, and a
    smaller minibatch."""
    steps: int = 60_000
    every: int = 1_000
    burn_in: int = 25_000
    seeds: int = 5
    learning_rate: float = 0.1
    """Learning rate, where it is not the one that varies."""
    dropout_rate: float = 0.05
    """Dropout rate, where it is not the one that varies."""
    own_burn_in: bool = False
    """Do the burn-in at each value, instead of at the coldest for all: W(t0) is then near each value's equilibrium."""
    directory: Path = Path("runs/diffusion")

    def check(self) -> None:
        """Checks what the verdict and the studies need, too."""
        super().check()
        if not self.hyperparameters:
            raise ValueError("--hyperparameters needs one at least")
        if self.steps % self.every or self.steps < 2 * self.every:
            raise ValueError(f"--steps {self.steps} must be a multiple of --every {self.every}, two records at least")
        if "batch_size" in self.hyperparameters and self.batch_size % 16:
            raise ValueError(
                f"--batch-size {self.batch_size} must be a multiple of 16, since a sixteenth of it is tried"
            )


class Study(NamedTuple):
    """One hyperparameter under study."""

    values: list[float]
    """Three values, coldest first."""
    optimizer: Callable[[Any], optax.GradientTransformation]
    """With everything but this hyperparameter as usual."""
    expected: str
    """What the paper says of it."""


def studies(options: Options) -> dict[str, Study]:
    """Returns {name: study} of all that can be studied."""
    rate = options.learning_rate

    def usual(h: Any) -> optax.GradientTransformation:
        return optax.sgd(rate)

    def decayed(h: Any) -> optax.GradientTransformation:
        return optax.chain(optax.add_decayed_weights(h["weight_decay"]), optax.sgd(rate))

    yes, no = "temperature-like", "not temperature-like"
    return {
        "learning_rate": Study([rate / 4, rate / 2, rate], lambda h: optax.sgd(h["learning_rate"]), yes),
        "dropout_rate": Study([0.05, 0.2, 0.4], usual, yes),
        "batch_size": Study([options.batch_size / n for n in (1, 4, 16)], usual, yes),
        "temperature": Study([1e-6, 4e-6, 1.6e-5], lambda h: jaxpt.langevin(rate, h["temperature"]), yes),
        "weight_decay": Study([1e-3, 1e-2, 3e-2], decayed, no),
    }


def preset(preset: Preset = "quick") -> Options:
    """Returns the options of a preset."""
    paper = Options(preset="paper")
    return paper if preset == "paper" else shorten(paper, 200)


def run(options: Options) -> dict[str, Any]:
    """Runs the experiment, prints a table, writes everything and returns the summary."""
    chosen = {name: studies(options)[name] for name in dict.fromkeys(options.hyperparameters)}
    directory = runner.make_directory(options.directory)
    data, dataset = datasets.load(options.dataset, data_dir=options.data_dir)

    def network(*, rngs: nnx.Rngs) -> nnx.Module:
        lenet = LeNetEMNIST(classes_of(data), channels=channels_of(data), rngs=rngs)
        return nnx.Sequential(Standardise(size=32), lenet)

    problem = classifier(network)

    def engine(name: str, study: Study) -> jaxpt.Engine:
        return jaxpt.Engine(
            problem,
            study.optimizer,
            jaxpt.Ladder(name=name, **{name: study.values}),
            jaxpt.Independent(),
            every=options.every,
            burn_in=options.burn_in,
            batch_size=options.batch_size,
            fixed={} if name == "dropout_rate" else {"dropout_rate": options.dropout_rate},
            placement=options.placed(),
        )

    found = {
        name: jaxpt.diffusion(
            engine(name, study),
            data.train,
            steps=options.steps,
            own_burn_in=options.own_burn_in,
            seeds=range(options.seeds),
            progress=None if options.progress else False,
        )
        for name, study in chosen.items()
    }
    summary = {
        "experiment": "diffusion",
        "dataset": dataset,
        **report.provenance(),
        "seeds": list(range(options.seeds)),
        "settings": report.chosen_options(options),
        "hyperparameters": {name: _entry(found[name], study) for name, study in chosen.items()},
    }
    if not jaxpt.placement.is_first():
        return summary
    files.write(directory / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    traces = {f"{name}/{what}": getattr(d, what) for name, d in found.items() for what in ("steps", "displacement")}
    np.savez_compressed(directory / "trace.npz", **traces)
    plots.diffusion_panels(list(found.values())).savefig(directory / "diffusion.png")
    print(f"diffusion on {dataset}\n\n{table(summary['hyperparameters'])}")
    print(f"\nwritten to {directory}: summary.json, trace.npz, diffusion.png")
    return summary


def main(options: Options) -> None:
    """Runs the experiment."""
    run(options)


def _entry(found: jaxpt.Diffusion, study: Study) -> dict[str, Any]:
    """Returns one hyperparameter's entry of the summary."""
    verdict = found.verdict()
    return {
        "values": found.values.tolist(),
        "found": verdict.answer,
        "expected": study.expected,
        "early_step": verdict.steps[0],
        "late_step": verdict.steps[1],
        "hotter_less_colder": {
            when: [
                {"mean": report.number(mean), "low": report.number(low), "high": report.number(high)}
                for mean, low, high in zip(verdict.difference[row], verdict.low[row], verdict.high[row], strict=True)
            ]
            for row, when in enumerate(("early", "late"))
        },
        "final_displacement": [report.number(d) for d in found.displacement[-1].mean(0)],
    }


def table(hyperparameters: Mapping[str, dict[str, Any]]) -> str:
    """Returns the verdicts as a table in Markdown: {hyperparameter: its entry of the summary}."""
    rows = [("hyperparameter", "values, coldest first", "distance from W(t0) at the end", "found", "the paper expects")]
    for name, entry in hyperparameters.items():
        values = ", ".join(f"{v:g}" for v in entry["values"])
        distances = ", ".join("diverged" if d is None else f"{d:.2f}" for d in entry["final_displacement"])
        rows.append((name, values, distances, entry["found"], entry["expected"]))
    return "\n".join(report.markdown(rows))


if __name__ == "__main__":
    paper_command(main, preset)
