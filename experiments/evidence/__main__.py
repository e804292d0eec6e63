"""Which rules pay: arms with equal compute on the same seeds, scored on the test split, one JSON file for each arm.

uv run -m experiments.evidence --task letters14 --ladder careless --arms grid grid-cosine tempering --seeds 10

A seed that a file holds already is not run again, so the same command goes on where it was stopped.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import jaxpt
from experiments import report
from experiments.evidence import arms, scores
from experiments.evidence.tables import picture, table
from experiments.evidence.tasks import TASKS, LadderName, Task, TaskName
from jaxpt.saving import files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Arms with equal compute on the same seeds."""

    task: TaskName = "digits"
    """What is trained."""
    ladder: LadderName = "careless"
    """careless: two decades of learning rates. placed: a factor of five around good ones."""
    arms: tuple[str, ...] = ("grid", "grid-cosine", "grid-cooldown", "tempering")
    """The arms; "?" lists them. "rate:0.19" is a deep ensemble of replicas that all have this rate."""
    seeds: int = 10
    """How many."""
    first_seed: int = 1000
    """The first of them, in a row."""
    at_once: int = 5
    """Seeds in one run."""
    replicas: int = 8
    """M."""
    data_dir: Path | None = None
    """Folder with the official files or with prepared sets."""
    directory: Path = Path("runs/evidence")
    """Where the files go."""


def main(options: Options) -> None:
    """Runs what is missing, and prints the table."""
    unknown = [name for name in options.arms if name not in arms.ARMS and not name.startswith("rate:")]
    if unknown:
        raise SystemExit(f"no arm {', '.join(unknown)}; there are: {', '.join(arms.ARMS)}, and rate:NUMBER")
    task = TASKS[options.task](options.ladder, options.data_dir)
    folder = options.directory / f"{options.task}-{options.ladder}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.arms:
        run(task, name, options, folder / arms.file_name(name))
    print(table(folder, list(options.arms)))
    picture(folder, list(options.arms)).savefig(folder / "errors.png")


def run(task: Task, name: str, options: Options, file: Path) -> None:
    """Runs the seeds of one arm that its file lacks."""
    if name.startswith("rate:"):
        engine = arms.at_rate(task, options.replicas, float(name.partition(":")[2]))
    else:
        engine = arms.ARMS[name](task, options.replicas)
    held: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"seeds": {}}
    wanted = range(options.first_seed, options.first_seed + options.seeds)
    missing = [seed for seed in wanted if str(seed) not in held["seeds"]]
    for begin in range(0, len(missing), options.at_once):
        some = missing[begin : begin + options.at_once]
        started = time.perf_counter()
        result = jaxpt.fit(
            engine, task.data.train, task.data.valid, steps=task.steps, seeds=some, description=name
        )  # fmt: skip
        found = scored(result, task)
        held["seeds"] |= {str(seed): one for seed, one in zip(some, found, strict=True)}
        about = {
            "task": options.task,
            "ladder": options.ladder,
            "arm": name,
            "dataset": task.dataset,
            "rates": [float(rate) for rate in engine.ladders["learning_rate"].values["learning_rate"]],
            "steps": task.steps,
            "every": engine.every,
            "burn_in": task.burn_in,
            "batch_size": task.batch_size,
            "search": None if engine.beginning is None else [engine.beginning.share, engine.beginning.factor],
            "cooldown": None if engine.ending is None else engine.ending.share,
            **arms.settings(engine),
            **report.provenance(),
        }
        files.write(file, json.dumps({**about, "seeds": dict(sorted(held["seeds"].items()))}, indent=1) + "\n")
        best = np.mean([one["best"]["error"] for one in found if one["healthy"]])
        every = np.mean([one["all"]["error"] for one in found if one["healthy"]])
        seconds = time.perf_counter() - started
        print(f"{file.stem}: seeds {some}: best {best:.2f}, ensemble {every:.2f} ({seconds:.0f} s)", flush=True)


def scored(result: jaxpt.Result, task: Task) -> list[dict[str, Any]]:
    """Returns the scores of each seed."""
    engine, state = result.engine, result.state
    rates = np.asarray(state.replicas.hyper["learning_rate"])
    valid, test = (split["label"] for split in (task.data.valid, task.data.test))
    of_valid = scores.probabilities(engine, state, task.data.valid["image"])
    of_test = scores.probabilities(engine, state, task.data.test["image"])
    info = jax.tree.map(np.asarray, result.trace.info)
    found = []
    for seed in range(len(rates)):
        one = scores.of_seed(of_valid[seed], valid, of_test[seed], test, rates[seed])
        offered = int(info.attempted[:, seed].sum())
        one["accepted"] = float(info.accepted[:, seed].sum() / offered) if offered else None
        found.append(one)
    return found


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
