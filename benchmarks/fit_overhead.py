"""What `fit` costs over the bare engine: progress bar, callback, JSON lines, TensorBoard, and cuts between dispatches.

    uv run benchmarks/fit_overhead.py --model lenet --replicas 8 --batch 128 --every 20 --periods 120 --out FILE.json

Whole runs side by side say little, since machines drift by ten times as much. So the two parts of the cost are measured
by themselves. The time between dispatches, in which the host does all that `fit` adds, is that of its loop less that
inside `Engine.run`: once with nothing on, once with everything on, its bar on a pseudo-terminal. And what a dispatch
costs of itself: the same steps in many dispatches and in one, by turns, in periods of one step each; the median of the
differences. Overhead is the first part plus as many of the second as the run had dispatches, over the rest of the time
from the first dispatch to the last callback. What comes before the loop, compilation and opening the directory, is
there once however long a run is. So is the last checkpoint, which has a row of its own; others come every ten minutes.
"""

import argparse
import contextlib
import dataclasses
import os
import pty
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import networks, record
from experiments import report

_CUT = 8  # dispatches against one


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


@contextlib.contextmanager
def watched() -> Iterator[list[tuple[float, float]]]:
    """Gives when each `Engine.run` began and when its work ended."""
    run, times = jaxpt.Engine.run, []

    def timed(engine: jaxpt.Engine, *arguments: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        found = jax.block_until_ready(run(engine, *arguments, **settings))
        times.append((started, time.perf_counter()))
        return found

    jaxpt.Engine.run = timed  # type: ignore[assignment, method-assign]
    try:
        yield times
    finally:
        jaxpt.Engine.run = run  # type: ignore[method-assign]


def of_a_dispatch(engine: jaxpt.Engine, data: jaxpt.Data, rounds: int) -> list[float]:
    """Returns in each round the seconds that a dispatch costs of itself."""
    engine = dataclasses.replace(engine, every=1)
    state = engine.init(jax.random.key(1))

    def seconds(cuts: int) -> float:
        nonlocal state
        started = time.perf_counter()
        for _ in range(cuts):
            state, trace = engine.run(state, data, periods=_CUT // cuts, max_periods=64, donate=True)
            jax.tree.map(np.asarray, trace)  # as `fit` does
        return time.perf_counter() - started

    seconds(1)  # compiles
    found = []
    for number in range(rounds):
        order = (1, _CUT) if number % 2 else (_CUT, 1)
        taken = {cuts: seconds(cuts) for cuts in order}
        found.append((taken[_CUT] - taken[1]) / (_CUT - 1))
    return found


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields one row each for a dispatch, fit, fit with everything on, and its last checkpoint."""
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
    said = {name: getattr(options, name) for name in ("model", "replicas", "batch", "every", "periods")}

    measured = of_a_dispatch(engine, engine.placed.put(jaxpt.Data(train, valid)), options.rounds)
    dispatch = statistics.median(measured)
    spread = np.quantile(measured, [0.25, 0.75]).tolist()
    yield {**said, "variant": "a dispatch of itself", "seconds": dispatch, "quartiles": spread}

    def train_all(variant: str, **more: Any) -> tuple[dict[str, Any], float]:
        looks: list[float] = []

        def look(status: jaxpt.Status) -> bool:
            looks.append(time.perf_counter())
            return False

        with watched() as runs:
            jaxpt.fit(engine, train, valid, steps=options.every * options.periods, callbacks=[look], **more)
        seconds = looks[-1] - runs[0][0]
        between = seconds - sum(ended - began for began, ended in runs)
        cost = between + len(runs) * dispatch
        row = {**said, "variant": variant, "seconds": seconds, "between_dispatches": between, "dispatches": len(runs)}
        return row | {"overhead": cost / (seconds - cost)}, looks[-1]

    yield train_all("fit", progress=False)[0]
    with tempfile.TemporaryDirectory() as directory, terminal():
        more: dict[str, Any] = {
            "directory": directory,
            "recorders": [jaxpt.TensorBoard()],
            "patience": 10**6,
            "progress": True,
        }
        found, left = train_all("fit, everything on", **more)
        last = time.perf_counter() - left
    yield found
    yield {**said, "variant": "its last checkpoint", "seconds": last}


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(networks.SHAPES), default="lenet")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--every", type=int, default=20, help="steps in a period")
    parser.add_argument("--periods", type=int, default=120)
    parser.add_argument("--validation", type=int, default=512, help="examples of the validation split")
    parser.add_argument("--rounds", type=int, default=41, help="of what a dispatch costs of itself")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jaxpt.use_all_cores()
    shown, found = [("variant", "s", "between dispatches, s", "dispatches", "over Engine.run")], []
    for one in rows(options):
        found.append(one)
        more = [""] * 3
        if "overhead" in one:
            more = [f"{one['between_dispatches']:.3f}", str(one["dispatches"]), f"{one['overhead']:+.2%}"]
        shown.append((one["variant"], f"{one['seconds']:.3f}", *more))
        record.write(options.out, found)
    print("\n".join(report.markdown(shown)))


if __name__ == "__main__":
    main()
