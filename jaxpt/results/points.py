"""The points of a grid search with their scores, as rows of a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpt.core.grid import is_grid
from jaxpt.results.record import Record


def points(result: Record) -> list[dict[str, Any]] | None:
    """Returns a row for each point of a grid, the lowest validation energy first; scores are means over seeds.

    A row holds "point" (the rung), "hyper" (the values of the ladders), "valid" and "test" (scores at the end; not
    finite where a replica of any seed has diverged). None if no ladder is a grid, or if the rule moves replicas or
    their values, so that scores do not belong to a point.
    """
    engine = result.engine
    if engine.rule.exchanges or not any(is_grid(ladder) for ladder in engine.ladders.values()):
        return None
    columns = {name: row for ladder in engine.ladders.values() for name, row in ladder.values.items()}
    splits = {
        split: {
            name: np.asarray(v, np.float64).reshape(-1, engine.num_replicas).mean(0).astype(np.float32)
            for name, v in scores.items()
        }
        for split, scores in (("valid", result.valid), ("test", result.test))
    }
    energy = splits["valid"]["energy"]
    return [
        {
            "point": int(rung),
            "hyper": {name: np.asarray(row)[rung] for name, row in columns.items()},
            **{split: {name: v[rung] for name, v in scores.items()} for split, scores in splits.items()},
        }
        for rung in np.argsort(np.where(np.isfinite(energy), energy, np.inf), kind="stable")
    ]


def titles(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the titles of the columns of such rows."""
    one = rows[0]
    scores = [f"{split} {name}" for split, key in (("validation", "valid"), ("test", "test")) for name in one[key]]
    return [title.replace("_", " ") for title in ("point", *one["hyper"], *scores)]


def cells(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Returns the numbers of such rows, in the order of `titles`."""
    return [[row["point"], *(v for key in ("hyper", "valid", "test") for v in row[key].values())] for row in rows]
