"""Tables and pictures of what `reproduce.py` saved; every number comes from its JSON files.

uv run benchmarks/reproduce_tables.py benchmarks/results/reproduce/quick
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from matplotlib.figure import Figure

import jaxpt
from experiments import diffusion, report
from jaxpt.diagnostics import interval, running_mean
from jaxpt.results import plots

BASELINE = report.BASELINE
COARSE = 200  # test images; curves on fewer are too noisy for first passages
NAMES = {"independent": "grid search", "tempering": "tempering", "auto": "DEO, C and ladder tuned", "pbt": "PBT"}


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel of figure 2 and what the paper's curves end at: the lowest test error of any replica, one run each."""

    name: str
    title: str
    experiment: str
    tempered: float
    """Test error in percent of the best replica with exchanges, read off the figure to about 0.05."""
    fixed: float
    """The same without exchanges."""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the experiment's preset takes."""


PANELS = {
    panel.name: panel
    for panel in (
        Panel("emnist_dropout", "LeNet, EMNIST, dropout", "emnist_dropout", 5.65, 5.80),
        Panel("emnist_learning_rate", "LeNet, EMNIST, learning rate", "emnist_learning_rate", 7.3, 7.4),
        Panel("cifar10_dropout", "LeNet, CIFAR-10, dropout", "cifar10_dropout", 22.3, 23.0),
        Panel("cifar10_learning_rate", "LeNet, CIFAR-10, learning rate", "cifar10_learning_rate", 29.5, 29.8),
        Panel("resnet20", "ResNet-20, CIFAR-10, learning rate", "resnet", 9.25, 9.5, {"depth": 20}),
        Panel("resnet44", "ResNet-44, CIFAR-10, learning rate", "resnet", 8.15, 8.35, {"depth": 44}),
    )
}


