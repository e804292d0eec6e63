"""Writes the tables of all pages again from the JSON files under benchmarks/results; a test compares them.

uv run benchmarks/tables.py

A table is between `<!-- table NAME -->` and `<!-- end -->`.
"""

import json
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import numpy as np

from benchmarks import networks, reproduce_tables, tuning
from experiments import report
from experiments.evidence import tables as of_arms

HOME = Path(__file__).resolve().parents[1]
RESULTS = HOME / "benchmarks" / "results"
THROUGHPUT = (  # later files have the later word
    "throughput-lenet.json",
    "throughput-lenet-repeat.json",
    "throughput-resnet20-batch32.json",
    "throughput-resnet20-batch32-repeat.json",
    "throughput-resnet20-batch128.json",
)
NETWORKS = {"lenet": "LeNet", "resnet20": "ResNet-20"}
VARIANTS = {
    "naive": "`jit(vmap(step))`",
    "stock": "jaxpt, stock layers",
    "own": "jaxpt's convolutions",
    "torch": "PyTorch, one after another",
}
SHOWN = (
    *(("lenet", 128, 4), ("lenet", 128, 8), ("lenet", 128, 16)),
    *(("resnet20", 32, 4), ("resnet20", 32, 8), ("resnet20", 128, 4)),
)
COMPILED = (
    ("TPU v5e", "cycles, millions, as estimated", "estimated_cycles", 10**6),
    ("TPU v5e", "temporaries, MB", "temporary_bytes", 10**6),
    ("H100", "kernels", "kernels", 1),
    ("H100", "temporaries, MB", "temporary_bytes", 10**6),
)
"""(device, what, its name in the rows, unit)."""
RULES = {
    "independent": "grid search",
    "tempering": "tempering, one random pair",
    "deo": "tempering, DEO",
    "auto": "tempering, DEO, C and ladder tuned",
    "pbt": "PBT",
}

WIDE_AND_NARROW = (
    ("LeNet, EMNIST", "emnist-wide", "emnist-decay"),
    ("digits", "digits-wide", "digits-decay"),
    ("digits", "digits", ""),
)
"""(task, folder of the comparison, folder of its grid with decaying rates)."""

DECAYING = ", each rate decaying"
SAME = (
    *("steps", "every", "batch_size", "coldest", "hottest"),
    *("spacing", "switch", "replicas", "dropout_rate", "momentum"),
)

TASKS = {
    "letters14-careless": "EMNIST letters at 14 x 14, rates 0.0064 to 0.64",
    "letters14-placed": "EMNIST letters at 14 x 14, rates 0.1 to 0.5",
    "letters-careless": "EMNIST letters, LeNet, rates 0.003 to 0.3",
    "letters-placed": "EMNIST letters, LeNet, rates 0.02 to 0.1",
    "cifar10-careless": "CIFAR-10, rates 0.003 to 0.3",
    "cifar10-placed": "CIFAR-10, rates 0.03 to 0.15",
    "digits-careless": "digits, rates 0.003 to 0.3",
    "digits-placed": "digits, rates 0.02 to 0.1",
}
"""{folder of the evidence: task and ladder}."""

PEERS = {
    "grid": "jaxpt, grid search",
    "auto_pair": "jaxpt, tempering, one random pair, C tuned",
    "auto": "jaxpt, tempering, DEO, C and ladder tuned",
    "pbt": "jaxpt, PBT",
    "torch_grid": "PyTorch, one replica after another",
    "torch_processes": "PyTorch, a process per core",
    "torch_func": "PyTorch, `torch.func.vmap`",
    "tune_pbt": "PyTorch in Ray Tune's PBT",
    "deo_code": "PyTorch in the published DEO code",
}


def load(name: str) -> Any:
    """Returns the content of a file under benchmarks/results."""
    return json.loads((RESULTS / name).read_text())


