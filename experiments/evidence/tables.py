"""Tables of the evidence, from its JSON files: means over seeds and paired differences, with 95 % intervals."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.evidence.arms import file_name
from experiments.report import markdown
from jaxpt.diagnostics import interval


def values(file: Path, which: str, score: str) -> dict[str, float]:
    """Returns {seed: score} of an arm; NaN where all replicas have diverged."""
    held = json.loads(file.read_text())["seeds"]
    return {seed: one[which][score] if one["healthy"] else float("nan") for seed, one in held.items()}


def table(folder: Path, names: Sequence[str], score: str = "error", to: str = "grid-cosine") -> str:
    """Returns the table of one task and ladder."""
    rows: list[tuple[str, ...]] = [
        ("arm", "seeds", "best replica", "ensemble", "weighted", "best half", f"ensemble minus {to}")
    ]
    base = folder / file_name(to)
    for name in names:
        file = folder / file_name(name)
        cells = [cell(list(values(file, which, score).values())) for which in ("best", "all", "weighted", "half")]
        paired = "-"
        if base.exists() and base != file:
            own, other = values(file, "all", score), values(base, "all", score)
            shared = sorted(set(own) & set(other))
            if len(shared) > 1:
                paired = cell([own[seed] - other[seed] for seed in shared], "+.2f")
        rows.append((name, str(len(values(file, "best", score))), *cells, paired))
    return "\n".join(markdown(rows))


def cell(found: Sequence[float], form: str = ".2f") -> str:
    """Returns the mean over seeds and half its 95 % interval."""
    mean, low, high = interval(np.asarray(found))
    half = (high - low) / 2
    return f"{mean:{form}} ± {half:.2f}" if np.isfinite(half) else f"{mean:{form}}"
