"""Whether `jaxpt.tune` finds the fastest way: its choice beside all candidates, timed for longer.

uv run benchmarks/tuning.py --out benchmarks/results/cpu/tuning.json

Each case is tuned with the default time. Then whole periods of every candidate run in interleaved rounds through
`Engine.run`. "chosen / fastest" is the median over the rounds of the chosen one's time to the fastest one's in the same
round, so that what slows both down does not count, with the interval that holds it with 95 % (order statistics). It
should be at most 1.05. A case is saved as soon as it is done.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import lax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import networks, record
from experiments import language_model, report

SETTINGS = ("replica_axis", "replicas_at_once", "evaluation_batch")
Case = tuple[jaxpt.Engine, jaxpt.Data]


class MLP(nnx.Module):
    """Two hidden layers."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in ((64, 64), (64, 64), (64, 10))])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def pictures(model: str, replicas: int, batch: int, every: int = 20) -> Case:
    """Returns replicas of a network with stock convolutions; an evaluation is of four minibatches."""
    engine = jaxpt.Engine(
        networks.problem(model, lax.conv_general_dilated),
        networks.optimizer,
        jaxpt.Ladder(learning_rate=np.linspace(0.5, 1.0, replicas) * networks.LEARNING_RATE),
        jaxpt.Independent(),
        every=every,
        batch_size=batch,
        fixed=networks.fixed(model),
    )
    return engine, jaxpt.Data(networks.images(model, 8 * batch), networks.images(model, 4 * batch))


