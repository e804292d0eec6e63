"""Tables of the evidence, from its JSON files: means over seeds and paired differences, with 95 % intervals."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.evidence.arms import file_name
from experiments.report import markdown
from jaxpt.diagnostics import interval
from jaxpt.results.plots import comparison_picture

WORDS = {
    "grid": "grid, constant rates",
    "grid-cosine": "grid, cosine",
    "grid-cooldown": "grid, cooldown",
    "tempering": "search, tempering, cooldown",
    "search, grid-cooldown": "search, no exchange, cooldown",
    "search, grid-cosine": "search, no exchange, cosine",
    "scaled-1": "tempering, cooldown",
    "C-100": "tempering with C = 100, cooldown",
    "auto-deo": 'tempering with "auto", DEO, cooldown',
    "pbt": "PBT",
    "pbt-cooldown": "PBT, cooldown",
    "pbt-tuned": "PBT, long periods, cooldown",
    "copybest-cooldown": "copying the best, cooldown",
    "swa": "grid, weights averaged over the last 30 %",
    "middle-cosine": "all at the ladder's middle, cosine",
}
"""{arm: words in a table}, in their order."""
CANDIDATES = {
    "scaled-1": "energies in units of their spread (the default)",
    "scaled-1-windows": "the same, even and odd pairs in windows",
    "scaled-1-averages": "the same, energies of averaged weights",
    "scaled-1-coldsteps": "the same, energies after five cold steps",
    "tracked-0.5": "C follows an acceptance of 0.5",
    "tracked-0.25": "C follows an acceptance of 0.25",
    "tracked-0.1": "C follows an acceptance of 0.1",
    "tracked-0.25-windows": "C follows an acceptance of 0.25, windows",
    "auto-deo": '`Tempering("auto", "deo")`, tuned in burn-in',
    "C-10": "C = 10",
    "C-100": "C = 100",
    "C-1000": "C = 1,000",
    "sort": "neighbours sorted without chance",
}
"""{rule that exchanges without a search: words in a table}; all with the same cooldown."""
GROUPS = {"best": "best replica", "all": "mean of all", "weighted": "weighted mean"}
"""{scored: title}."""


def values(file: Path, which: str, score: str) -> dict[str, float]:
    """Returns {seed: score} of an arm; NaN where all replicas have diverged."""
    held = json.loads(file.read_text())["seeds"]
    return {seed: one[which][score] if one["healthy"] else float("nan") for seed, one in held.items()}


def difference(folder: Path, arm: str, other: str, which: str, score: str) -> np.ndarray:
    """Returns an arm's scores minus another's, of the seeds that both have."""
    own, base = (values(folder / file_name(name), which, score) for name in (arm, other))
    return np.array([own[seed] - base[seed] for seed in sorted(set(own) & set(base))])


def found(folder: Path) -> list[str]:
    """Returns the arms that have a file, in the order of `WORDS`; deep ensembles at a rate come last."""
    known = [name for name in WORDS if (folder / file_name(name)).exists()]
    return known + [f"rate:{file.stem.removeprefix('rate-')}" for file in sorted(folder.glob("rate-*.json"))]


def table(folder: Path, names: Sequence[str] | None = None) -> str:
    """Returns the table of one task and ladder."""
    has = lambda name: (folder / file_name(name)).exists()  # noqa: E731
    rivals = {"best": "grid-cosine", "all": "grid-cooldown", "weighted": "grid-cooldown"}
    title = ["test error, %"]
    for which, group in GROUPS.items():
        title += [group, f"minus {WORDS[rivals[which]]}"]
    rows: list[tuple[str, ...]] = [(*title, "weighted: likelihood", "calibration, %")]
    for name in names or found(folder):
        file, cells = folder / file_name(name), []
        for which, rival in rivals.items():
            cells.append(plus_minus(list(values(file, which, "error").values())))
            paired = name != rival and has(rival)
            cells.append(between(difference(folder, name, rival, which, "error")) if paired else "-")
        nll, ece = (np.mean(list(values(file, "weighted", score).values())) for score in ("nll", "ece"))
        rows.append((in_words(name), *cells, f"{nll:.3f}", f"{ece:.1f}"))
    return "\n".join(markdown(rows))


def in_words(name: str) -> str:
    """Returns what an arm is called in a table."""
    return WORDS.get(name, f"all at the rate {name[5:]}, cosine (twice the compute)" if ":" in name else name)


def candidates(folders: Mapping[str, Path]) -> str:
    """Returns what each rule without a search gains over no exchange at all, paired over the seeds that both have."""
    title, rows = ["error, % points, minus grid with the same cooldown"], []
    for task in folders:
        title += [f"{task}: best replica", "mean of all", "weighted mean"]  # a dash: not run
    for name, words in CANDIDATES.items():
        has = {task: (folder / file_name(name)).exists() for task, folder in folders.items()}
        gains = [
            between(difference(folder, name, "grid-cooldown", which, "error")) if has[task] else "-"
            for task, folder in folders.items()
            for which in GROUPS
        ]
        if any(has.values()):
            rows.append((words, *gains))
    return "\n".join(markdown([tuple(title), *rows]))


def headline(folders: Mapping[str, Path]) -> str:
    """Returns what the recommended settings gain, one row for each task and ladder."""
    rows: list[tuple[str, ...]] = [
        (
            "test error, %",
            "seeds",
            "best replica",
            "minus grid, cosine",
            "minus grid, constant rates",
            "mean of all",
            "minus grid, cooldown",
            "minus that grid, both weighted",
        )
    ]
    for title, folder in folders.items():
        best, every = (values(folder / "tempering.json", which, "error") for which in ("best", "all"))
        pairs = (("grid-cosine", "best"), ("grid", "best"), ("grid-cooldown", "all"), ("grid-cooldown", "weighted"))
        gains = [between(difference(folder, "tempering", rival, which, "error")) for rival, which in pairs]
        shown = [f"{np.mean(list(one.values())):.2f}" for one in (best, every)]
        rows.append((title, str(len(best)), shown[0], *gains[:2], shown[1], *gains[2:]))
    return "\n".join(markdown(rows))


def picture(folder: Path, names: Sequence[str] | None = None) -> Figure:
    """Draws the test errors of one task and ladder, and their differences to the grid of cosines.

    Only the seeds that all arms have; without that grid there are no differences.
    """
    arms = list(names or found(folder))
    held = {name: {which: values(folder / file_name(name), which, "error") for which in GROUPS} for name in arms}
    seeds = sorted(set.intersection(*(set(own["best"]) for own in held.values())))
    rows = {
        title: {in_words(name): np.array([own[which][seed] for seed in seeds]) for name, own in held.items()}
        for which, title in GROUPS.items()
    }
    return comparison_picture(rows, in_words("grid-cosine"), what="test error, %", better="lower", unit="points")


def plus_minus(found: Sequence[float]) -> str:
    """Returns a mean and half the width of its interval."""
    mean, low, high = interval(np.asarray(found))
    return f"{mean:.2f} ± {(high - low) / 2:.2f}" if np.isfinite(low) else f"{mean:.2f}"


def between(found: np.ndarray) -> str:
    """Returns a mean difference and its interval."""
    mean, low, high = interval(found)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" if np.isfinite(low) else f"{mean:+.2f} (one seed)"
