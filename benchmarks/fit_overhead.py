"""What `fit` costs over the bare engine: progress bar, callback, JSON lines, TensorBoard, checkpoint.

uv run benchmarks/fit_overhead.py --model lenet --replicas 8 --batch 128 --every 20 --periods 60 --out FILE.json

The same periods of the same program run by turns: `Engine.run` in one dispatch, `fit` with nothing on, and `fit` with
everything on, its bar on a pseudo-terminal. Times of `fit` are those of its loop, as `Result.seconds` says them (what
comes before, compilation and opening the directory, is there once however long a run is), and the last checkpoint's
end is waited for behind it. Overhead is the median over the rounds of the ratio to the bare run of the same round.
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


def runs(options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Returns {variant: a function that runs all the periods and returns the seconds}."""
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

    def bare() -> float:
        state = jax.block_until_ready(engine.init(jax.random.key(0)))
        started = time.perf_counter()
        for done in range(0, options.periods, room):  # the program that `fit` runs has so much room for rows
            count = min(room, options.periods - done)
            state, trace = engine.run(state, placed, periods=count, room=room, donate=True)
        jax.block_until_ready((state.replicas.params, trace))
        return time.perf_counter() - started

    def plain() -> float:
        return jaxpt.fit(engine, train, valid, steps=steps, progress=False).seconds

    def everything() -> float:
        def look(status: jaxpt.Status) -> bool:
            return float(status.lowest) < -1.0

        with tempfile.TemporaryDirectory() as directory, terminal():
            options = {"directory": directory, "tensorboard": True, "callbacks": [look], "patience": 10**6}
            return jaxpt.fit(engine, train, valid, steps=steps, progress=True, **options).seconds

    return {"Engine.run": bare, "fit": plain, "fit, everything on": everything}


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(networks.SHAPES), default="lenet")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--every", type=int, default=20, help="steps in a period")
    parser.add_argument("--periods", type=int, default=60)
    parser.add_argument("--validation", type=int, default=512, help="examples of the validation split")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jaxpt.use_all_cores()
    variants = runs(options)
    for run in variants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(options.rounds):
        # Turned round each time, so that what drifts favours nobody.
        for name in list(variants)[:: 1 if number % 2 else -1]:
            times[name].append(variants[name]())
    bare = times["Engine.run"]
    rows: list[dict[str, Any]] = []
    for name, seconds in times.items():
        ratios = [one / other for one, other in zip(seconds, bare, strict=True)]
        rows.append(
            {
                "variant": name,
                "model": options.model,
                "replicas": options.replicas,
                "batch": options.batch,
                "every": options.every,
                "periods": options.periods,
                "seconds": statistics.median(seconds),
                "spread": [min(seconds), max(seconds)],
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
