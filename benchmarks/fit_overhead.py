"""What `fit` costs over the bare engine: progress bar, callback, JSON lines, TensorBoard, checkpoint.

uv run benchmarks/fit_overhead.py --model lenet --replicas 8 --batch 128 --every 20 --periods 100 --out FILE.json

The same periods of the same program run by turns: `Engine.run` in one dispatch, `fit` with nothing on, and `fit` with
everything on, its bar on a pseudo-terminal. Times of `fit` are those of its loop, as its callbacks and `Result.seconds`
say them: what comes before, compilation and opening the directory, is there once however long a run is. So is the last
checkpoint, which has a row of its own; others come every ten minutes. Overhead is the median over the rounds of the
ratio to the bare run of the same round.
"""

import argparse
import contextlib
import os
import pty
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import networks, record
from experiments import report


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Makes a pseudo-terminal of stderr, read as fast as it is written."""
    reader, writer = pty.openpty()

    def drain() -> None:
        with contextlib.suppress(OSError):  # its other end is closed
            while os.read(reader, 65536):
                pass

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    with os.fdopen(writer, "w") as screen, contextlib.redirect_stderr(screen):
        assert screen.isatty()
        yield
    thread.join(1.0)
    os.close(reader)


def runs(options: argparse.Namespace) -> list[Callable[[], dict[str, float]]]:
    """Returns functions that run all the periods and return {variant: seconds}."""
    engine = jaxpt.Engine(
        networks.problem(options.model, jaxpt.conv_general_dilated),
        networks.optimizer,
        jaxpt.Ladder(learning_rate=jaxpt.geometric(0.005, 0.01, options.replicas)),
        jaxpt.Tempering(1.0),
        every=options.every,
        batch_size=options.batch,
        fixed=networks.fixed(options.model),
    )
    train = networks.images(options.model, max(options.batch, 1024))
    valid = jax.tree.map(lambda leaf: leaf[: options.validation], train)
    placed = engine.placed.put(jaxpt.Data(train, valid))
    steps, room = options.every * options.periods, 64 if options.periods <= 40 * 64 else 1024

    def bare() -> dict[str, float]:
        state = jax.block_until_ready(engine.init(jax.random.key(0)))
        started = time.perf_counter()
        for done in range(0, options.periods, room):  # the program that `fit` runs has so much room for rows
            count = min(room, options.periods - done)
            state, trace = engine.run(state, placed, periods=count, room=room, donate=True)
        jax.block_until_ready((state.replicas.params, trace))
        return {"Engine.run": time.perf_counter() - started}

    def plain() -> dict[str, float]:
        return {"fit": jaxpt.fit(engine, train, valid, steps=steps, progress=False).seconds}

    def everything() -> dict[str, float]:
        looks: list[float] = []

        def look(status: jaxpt.Status) -> bool:
            looks.append(status.seconds)
            return False

        with tempfile.TemporaryDirectory() as directory, terminal():
            options = {"directory": directory, "tensorboard": True, "callbacks": [look], "patience": 10**6}
            seconds = jaxpt.fit(engine, train, valid, steps=steps, progress=True, **options).seconds
        return {"fit, everything on": looks[-1], "and its last checkpoint": seconds}

    return [bare, plain, everything]


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(networks.SHAPES), default="lenet")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--every", type=int, default=20, help="steps in a period")
    parser.add_argument("--periods", type=int, default=100)
    parser.add_argument("--validation", type=int, default=512, help="examples of the validation split")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jaxpt.use_all_cores()
    variants = runs(options)
    times: dict[str, list[float]] = {name: [] for run in variants for name in run()}
    for number in range(options.rounds):
        # Turned round each time, so that what drifts favours nobody.
        for run in variants[:: 1 if number % 2 else -1]:
            for name, seconds in run().items():
                times[name].append(seconds)
    bare = times["Engine.run"]
    rows: list[dict[str, Any]] = []
    for name, measured in times.items():
        ratios = [one / other for one, other in zip(measured, bare, strict=True)]
        rows.append(
            {
                "variant": name,
                "model": options.model,
                "replicas": options.replicas,
                "batch": options.batch,
                "every": options.every,
                "periods": options.periods,
                "seconds": statistics.median(measured),
                "spread": [min(measured), max(measured)],
                "overhead": statistics.median(ratios) - 1,
                "overhead_spread": [min(ratios) - 1, max(ratios) - 1],
            }
        )
    shown = [("variant", "s", "over Engine.run", "from", "to")]
    for row in rows:
        low, high = row["overhead_spread"]
        shown.append((row["variant"], f"{row['seconds']:.3f}", *(f"{x:+.2%}" for x in (row["overhead"], low, high))))
    print("\n".join(report.markdown(shown)))
    record.write(options.out, rows)


if __name__ == "__main__":
    main()
