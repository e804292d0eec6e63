"""What every benchmark's JSON file says besides its rows: how they were made, on what, when."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import report
from jaxpt.saving import files


def write(out: Path | None, rows: Sequence[dict[str, Any]], *, seeds: Sequence[int] = (0,), **more: Any) -> None:
    """Writes {"command", "seeds", "date", "device", "versions", ..., "rows"} and makes the folders above.

    Args:
        out: the file; None: nothing is written.
        rows: what was measured.
        seeds: of all random numbers: weights, data, minibatches.
        **more: what else holds for all rows.
    """
    if out is None:
        return
    content = {
        **report.provenance(),
        "seeds": list(seeds),
        **more,
        "rows": list(rows),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write(out, json.dumps(content, indent=1) + "\n")