def read_rows(
    file: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any], device: str
) -> list[dict[str, Any]]:
    """Returns the rows of a file; none if there is no such file.

    Args:
        file: which.
        settings: what the rows must have been made with.
        defaults: of the settings: what a file had that was made before a setting was there.
        device: where the rows must have been made.

    Raises:
        ValueError: they were made with other settings or on another device.
    """
    if not file.exists():
        return []
    content = json.loads(file.read_text())
    now = json.loads(json.dumps({**settings, "device": device}))
    then = {**content["settings"], "device": content["device"]}
    then = {**{name: default for name, default in defaults.items() if name in settings}, **then}
    if differ := [name for name in now if now[name] != then.get(name)]:
        said = "; ".join(f"{name} was {then.get(name)}, now {now[name]}" for name in differ)
        raise ValueError(f"{file} holds another run ({said}): give another --out")
    return content["rows"]


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns {panel: its file's content} in the order of the figure, for the panels that there are."""
    found = {name: folder / f"{name}.json" for name in PANELS if (folder / f"{name}.json").exists()}
    return {name: json.loads(file.read_text()) for name, file in found.items()}


def by_seed(content: Mapping[str, Any], arm: str, score: str) -> dict[int, float]:
    """Returns {seed: test error in percent}; NaN where the arm diverged.

    Args:
        content: of a panel's file.
        arm: which.
        score: "best", or whose mixture: "all", "coldest 3".
    """
    rows = [row for row in content["rows"] if row["arm"] == arm]
    pick = {row["seed"]: row["test_error"] if score == "best" else row["mixture"][score]["test"] for row in rows}
    return {seed: np.nan if value is None else value for seed, value in pick.items()}


def paired(content: Mapping[str, Any], arm: str, score: str = "best", base: str = "best") -> np.ndarray:
    """Returns an arm's test errors minus those of the baseline's seeds, for the seeds that both have."""
    own, fixed = by_seed(content, arm, score), by_seed(content, BASELINE, base)
    return np.array([own[seed] - fixed[seed] for seed in sorted(own.keys() & fixed.keys())])


def reached(content: Mapping[str, Any], arm: str) -> np.ndarray:
    """Returns, for each seed, the steps until an arm's curve is at the error that the baseline's ends with.

    Both curves are running means over a twentieth of the run; NaN where the arm never gets there. Noise brings first
    passages forward, so compare with the baseline's own.
    """
    step = np.asarray(content["curve_step"])
    window = max(1, len(step) // 20)
    curves = {(row["arm"], row["seed"]): np.array(row["curve"], float) for row in content["rows"]}
    found = []
    for seed in sorted(seed for name, seed in curves if name == arm and (BASELINE, seed) in curves):
        own, fixed = (running_mean(curves[name, seed], window) for name in (arm, BASELINE))
        there = np.flatnonzero(own <= fixed[-1])
        found.append(step[there[0]] if len(there) else np.nan)
    return np.array(found, float)


def show(values: np.ndarray, sign: str = "") -> str:
    """Returns a mean and its 95 % interval in words."""
    if not len(values):
        return "-"
    mean, low, high = interval(values)
    if not np.isfinite(mean):
        return "diverged"
    ends = f" [{low:{sign}.2f}, {high:{sign}.2f}]" if np.isfinite(low) else " (one seed)"
    return f"{mean:{sign}.2f}{ends}"


def panel_table(panel: Panel, content: Mapping[str, Any]) -> str:
    """Returns one panel's table in Markdown, the paper's readings below it."""
    settings = content["settings"]
    arms = [arm for arm in NAMES if by_seed(content, arm, "best")]
    title = ("arm", "seeds", "best replica", "minus grid search", "mixture of all", "minus grid search's mixture")
    lines = [(*title, "steps to grid search's final error", "accepted")]
    for arm in arms:
        rows = [row for row in content["rows"] if row["arm"] == arm]
        steps = reached(content, arm)
        hits = steps[np.isfinite(steps)]
        coarse = (settings.get("curve") or COARSE) < COARSE
        when = f"{np.median(hits):,.0f} in {len(hits)} of {len(steps)}" if len(hits) else "never"
        rates = [row["acceptance_rate"] for row in rows if row["acceptance_rate"] is not None]
        lines.append(
            (
                NAMES[arm],
                str(len(rows)),
                show(np.array(list(by_seed(content, arm, "best").values()))),
                "-" if arm == BASELINE else show(paired(content, arm), "+"),
                show(np.array(list(by_seed(content, arm, "all").values()))),
                "-" if arm == BASELINE else show(paired(content, arm, "all", "all"), "+"),
                when if len(steps) and not coarse else "-",
                f"{np.mean(rates):.0%}" if rates else "-",
            )
        )
    times = f"{settings['steps']:,} steps of {settings['batch_size']}, exchanges every {settings['every']:,}"
    seconds = sum(row["seconds"] / row["seeds_at_once"] for row in content["rows"])
    return "\n".join(
        [
            f"### {panel.title}",
            "",
            f"{times} from step {settings['burn_in']:,}; {content['device']}, {seconds / 60:,.0f} minutes in all.",
            f"Data: {content['dataset']}.",
            f"The paper: {panel.tempered:g} with exchanges, {panel.fixed:g} without.",
            "",
            *report.markdown(lines),
        ]
    )


def overview(folder: Path) -> str:
    """Returns one line per panel: what each arm that was run gains over grid search, beside the paper's reading."""
    panels = read(folder)
    arms = [arm for arm in NAMES if arm != BASELINE and any(by_seed(panels[name], arm, "best") for name in panels)]
    title = ("test error, points", "seeds", "grid search", *(NAMES[arm] for arm in arms), "grid search's mixture")
    lines = [(*title, "tempering in the paper")]
    for name, content in panels.items():
        panel, fixed = PANELS[name], by_seed(content, BASELINE, "best")
        lines.append(
            (
                panel.title,
                str(len(fixed)),
                show(np.array(list(fixed.values()))),
                *(show(paired(content, arm), "+") for arm in arms),
                show(paired(content, BASELINE, "all"), "+"),
                f"{panel.tempered - panel.fixed:+.2f}",
            )
        )
    return "\n".join(report.markdown(lines))


def page(folder: Path) -> str:
    """Returns the tables of all of figure 2's panels in a folder, the overview first."""
    panels = [panel_table(PANELS[name], content) for name, content in read(folder).items()]
    if not panels:
        return "## Figure 2\n\nNothing yet."
    head = "Test error in percent, replica chosen on validation; 95 % intervals over seeds, differences paired by seed."
    return "\n\n".join(["## Figure 2", head, overview(folder), *panels])


def diffusion_page(content: Mapping[str, Any]) -> str:
    """Returns figure 1's table, with how it was made."""
    of, seeds, rows = content["settings"], content["seeds"], content["rows"]
    times = f"{of['steps']:,} steps of {of['batch_size']} after {of['burn_in']:,} of burn-in, {len(seeds)} seeds"
    made = f"{times}; {content['device']}, {sum(row['seconds'] for row in rows) / 60:,.0f} minutes in all."
    entries = {row["hyperparameter"]: row for row in rows}
    return f"## Figure 1\n\nLeNet. {made}\nData: {content['dataset']}.\n\n{diffusion.table(entries)}"


def draw_diffusion(content: Mapping[str, Any]) -> Figure:
    """Draws figure 1: how far weights move at three values of each hyperparameter, with 95 % intervals over seeds."""
    found = [
        jaxpt.Diffusion(
            row["hyperparameter"],
            np.array(row["values"]),
            np.array(row["steps"]),
            np.array(row["displacement"], float),  # None, where a replica diverged, is NaN
        )
        for row in content["rows"]
    ]
    return plots.diffusion_panels(found)


def draw(folder: Path) -> list[Path]:
    """Draws every panel's curves and intervals beside its JSON file, and returns the pictures."""
    files = []
    for name, content in read(folder).items():
        arms = [arm for arm in NAMES if by_seed(content, arm, "best")]
        curves = {
            NAMES[arm]: np.array([row["curve"] for row in content["rows"] if row["arm"] == arm], float).T
            for arm in arms
        }
        step = np.asarray(content["curve_step"])
        figure = plots.error_curves(
            step,
            curves,
            ylabel="test error %, best on validation",
            burn_in=content["settings"]["burn_in"],
            window=max(1, len(step) // 20),
        )
        files += [folder / f"{name}-curves.png", folder / f"{name}-intervals.png"]
        figure.savefig(files[-2])
        shared = sorted(set.intersection(*(set(by_seed(content, arm, "best")) for arm in arms)))
        scores = {"best replica": "best", "mixture of all": "all"}
        errors = {
            what: {NAMES[arm]: np.array([by_seed(content, arm, score)[seed] for seed in shared]) for arm in arms}
            for what, score in scores.items()
        }
        if not shared:
            files.pop()
            continue
        figure = plots.comparison_picture(
            errors, NAMES[BASELINE], what="test error %", better="lower", unit="points", title=PANELS[name].title
        )
        figure.savefig(files[-1])
    return files


def publish(folder: Path) -> None:
    """Prints a folder's tables, and writes them there as a page with pictures."""
    text, pictures = page(folder), draw(folder)
    if (file := folder / "diffusion.json").exists():
        content = json.loads(file.read_text())
        text = f"{diffusion_page(content)}\n\n{text}"
        pictures.insert(0, folder / "diffusion.png")
        draw_diffusion(content).savefig(pictures[0])
    print(text)
    if pictures:
        shown = "\n".join(f"![{file.stem}]({file.name})" for file in pictures)
        (folder / "README.md").write_text(f"# The figures of arXiv 1909.04013\n\n{text}\n\n{shown}\n")


def main(arguments: Sequence[str]) -> None:
    """Publishes the folders that are named."""
    for folder in map(Path, arguments):
        publish(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
