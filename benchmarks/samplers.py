"""`jaxpt.sampler` beside TensorFlow Probability's replica exchange: the same target, ladder, chains, moves and steps.

uv run --with tfp-nightly benchmarks/samplers.py --out benchmarks/results/cpu/samplers.json

Both run Metropolis-adjusted Langevin steps on a ladder of temperatures, with swaps of alternating neighbours: TFP's
`ReplicaExchangeMC` offers them after every step, jaxpt after every --every steps. TFP keeps the coldest state of every
step, jaxpt those of all rungs before every exchange. Both are one compiled program on one device and take turns; the
figure is the median over rounds of jaxpt's time to TFP's, with its 95 % interval (order statistics), for the clock and
for processor time. The standard deviation of the coldest rung, 1 if right, shows that both do their work. Without TFP
jaxpt is timed alone.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import record
from benchmarks.tuning import paired
from experiments import report

CHAINS, RUNGS = 8, 5
STEP_SIZE = 0.3
Run = Callable[[], jax.Array]


def energy(x: jax.Array) -> jax.Array:
    """A normal distribution with standard deviation 1."""
    return jnp.sum(x**2, -1) / 2


def temperatures() -> np.ndarray:
    """Returns the ladder, coldest first."""
    return np.asarray(jaxpt.geometric(1.0, 20.0, RUNGS))


def by_jaxpt(dimensions: int, steps: int, every: int) -> Run:
    """Returns a run of an engine; it returns the coldest draws."""
    engine = jaxpt.sampler(
        energy,
        lambda key: jax.random.normal(key, (dimensions,)),
        temperature=temperatures(),
        step_size=STEP_SIZE,
        every=every,
    )
    state = [engine.init(jax.random.split(jax.random.key(0), CHAINS))]

    def run() -> jax.Array:
        periods = steps // every
        state[0], trace = engine.run(state[0], periods=periods, max_periods=periods, donate=True)
        coldest = jax.block_until_ready(trace).rung["temperature"] == 0  # [periods, chains, replicas]
        return trace.draws[coldest]

    return run


def peer_version() -> str | None:
    """Returns TFP's version, or None if it is missing."""
    if not importlib.util.find_spec("tensorflow_probability"):
        return None
    from tensorflow_probability.substrates import jax as tfp  # the package itself asks for TensorFlow

    return tfp.__version__


def by_tfp(dimensions: int, steps: int) -> Run:
    """Returns a run of TFP's kernel from where the last one ended."""
    from tensorflow_probability.substrates import jax as tfp

    def move(target: Callable) -> Any:
        # TFP's kernel takes the square of a step: x + step / 2 * gradient + sqrt(step) * xi.
        return tfp.mcmc.MetropolisAdjustedLangevinAlgorithm(target, step_size=2 * STEP_SIZE * widths)

    widths = jnp.asarray(temperatures(), jnp.float32)[:, None, None]
    kernel = tfp.mcmc.ReplicaExchangeMC(
        lambda x: -energy(x), inverse_temperatures=1 / temperatures().astype(np.float32), make_kernel_fn=move
    )

    @jax.jit
    def chain(start: jax.Array, key: jax.Array) -> jax.Array:
        return tfp.mcmc.sample_chain(steps, start, kernel=kernel, trace_fn=None, seed=key)

    held = [jax.random.normal(jax.random.key(1), (CHAINS, dimensions)), jax.random.key(0)]

    def run() -> jax.Array:
        held[1], key = jax.random.split(held[1])
        draws = jax.block_until_ready(chain(held[0], key))
        held[0] = draws[-1]
        return draws

    return run


def measure(dimensions: int, every: int, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the times of both."""
    runs = {"jaxpt": by_jaxpt(dimensions, options.steps, every)}
    if peer_version():
        runs["tfp"] = by_tfp(dimensions, options.steps)
    clock: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    spread = {}
    for turn in range(options.rounds + 1):
        for name in sorted(runs, reverse=bool(turn % 2)):
            started, used = time.perf_counter(), time.process_time()
            draws = runs[name]()
            if turn:  # the first compiles
                clock[name].append(time.perf_counter() - started)
                processor[name].append(time.process_time() - used)
            spread[name] = float(jnp.std(draws))
    return {
        "dimensions": dimensions,
        "every": every,
        "chains": CHAINS,
        "rungs": RUNGS,
        "steps": options.steps,
        "rounds": options.rounds,
        "microseconds_a_step": {name: 1e6 * statistics.median(times) / options.steps for name, times in clock.items()},
        **{
            name: paired(times["jaxpt"], times["tfp"]) if "tfp" in runs else None
            for name, times in (("jaxpt_to_tfp", clock), ("jaxpt_to_tfp_processor", processor))
        },
        "standard_deviation": spread,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Returns rows as Markdown."""
    lines: list[tuple[str, ...]] = [("dimensions", "steps between exchanges", "jaxpt / TFP", "processor time")]
    for row in rows:
        ratios = (row[name] for name in ("jaxpt_to_tfp", "jaxpt_to_tfp_processor"))
        shown = ("{:.2f} [{:.2f}, {:.2f}]".format(*ratio) if ratio else "-" for ratio in ratios)
        lines.append((str(row["dimensions"]), str(row["every"]), *shown))
    return "\n".join(report.markdown(lines))


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 50])
    parser.add_argument("--every", type=int, nargs="+", default=[10, 1], help="steps between jaxpt's exchanges")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    rows = [measure(size, every, options) for size in options.dimensions for every in options.every]
    record.write(options.out, rows, tensorflow_probability=peer_version())
    print(table(rows))


if __name__ == "__main__":
    main()
