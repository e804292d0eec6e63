"""Does memory stay flat? A run with exchanges and checkpoints for an hour, its memory written down every ten seconds.

    uv run benchmarks/soak.py --minutes 60 --out benchmarks/results/cpu/soak.json

It ends itself by SIGTERM, as a cluster would, and says by how much host memory (resident set) and device memory (bytes
of live arrays) differ at most from what they were after five minutes, and by how much the median of the last five
minutes from that of the first five since. Host memory holds the trace, which has a row more for each period; how many
bytes that is (as of the last checkpoint) is written down too, and taken off nothing. Nor is what TensorStore's metrics,
which Orbax reads in every save, leave behind: about 45 KB a save with version 0.1.86.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import jaxpt
from benchmarks import record
from experiments import datasets
from experiments.classification import classifier
from experiments.models import SmallConvNet


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def live() -> int:
    """Bytes of all arrays on devices."""
    return sum(array.nbytes for array in jax.live_arrays() if not array.is_deleted())


def periods(directory: str) -> int:
    """Rows of the trace in the latest checkpoint."""
    steps = [int(path.stem) for path in Path(directory, "checksums").glob("*.json")]
    if not steps:
        return 0
    saved = Path(directory, "checkpoints", str(max(steps)), "_CHECKPOINT_METADATA").read_text()
    return int(json.loads(saved)["custom_metadata"]["periods"])


def row_bytes(engine: jaxpt.Engine, data: jaxpt.Data) -> int:
    """Bytes of one row of the trace."""
    row = engine.lower(engine.abstract(jax.random.key(0)), engine.placed.put(data), periods=1).out_info[1]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(row))


def flatness(later: list[int]) -> dict[str, float]:
    """How memory in these samples, ten seconds apart, differs from the first one, and medians of five minutes."""
    away = [abs(value / later[0] - 1) for value in later]
    return {
        "bytes_then": later[0],
        "bytes_at_the_end": later[-1],
        "largest_difference": max(away),
        "median_difference": statistics.median(later[-30:]) / statistics.median(later[:30]) - 1,
        "samples_beyond_2_percent": sum(value > 0.02 for value in away),
    }


def main() -> None:
    """Trains until time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="wall time, compilation included")
    parser.add_argument("--settle", type=float, default=5.0, help="minutes after which memory should be flat")
    parser.add_argument("--save-minutes", type=float, default=1.0, help="between checkpoints")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    data = datasets.digits()
    engine = jaxpt.Engine(
        classifier(SmallConvNet),
        lambda h: optax.sgd(h["learning_rate"], momentum=0.9),
        jaxpt.Ladder(learning_rate=jaxpt.geometric(0.01, 0.1, 8)),
        jaxpt.Tempering("auto", "deo", adapt_ladder=True, window=8),
        every=50,
        burn_in=2000,
        batch_size=64,
        fixed={"dropout_rate": 0.1},
    )
    directory = tempfile.mkdtemp()
    started, samples = time.monotonic(), []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(10):
            samples.append((time.monotonic() - started, resident(), live(), periods(directory)))
            if time.monotonic() - started > 60 * options.minutes:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        jaxpt.fit(
            engine,
            data.train,
            data.valid,
            steps=10**9,
            directory=directory,
            save_minutes=options.save_minutes,
            progress=False,
        )
    except jaxpt.Interrupted as end:
        print(end.message)
    over.set()
    total, row = periods(directory), row_bytes(engine, jaxpt.Data(data.train, data.valid))
    shutil.rmtree(directory)
    later = [sample for sample in samples if sample[0] >= 60 * options.settle]
    found = {name: flatness([sample[column] for sample in later]) for column, name in ((1, "host"), (2, "device"))}
    for name, of in found.items():
        print(
            f"{name}: {of['bytes_then'] / 2**20:.1f} MiB after {options.settle:g} minutes, at most "
            f"{of['largest_difference']:.2%} away from it in {options.minutes:g} "
            f"({of['samples_beyond_2_percent']} of {len(later)} samples beyond 2 %), "
            f"median {of['median_difference']:+.2%}"
        )
    found["host"] |= {"trace_bytes_then": row * later[0][3], "trace_bytes_at_the_end": row * total}
    rows = [
        {"seconds": seconds, "host": host, "device": device, "trace_bytes": row * saved}
        for seconds, host, device, saved in samples
    ]
    record.write(options.out, rows, periods=total, memory=found)


if __name__ == "__main__":
    main()