def throughput() -> str:
    """Returns how many times as fast as single steps in a row each variant is."""
    times: dict[tuple[str, int, int], dict[str, float]] = {}
    for name in THROUGHPUT:
        for row in load(f"cpu/{name}")["rows"]:
            place = row["model"], row["batch"], row["replicas"]
            times.setdefault(place, {})[row["variant"]] = 1 / row["time_ratio"]
    lines = [("network, minibatch", "M", *VARIANTS.values())]
    for place in SHOWN:
        model, batch, replicas = place
        found = (f"{times[place][v]:.1f}" if v in times[place] else "-" for v in VARIANTS)
        lines.append((f"{NETWORKS[model]}, {batch}", str(replicas), *found))
    return "\n".join(report.markdown(lines))


def compiled() -> str:
    """Returns what the compilers for devices that are not there made of a training step."""
    # Of single steps the build before: its dropout is the cheaper one for a single replica.
    columns = (("stock", "before"), ("stock", "now"), ("own", "now"), ("single", "before"))
    titles = ("stock layers, at first", "stock layers", "jaxpt's convolutions", "8 single steps, at first")
    lines = [("device, network", "a step of 8 replicas", *titles)]
    for device, name, measure, unit in COMPILED:
        content = load(f"compiled/{device.lower().split()[-1]}.json")
        rows = {(row["model"], row["variant"], row["label"]): row for row in content["rows"]}
        for model in dict.fromkeys(row["model"] for row in content["rows"]):
            found = [rows[model, variant, label] for variant, label in columns]
            # The steps of a single replica run one after another, in the same memory.
            times = [8 // row["replicas"] if measure != "temporary_bytes" else 1 for row in found]
            cells = [
                f"{row[measure] * n / unit:,.{2 if measure == 'estimated_cycles' else 0}f}"
                for row, n in zip(found, times, strict=True)
            ]
            lines.append((f"{device}, {NETWORKS[model]}", name, *cells))
    return "\n".join(report.markdown(lines))


def compiled_blocks() -> str:
    """Returns what XLA:TPU says of stacked residual blocks beside as many single steps."""
    rows = {(row["model"], row["variant"]): row for row in load("compiled/v5e-resnet.json")["rows"]}
    lines = [("network", "8 single steps", "8 stacked replicas, stock layers", "jaxpt's convolutions")]
    for model, shape in {"resnet20": (), **networks.BLOCKS}.items():
        single = 8 * rows[model, "single"]["estimated_cycles"]
        stacked = (rows.get((model, variant), {}).get("estimated_cycles") for variant in ("stock", "own"))
        cells = (f"{cycles / 1e6:.2f} ({cycles / single:.2f})" if cycles else "-" for cycles in stacked)
        name = "two blocks of " + " x ".join(map(str, shape)) if shape else NETWORKS[model]
        lines.append((name, f"{single / 1e6:.2f}", *cells))
    return "\n".join(report.markdown(lines))


def digits() -> str:
    """Returns the gain of exchanges on the digits."""
    summary = load("digits/summary.json")
    lines = [("arm", "test error", "95 % interval over seeds")]
    names = {"tempering": "tempering", "independent": "grid search, same seeds"}
    for arm, label in names.items():
        error = summary["arms"][arm]["test_error"]
        lines.append((label, f"{error['mean']:.2f} %", "{:.2f} to {:.2f}".format(*error["ci95"])))
    difference = summary["differences"]["tempering-independent"]
    ends = "{:+.2f} to {:+.2f}".format(*difference["ci95"])
    lines.append(("difference, paired by seed", f"{difference['mean']:+.2f} points", ends))
    return "\n".join(report.markdown(lines))


def wide(data: str) -> str:
    """Returns the test errors of each rule on a wide ladder, on seeds that did not choose the setting."""
    folders = f"{data}-wide", f"{data}-decay"
    constant, decayed = (load(f"{folder}/summary.json") for folder in folders)
    for name in ("seeds", "dataset"):
        if constant[name] != decayed[name]:
            raise ValueError(f"{' and '.join(folders)} have different {name}, so they cannot be paired")
    if missing := set(RULES) - set(constant["arms"]):
        raise ValueError(f"{folders[0]} lacks {', '.join(sorted(missing))}")
    of = [{name: summary["settings"].get(name) for name in SAME} for summary in (constant, decayed)]
    if of[0] != of[1]:
        raise ValueError(f"{' and '.join(folders)} differ: {of[0]} and {of[1]}")
    found = {"": constant["arms"], DECAYING: decayed["arms"]}
    arms = {RULES[rule] + what: of[rule] for what, of in found.items() for rule in RULES if rule in of}
    best = {name: np.array(arm["test_error"]["per_seed"], float) for name, arm in arms.items()}
    mixed = {name: np.array(arm["mixture"]["all"]["test_error"]["per_seed"], float) for name, arm in arms.items()}
    title = ("test error, %", "best replica", "minus grid search", "minus decaying grid", "mixture of all")
    lines = [(*title, "minus decaying grid's")]
    grid = RULES["independent"]
    for name in arms:
        differences = [
            "-" if name == base else reproduce_tables.show(of[name] - of[base], "+")
            for of, base in ((best, grid), (best, grid + DECAYING), (mixed, grid + DECAYING))
        ]
        shown = (
            reproduce_tables.show(best[name]),
            *differences[:2],
            reproduce_tables.show(mixed[name]),
            differences[2],
        )
        lines.append((name, *shown))
    return "\n".join(report.markdown(lines))


def reproduction(length: str) -> str:
    """Returns what each rule gains over grid search on the paper's panels, shortened to some length."""
    return reproduce_tables.overview(RESULTS / "reproduce" / length)


def evidence() -> str:
    """Returns the difference that exchanges make in every comparison, one row for each."""
    lines: list[tuple[str, ...]] = [
        ("test error, %", "seeds", "grid search", "tempering minus grid search", "tempering minus decaying grid")
    ]
    grid, tempering = "independent", "tempering"
    for title, folder, decaying in WIDE_AND_NARROW:
        summary = load(f"{folder}/summary.json")
        arms = {rule: errors_of(summary, rule) for rule in (grid, tempering)}
        decayed = "-"
        if decaying:
            other = load(f"{decaying}/summary.json")
            if other["seeds"] != summary["seeds"]:
                raise ValueError(f"{folder} and {decaying} have different seeds, so they cannot be paired")
            decayed = reproduce_tables.show(arms[tempering] - errors_of(other, grid), "+")
        settings = summary["settings"]
        of = f"{title}, learning rates {settings['coldest']} to {settings['hottest']}, {settings['steps']:,} steps"
        gain = reproduce_tables.show(arms[tempering] - arms[grid], "+")
        lines.append((of, str(len(summary["seeds"])), reproduce_tables.show(arms[grid]), gain, decayed))
    for length in ("fortieth", "quick"):
        for name, content in reproduce_tables.read(RESULTS / "reproduce" / length).items():
            fixed = reproduce_tables.by_seed(content, grid, "best")
            of = f"{reproduce_tables.PANELS[name].title}, {content['settings']['steps']:,} steps"
            gain = reproduce_tables.show(reproduce_tables.paired(content, tempering), "+")
            shown = reproduce_tables.show(np.array(list(fixed.values())))
            lines.append((of, str(len(fixed)), shown, gain, "-"))
    return "\n".join(report.markdown(lines))


def arms(folder: str) -> str:
    """Returns all arms of the evidence on one task and ladder."""
    return of_arms.table(RESULTS / "evidence" / folder)


def candidates() -> str:
    """Returns what rules without a search gain over a grid with the same cooldown, on three tasks with wide ladders."""
    folders = {"digits": "digits-careless", "small letters": "letters14-careless", "LeNet": "letters-careless"}
    return of_arms.candidates({title: RESULTS / "evidence" / folder for title, folder in folders.items()})


def recommended() -> str:
    """Returns what search, tempering and cooldown gain over grids on each task and ladder."""
    return of_arms.headline({title: RESULTS / "evidence" / folder for folder, title in TASKS.items()})


def errors_of(summary: Any, rule: str) -> np.ndarray:
    """Returns the test error of each seed under a rule, in percent; NaN for a seed that diverged."""
    return np.array(summary["arms"][rule]["test_error"]["per_seed"], float)


def peers() -> str:
    """Returns how fast each peer does the same work, and what comes of it: medians and means over seeds."""
    rows = load("cpu/peers.json")["rows"]
    lines: list[tuple[str, ...]] = [
        ("arm", "images/s", "times PyTorch's grid", "start-up, s", "diverged", "test error, %", "of the mixture, %")
    ]
    found = {name: own for name in PEERS if (own := [row for row in rows if row["arm"] == name])}
    # The work that was asked for: Ray Tune repeats some.
    rates = {
        name: statistics.median(row["steps"] * row["replicas"] * row["batch"] / row["seconds"] for row in own)
        for name, own in found.items()
    }
    for name, own in found.items():
        startup = statistics.median(row["startup_seconds"] for row in own)
        errors = [np.array([row[key] for row in own], float).mean() for key in ("test_error", "mixture_test_error")]
        times = f"{rates[name] / rates['torch_grid']:.1f}" if "torch_grid" in rates else "-"
        diverged = str(sum(row["diverged"] for row in own))
        shown = ("diverged" if np.isnan(error) else f"{error:.2f}" for error in errors)
        lines.append((PEERS[name], f"{rates[name]:,.0f}", times, f"{startup:.0f}", diverged, *shown))
    return "\n".join(report.markdown(lines))


def optimizers() -> str:
    """Returns which optimisers of optax work under a ladder of learning rates."""
    lines: list[tuple[str, ...]] = [("optimiser", "under a ladder", "loss, from -> best", "state")]
    for row in load("cpu/optimizers.json")["rows"]:
        outcome = {"works": "learns", "learns little": "trains, learns little"}.get(row["outcome"], row["outcome"])
        if "best" in row and row["best"] > row["start"]:
            outcome = "gets worse at these rates"
        if row["outcome"] == "refused":
            outcome = f"refused: {re.split(r' [(]|; |[.] ', row['why'].splitlines()[0])[0]}"
        scores = f"{row['start']:.2f} -> {row['best']:.3f}" if "best" in row else "-"
        state = "-" if row.get("remembers") is None else "the past rates" if row["remembers"] else "moments"
        lines.append((f"`{row['optimizer']}`", outcome, scores, state))
    return "\n".join(report.markdown(lines))


def tuned() -> str:
    """Returns what `jaxpt.tune` chose in each case, beside the fastest of all candidates."""
    return tuning.table(load("cpu/tuning.json")["rows"])


TABLES: dict[str, Callable[[], str]] = {
    "compiled": compiled,
    "compiled_blocks": compiled_blocks,
    "evidence": evidence,
    "recommended": recommended,
    "candidates": candidates,
    **{f"arms_{folder.replace('-', '_')}": partial(arms, folder) for folder in TASKS},
    "optimizers": optimizers,
    "peers": peers,
    "throughput": throughput,
    "tuned": tuned,
    "digits": digits,
    "digits_wide": partial(wide, "digits"),
    "emnist_wide": partial(wide, "emnist"),
    "reproduction": partial(reproduction, "quick"),
    "reproduction_fortieth": partial(reproduction, "fortieth"),
}


def renewed(text: str) -> str:
    """Returns a page with its tables made anew.

    Raises:
        ValueError: it asks for an unknown table, or does not end one.
    """

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"no table is called {name!r}; there are {', '.join(TABLES)}")
        return f"<!-- table {name} -->\n{TABLES[name]()}\n<!-- end -->"

    if text.count("<!-- table ") != text.count("<!-- end -->"):
        raise ValueError("every <!-- table NAME --> needs its <!-- end -->")
    return re.sub(r"<!-- table (?P<name>\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


PAGES = (
    HOME / "README.md",
    HOME / "experiments" / "README.md",
    HOME / "benchmarks" / "README.md",
    *sorted((HOME / "jaxpt" / "guide").glob("*.md")),
)
"""The pages with tables."""


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(renewed(page.read_text()))
