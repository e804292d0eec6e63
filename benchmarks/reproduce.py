"""The paper's figures again, with seeds, intervals and rivals: arXiv 1909.04013.

uv run benchmarks/reproduce.py --figure 2 --seeds 5                          # hours on a CPU; --budget MINUTES ends it
uv run benchmarks/reproduce.py --figure 2 --preset paper --seeds 8           # on an accelerator
uv run benchmarks/reproduce.py --figure 1 --seeds 3

Figure 2 has six panels. Each is trained under four rules from the same seeds: tempering as in the paper; DEO with C and
the ladder found during burn-in (auto); population based training (pbt); and grid search (independent). The replica
that counts is chosen on validation. Seeds train side by side in one program, --at-once of them. Every finished arm is
saved in its panel's JSON file, a running one in checkpoints under --work; whatever ends the command, the same command
goes on, and more --seeds are added to those that are there. Tables come at the end, or by `reproduce_tables.py`.
"""

import dataclasses
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import record, reproduce_tables
from benchmarks.reproduce_tables import PANELS, Panel
from experiments import diffusion, report, runner
from experiments.compare import EXPERIMENTS
from experiments.options import BaseOptions, Preset, RuleName
from jaxpt.diagnostics import acceptance_rate, round_trips

PanelName = Literal[
    "emnist_dropout", "emnist_learning_rate", "cifar10_dropout", "cifar10_learning_rate", "resnet20", "resnet44"
]
ARMS: tuple[RuleName, ...] = ("independent", "tempering", "auto", "pbt")
TIMES = ("steps", "every", "burn_in", "switch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is reproduced, and within what."""

    figure: Literal[1, 2] = 2
    """1: which hyperparameters make weights diffuse faster. 2: exchanges against fixed hyperparameters."""
    preset: Literal["quick", "paper"] = "quick"
    """The experiments' presets."""
    seeds: int = 5
    """Seeds of each arm; ResNets take at most --resnet-seeds."""
    resnet_seeds: int = 3
    """Seeds of the ResNets' arms."""
    at_once: int | None = None
    """Seeds that train in one program; all if not given."""
    budget: float | None = None
    """Minutes after which the command saves and ends."""
    panels: tuple[PanelName, ...] = tuple(PANELS)  # type: ignore[assignment]
    """Panels of figure 2, in the order of work."""
    arms: tuple[RuleName, ...] = ARMS
    """Arms, in the order of work."""
    shorten: float | None = None
    """Divide the paper's steps, period, burn-in and switch by this, instead of the quick preset's divisor."""
    batch_size: int | None = None
    """Examples in a minibatch, if not the preset's."""
    data_dir: Path | None = None
    """Folder with prepared data sets, as in the experiments."""
    out: Path | None = None
    """Folder of the JSON files; runs/reproduce/PRESET if not given."""
    work: Path = Path("runs/reproduce/work")
    """Folder of the checkpoints of what is running."""
    save_minutes: float = 4.0
    """Minutes between checkpoints."""
    devices: int | None = None
    """Devices that the replicas are spread over, as in the experiments."""
    progress: bool = True
    """Show progress bars, if stderr is a terminal."""

    def folder(self) -> Path:
        """Returns where the JSON files go."""
        return self.out or Path("runs/reproduce") / self.preset


def panel_options(panel: Panel, options: Options) -> Any:
    """Returns the experiment's options of a panel, as its preset says or with its times divided by --shorten."""
    preset, _ = EXPERIMENTS[panel.experiment]
    chosen = adjusted(partial(preset, **panel.arguments), options)
    return dataclasses.replace(chosen, save_minutes=options.save_minutes, rule=options.arms)


def adjusted(preset: Callable[[Preset], Any], options: Options) -> Any:
    """Returns an experiment's options as its preset says, with what is given here over them."""
    chosen = preset(options.preset)
    if options.shorten is not None:
        paper, names = preset("paper"), {field.name for field in dataclasses.fields(chosen)}
        times = {name: max(1, round(getattr(paper, name) / options.shorten)) for name in TIMES if name in names}
        chosen = dataclasses.replace(chosen, **times)
    if options.batch_size is not None:
        chosen = dataclasses.replace(chosen, batch_size=options.batch_size)
    return dataclasses.replace(chosen, data_dir=options.data_dir, devices=options.devices, progress=options.progress)


def reproduce_panel(panel: Panel, options: Options, count: int) -> None:
    """Runs what is missing of one panel, arm by arm, and saves each when it is done."""
    file = options.folder() / f"{panel.name}.json"
    chosen = panel_options(panel, options)
    settings = {
        name: v for name, v in report.chosen_options(chosen).items() if name not in ("rule", "seeds", "first_seed")
    }
    rows = reproduce_tables.read_rows(file, settings, defaults(chosen), report.environment()["device"])
    missing = {arm: [s for s in range(count) if (arm, s) not in done(rows)] for arm in options.arms}
    if not any(missing.values()):
        return
    _, prepare = EXPERIMENTS[panel.experiment]
    work = runner.placed(prepare(chosen), chosen)
    for arm, rule in runner.arms_rules(chosen).items():
        engine = dataclasses.replace(work.engine, rule=rule)
        for seeds in chunks(missing[arm], options.at_once):
            folder = options.work / options.preset / panel.name / f"{arm}-{'-'.join(map(str, seeds))}"
            given = dataclasses.replace(chosen, directory=folder.parent)
            result = runner.fit(engine, work.data, given, folder.name, seeds)
            mixtures = runner.mixture_errors(result, work.data, given)
            rows += [row(arm, seed, place, result, mixtures, given) for place, seed in enumerate(seeds)]
            rows.sort(key=lambda r: (options.arms.index(r["arm"]) if r["arm"] in options.arms else 99, r["seed"]))
            record.write(
                file,
                rows,
                seeds=sorted({r["seed"] for r in rows}),
                panel=panel.name,
                dataset=work.dataset,
                settings=settings,
                curve_step=np.asarray(result.trace.step).tolist(),
            )
            shutil.rmtree(folder, ignore_errors=True)
            print(f"{panel.name}: {arm}, seeds {seeds}, {result.seconds:.0f} s", flush=True)


def defaults(chosen: Any) -> dict[str, Any]:
    """Returns the options' own defaults."""
    return {field.name: field.default for field in dataclasses.fields(chosen)}


def done(rows: Sequence[dict[str, Any]]) -> set[tuple[str, int]]:
    """Returns which (arm, seed) there are."""
    return {(r["arm"], r["seed"]) for r in rows}


def chunks(seeds: Sequence[int], size: int | None) -> list[list[int]]:
    """Returns the seeds in groups of at most so many."""
    size = size or max(len(seeds), 1)
    return [list(seeds[start : start + size]) for start in range(0, len(seeds), size)]


def row(
    arm: str, seed: int, place: int, result: jaxpt.Result, mixtures: report.Mixtures, options: BaseOptions
) -> dict[str, Any]:
    """Returns what one seed of an arm came to; errors in percent."""
    best, info = result.best("error", seed=place), result.trace.info
    rate = acceptance_rate(info.attempted[:, place], info.accepted[:, place])
    trips = sum(round_trips(rung[:, place]).sum() for rung in result.trace.rung.values())
    return {
        "arm": arm,
        "seed": seed,
        "replica": best.replica,
        "test_error": report.number(report.percent(best, best.test)),
        "validation_error": report.number(report.percent(best, best.valid)),
        "mixture": {
            which: {split: report.number(100 * error[place]) for split, error in errors.items()}
            for which, errors in mixtures.items()
        },
        "acceptance_rate": report.number(rate),
        "round_trips": int(trips),
        "C": None if info.C is None else report.number(info.C[-1][place]),
        "steps": options.steps,
        "replica_images": result.replica_images // len(result.valid["energy"]),
        "seconds": round(result.seconds, 2),
        "seeds_at_once": len(result.valid["energy"]),
        "execution": str(result.execution),
        **{name: value for name, value in report.provenance().items() if name in ("date", "versions")},
        "curve": [None if np.isnan(v) else round(float(v), 3) for v in report.chosen_curve(result)[:, place]],
    }


def reproduce_diffusion(options: Options) -> None:
    """Runs what is missing of figure 1, one hyperparameter after another."""
    file = options.folder() / "diffusion.json"
    asked = adjusted(diffusion.preset, options)
    whole = max(2, round(asked.steps / asked.every)) * asked.every
    asked = dataclasses.replace(asked, seeds=options.seeds, steps=whole)
    asked.check()
    settings = {n: v for n, v in report.chosen_options(asked).items() if n != "hyperparameters"}
    rows = reproduce_tables.read_rows(file, settings, defaults(asked), report.environment()["device"])
    for name in asked.hyperparameters:
        if name in {r["hyperparameter"] for r in rows}:
            continue
        folder, started = options.work / options.preset / "diffusion" / name, time.perf_counter()
        summary = diffusion.run(dataclasses.replace(asked, hyperparameters=(name,), directory=folder))
        with np.load(folder / "trace.npz", allow_pickle=False) as trace:
            steps, moved = trace[f"{name}/steps"], trace[f"{name}/displacement"]
        entry = summary["hyperparameters"][name]
        times = np.searchsorted(steps, [entry["early_step"], entry["late_step"]])  # the verdict's own
        kept = np.union1d(np.linspace(0, len(steps) - 1, 60).round().astype(int), times)
        distances = np.where(np.isfinite(moved[kept]), moved[kept].round(4).astype(float), None)
        rows.append(
            {"hyperparameter": name, **entry}
            | {"steps": steps[kept].tolist(), "displacement": distances.tolist()}
            | {"seconds": round(time.perf_counter() - started, 1)}
        )
        record.write(file, rows, seeds=range(options.seeds), settings=settings, dataset=summary["dataset"])


def ends_after(minutes: float | None) -> None:
    """Lets this process be asked to end after so many minutes, as SIGTERM would ask it."""

    def end(*_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 5.0)  # again: raised while JAX collects garbage, it would be lost
        raise jaxpt.Interrupted("the budget is spent, or a signal came, between two arms")

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    if minutes is not None:
        signal.setitimer(signal.ITIMER_REAL, 60 * minutes)


def main(options: Options) -> None:
    """Does what is missing, within the budget, and prints the tables of what there is."""
    jaxpt.use_all_cores(options.devices)
    code: str | int | None = 0
    try:
        ends_after(options.budget)
        if options.figure == 1:
            reproduce_diffusion(options)
        else:
            for name in options.panels:
                seeds = min(options.seeds, options.resnet_seeds) if name.startswith("resnet") else options.seeds
                reproduce_panel(PANELS[name], options, seeds)
    except jaxpt.Interrupted as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        code = stopped.code
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    reproduce_tables.publish(options.folder())
    raise SystemExit(code)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
