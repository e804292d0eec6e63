"""What a training step costs besides arithmetic: the bits of dropout, and compilation as replicas are added.

uv run benchmarks/step_costs.py --replicas 8 16 32 64

LeNet for EMNIST on random images. Times are medians of interleaved rounds with their smallest and largest value;
processor seconds of the compiler, so that a busy machine does little harm to them.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import record
from experiments.models import LeNetEMNIST

KINDS = ("threefry2x32", "rbg", "unsafe_rbg")
DROPPED = (14 * 14 * 6, 5 * 5 * 16, 120, 120, 84)
"""Numbers per image that each of the network's dropout layers draws."""


def make(replicas: int, batch: int, steps: int, axis: Any) -> jaxpt.Engine:
    """Returns LeNet replicas that differ in their learning rate."""
    problem = jaxpt.nnx_problem(LeNetEMNIST, lambda model, batch: jaxpt.cross_entropy(model(batch["x"]), batch["y"]))
    return jaxpt.Engine(
        problem,
        lambda h: optax.sgd(h["learning_rate"], momentum=0.9),
        jaxpt.Ladder(learning_rate=jaxpt.geometric(0.01, 0.1, replicas)),
        every=steps,
        batch_size=batch,
        fixed={"dropout_rate": 0.1},
        replica_axis=axis,
    )


def images(count: int) -> jaxpt.Data:
    """Returns a data set of noise; one validation image, so that evaluation costs nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 32, 32, 1)).astype(np.float32)
    y = rng.integers(0, 26, count).astype(np.int32)
    return jaxpt.Data({"x": x, "y": y}, {"x": x[:1], "y": y[:1]})


def compile_seconds(replicas: int, batch: int, data: jaxpt.Data) -> float:
    """Returns the processor time that lowering and compiling one program takes."""
    engine = make(replicas, batch, 2, "vmap")
    state = engine.init(jax.random.key(0))
    started = time.process_time()
    engine.lower(state, data, periods=1).compile()
    return time.process_time() - started


def drawn(batch: int, key: jax.Array) -> list[jax.Array]:
    """Returns sums of as many bits as the dropout of one step of one replica takes."""
    # 16 bits a number, as `jaxpt.models.noise.dropout` takes them.
    return [jax.random.bits(jax.random.fold_in(key, i), (-(-batch * n // 2),)).sum() for i, n in enumerate(DROPPED)]


def interleaved(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns {name: seconds of each round}; the first round, which compiles, is left out."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            jax.block_until_ready(function())
            if turn:
                found[name].append(time.perf_counter() - started)
    return found


def main() -> None:
    """Measures, prints two tables, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = images(4 * options.batch)

    print("| replicas under vmap | compiler seconds | to the first |\n|---|---|---|")
    seconds = [compile_seconds(m, options.batch, data) for m in options.replicas]
    for replicas, value in zip(options.replicas, seconds, strict=True):
        print(f"| {replicas} | {value:.1f} | {value / seconds[0]:.2f} |")

    replicas = options.replicas[0]
    engine = make(replicas, options.batch, options.steps, "auto")
    placed = engine.placed.put(data)
    runs, draws = {}, {}
    for kind in KINDS:
        state = engine.init(jax.random.key(0, impl=kind))
        runs[kind] = partial(engine.run, state, placed, periods=1)
        keys = jax.random.split(jax.random.key(1, impl=kind), replicas * options.steps)
        draws[kind] = partial(jax.jit(partial(jax.lax.map, partial(drawn, options.batch))), keys)
    found = interleaved({**runs, **{f"{kind} bits": draw for kind, draw in draws.items()}}, options.rounds)
    print(f"\n{engine.execution(data)}, {replicas} replicas, batch {options.batch}; ms a step of all\n")
    print("| generator | step | smallest | largest | its bits alone |\n|---|---|---|---|---|")
    rows: list[dict[str, Any]] = [
        {"replicas": m, "compile_seconds": value, "to_the_first": value / seconds[0]}
        for m, value in zip(options.replicas, seconds, strict=True)
    ]
    for kind in KINDS:
        step, bits = ([1e3 * t / options.steps for t in found[name]] for name in (kind, f"{kind} bits"))
        cells = (statistics.median(step), min(step), max(step), statistics.median(bits))
        print(f"| {kind} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
        names = ("milliseconds", "smallest", "largest", "its_bits_alone")
        rows.append({"generator": kind, **dict(zip(names, cells, strict=True))})
    record.write(options.out, rows, seeds=(0, 1))


if __name__ == "__main__":
    main()
