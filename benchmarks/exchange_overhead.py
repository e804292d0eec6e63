"""What exchanges and energies cost, as a share of a period's training.

uv run benchmarks/exchange_overhead.py --model resnet20 --replicas 8 --batch 128 --every 100 --out FILE.json

A period is --every steps, the energies of all replicas, one exchange. Each part is timed alone, in interleaved rounds:
a training step as part of a run; the exchange itself (the rule's proposal, and rungs and hyperparameters permuted) as
the difference of two runs over a problem that costs nothing, with `Tempering` and with `Independent`; the energies on
a probe and on a whole validation split.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import networks, record
from experiments import report


def training(options: argparse.Namespace) -> tuple[Callable[[], None], Callable[[int], Callable[[], None]]]:
    """Returns what trains --steps steps, and what evaluates all replicas on so many examples."""
    engine = jaxpt.Engine(
        networks.problem(options.model, jaxpt.conv_general_dilated),
        networks.optimizer,
        jaxpt.Ladder(learning_rate=jaxpt.geometric(0.005, 0.01, options.replicas)),
        jaxpt.Independent(),
        every=options.steps,
        batch_size=options.batch,
        fixed=networks.fixed(options.model),
    )
    data = networks.images(options.model, max(options.validation, options.batch * options.steps))
    one = jax.tree.map(lambda leaf: leaf[:1], data)
    placed = engine.placed.put(jaxpt.Data(data, one))
    state = [engine.init(jax.random.key(0))]

    def train() -> None:
        state[0], _ = engine.run(state[0], placed, periods=1, donate=True)
        jax.block_until_ready(state[0].replicas.params)

    def energies(count: int) -> Callable[[], None]:
        examples = engine.placed.put(jax.tree.map(lambda leaf: leaf[:count], data))
        return lambda: jax.block_until_ready(engine.evaluate(state[0], examples))

    return train, energies


def exchanging(replicas: int, rule: jaxpt.Rule, periods: int) -> Callable[[], None]:
    """Returns what runs so many periods of one step on a problem of one number per replica, with a rule."""
    engine = jaxpt.Engine(
        jaxpt.energy_problem(lambda w: jnp.sum(w**2), lambda key: jax.random.normal(key, (1,))),
        networks.optimizer,
        jaxpt.Ladder(learning_rate=jaxpt.geometric(0.005, 0.01, replicas)),
        rule,
        every=1,
        placement=jaxpt.placement.single(),
    )
    state = engine.init(jax.random.key(0))
    return lambda: jax.block_until_ready(engine.run(state, periods=periods))


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(networks.SHAPES), default="resnet20")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--every", type=int, nargs="+", default=[100, 300], help="steps in a period")
    parser.add_argument("--probe", type=int, default=512, help="examples of a probe batch")
    parser.add_argument("--validation", type=int, default=5000, help="examples of a validation split")
    parser.add_argument("--steps", type=int, default=4, help="training steps that are timed together")
    parser.add_argument("--periods", type=int, default=2000, help="exchanges that are timed together")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jaxpt.use_all_cores()
    train, energies = training(options)
    parts = {
        "step": (train, options.steps),
        "tempering": (exchanging(options.replicas, jaxpt.Tempering(1.0), options.periods), options.periods),
        "independent": (exchanging(options.replicas, jaxpt.Independent(), options.periods), options.periods),
        "probe": (energies(options.probe), 1),
        "validation": (energies(options.validation), 1),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for run, _ in parts.values():
        run()
    for _ in range(options.rounds):
        for name, (run, count) in parts.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) / count)
    median = {name: statistics.median(values) for name, values in times.items()}
    exchange = [a - b for a, b in zip(times["tempering"], times["independent"], strict=True)]
    seconds = {
        "exchange itself": statistics.median(exchange),
        f"energies on a probe of {options.probe}": median["probe"],
        f"energies on {options.validation} validation examples": median["validation"],
    }
    rows: list[dict[str, Any]] = [
        {
            "model": options.model,
            "replicas": options.replicas,
            "batch": options.batch,
            "every": every,
            "what": what,
            "seconds": cost,
            "share_of_training": cost / (every * median["step"]),
        }
        for every in options.every
        for what, cost in seconds.items()
    ]
    shown = [("steps in a period", "what", "ms", "share of the period's training")]
    shown += [(str(r["every"]), r["what"], f"{1e3 * r['seconds']:.3f}", f"{r['share_of_training']:.3%}") for r in rows]
    print(f"{options.model}, {options.replicas} replicas, batch {options.batch}: {1e3 * median['step']:.1f} ms a step")
    print("\n".join(report.markdown(shown)))
    spread = {name: [min(values), max(values)] for name, values in times.items()}
    record.write(options.out, rows, step_seconds=median["step"], spread=spread)


if __name__ == "__main__":
    main()