def dense(replicas: int, batch: int) -> Case:
    """Returns replicas of a small dense network on random numbers."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1536, 64)).astype(np.float32), rng.integers(0, 10, 1536).astype(np.int32)

    def loss(model: nnx.Module, batch: dict) -> jax.Array:
        return jaxpt.cross_entropy(model(batch["x"]), batch["y"])

    ladder = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.001, 0.01, replicas))
    engine = jaxpt.Engine(jaxpt.nnx_problem(MLP, loss), networks.optimizer, ladder, every=50, batch_size=batch)
    return engine, jaxpt.Data({"x": x[:1024], "y": y[:1024]}, {"x": x[1024:], "y": y[1024:]})


def text() -> Case:
    """Returns the transformer of `experiments.language_model`."""
    work = language_model.prepare(language_model.Options())
    return work.engine, work.data._replace(test=None)


CASES: dict[str, Callable[[], Case]] = {
    "lenet-16": lambda: pictures("lenet", 8, 16),
    "lenet-128": lambda: pictures("lenet", 8, 128),
    "resnet20-32": lambda: pictures("resnet20", 4, 32, every=4),  # a step takes a second or so
    "mlp-64": lambda: dense(64, 32),
    "transformer": text,
    "toy": lambda: dense(2, 4),
}


def candidates(tuned: jaxpt.Tuned, given: jaxpt.Engine) -> dict[tuple[Any, ...], jaxpt.Engine]:
    """Returns {settings: engine}: each execution with the chosen evaluations, and the chosen execution with each."""
    how, at_once, size = (getattr(tuned.engine, name) for name in SETTINGS)
    timed = [row for row in tuned.rows if row.refusal is None]
    found = [(row.replica_axis, row.replicas_at_once, size) for row in timed if row.part == "execution"]
    found += [(how, at_once, row.evaluation_batch) for row in timed if row.part == "evaluation"]
    return {
        one: dataclasses.replace(given, **dict(zip(SETTINGS, one, strict=True)))
        for one in dict.fromkeys([(how, at_once, size), *found])
    }


def race(engines: dict[tuple[Any, ...], jaxpt.Engine], data: jaxpt.Data, rounds: int, seconds: float) -> dict:
    """Returns {settings: seconds of a period in each round}."""
    first = next(iter(engines.values()))
    placed, states, counts = first.placed.put(data), {}, {}

    def run(name: tuple[Any, ...], periods: int) -> float:
        started = time.perf_counter()
        states[name], _ = engines[name].run(states[name], placed, periods=periods, max_periods=1024, donate=True)
        jax.block_until_ready(states[name])
        return (time.perf_counter() - started) / periods

    for name, engine in engines.items():
        states[name] = engine.init(jax.random.key(0))
        run(name, 1)
        counts[name] = min(max(int(seconds / min(run(name, 1), run(name, 1))), 1), 1024)
    found: dict[tuple[Any, ...], list[float]] = {name: [] for name in engines}
    names = list(engines)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(run(name, counts[name]))
    return found


def paired(one: list[float], other: list[float]) -> tuple[float, float, float]:
    """Returns the median over the rounds of one / other, and the ends of its 95 % interval by order statistics."""
    ratios = sorted(a / b for a, b in zip(one, other, strict=True))
    count = len(ratios)
    # The k-th least and the k-th greatest hold the median but for 2 P(at most k - 1 of n coins show heads).
    tails = [2 * sum(math.comb(count, j) for j in range(k + 1)) / 2**count for k in range(count)]
    k = max(sum(tail <= 0.05 for tail in tails) - 1, 0)
    return statistics.median(ratios), ratios[k], ratios[-1 - k]


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns what was chosen in one case, and what every candidate takes."""
    engine, data = CASES[name]()
    started = time.perf_counter()
    tuned = jaxpt.tune(engine, data) if options.tuned is None else jaxpt.tune(engine, data, seconds=options.tuned)
    tuning = time.perf_counter() - started
    print(f"{name}, tuned in {tuning:.0f} s\n{tuned}\n", flush=True)
    times = race(candidates(tuned, engine), data, options.rounds, options.seconds)
    medians = {one: statistics.median(found) for one, found in times.items()}
    chosen = next(iter(medians))
    ratios = {one: paired(times[chosen], found) for one, found in times.items()}
    best = max(ratios, key=lambda one: ratios[one][0])
    auto = engine.execution(data).replica_axis
    rows = [
        {
            **dict(zip(SETTINGS, one, strict=True)),
            "seconds": medians[one],
            "spread": [min(times[one]), max(times[one])],
            "chosen_to_this": ratios[one],
        }
        for one in times
    ]
    as_given = times.get((auto, engine.replicas_at_once, chosen[2]))
    return {
        "case": name,
        "replicas": engine.num_replicas,
        "batch": engine.batch_size,
        "every": engine.every,
        "chosen": dict(zip(SETTINGS, chosen, strict=True)),
        "best": dict(zip(SETTINGS, best, strict=True)),
        "chosen_to_best": ratios[best],
        "auto": auto,
        "auto_to_best": None if as_given is None else paired(as_given, times[best])[0],
        "tuning_seconds": tuning,
        "rounds": options.rounds,
        "candidates": rows,
        "tuned": json.loads(json.dumps(tuned.as_dict())),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Returns rows as Markdown."""
    shown = [("case", "M", "chosen", "fastest", "chosen / fastest", '"auto" / fastest', "tuned in, s")]
    for row in rows:
        settings = (
            "{replica_axis}, {replicas_at_once}, {evaluation_batch}".format(**row[k]) for k in ("chosen", "best")
        )
        auto = "-" if row["auto_to_best"] is None else f"{row['auto_to_best']:.2f}"
        ratio, low, high = row["chosen_to_best"]
        ends = f"{ratio:.2f} [{low:.2f}, {high:.2f}]", auto, f"{row['tuning_seconds']:.0f}"
        shown.append((row["case"], str(row["replicas"]), *settings, *ends))
    return "\n".join(report.markdown(shown))


def main() -> None:
    """Measures and writes as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=[name for name in CASES if name != "toy"])
    parser.add_argument("--tuned", type=float, help="seconds of `tune`; its default if not given")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a candidate's turn, about")
    parser.add_argument("--devices", type=int, help="CPU devices; all cores if not given")
    parser.add_argument("--out", type=Path, help="JSON file, written after every case")
    options = parser.parse_args()
    jaxpt.use_all_cores(options.devices)
    rows: list[dict[str, Any]] = []
    for name in options.cases:
        rows.append(measure(name, options))
        print(table(rows[-1:]), flush=True)
        record.write(options.out, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
