"""Loss curves in float32, TF32 and bfloat16 side by side, on real digits, from the same seeds.

uv run benchmarks/precisions.py --out FILE.json        # 1,000 steps, two to three minutes on a CPU

Replicas of a small convolutional network on the digits that ship with scikit-learn: products in float32, in whatever
`precision="high"` and "default" stand for on this backend (TF32 on GPUs, float32 on CPUs), and all computation in
bfloat16 with float32 weights. Rounds of one period each are interleaved, and times are medians over them.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import record
from experiments import datasets, report
from experiments.classification import classifier
from experiments.models import SmallConvNet


def engines(options: argparse.Namespace) -> dict[str, jaxpt.Engine]:
    """Returns the same run at each precision."""
    problem = classifier(SmallConvNet)
    exact = jaxpt.Engine(
        problem,
        lambda h: optax.sgd(h["learning_rate"], momentum=0.9),
        jaxpt.Ladder(learning_rate=jaxpt.geometric(0.01, 0.1, options.replicas)),
        jaxpt.Independent(),
        every=options.every,
        batch_size=options.batch,
        fixed={"dropout_rate": 0.1},
    )

    def narrow(batch: Any) -> Any:  # the network scales the pixels, which are integers, to its input's type
        return {**batch, "image": batch["image"].astype(jnp.bfloat16)}

    return {
        "highest": exact,
        "high": dataclasses.replace(exact, precision="high"),
        "default": dataclasses.replace(exact, precision="default"),
        "bfloat16": dataclasses.replace(exact, problem=jaxpt.with_compute_dtype(problem, inputs=narrow)),
    }


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--every", type=int, default=50, help="steps between two points of a curve")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.steps < options.every:
        parser.error(f"--steps {options.steps} must hold one period of --every {options.every} at least")
    keys = jax.vmap(jax.random.key)(jnp.arange(options.seeds))
    runs = engines(options)
    data = {name: engine.placed.put(datasets.digits()) for name, engine in runs.items()}
    states = {name: engine.init(keys) for name, engine in runs.items()}
    for name, engine in runs.items():
        jax.block_until_ready(engine.run(states[name], data[name], periods=1)[0])  # compiles, and warms up
    losses: dict[str, list[float]] = {name: [] for name in runs}
    errors: dict[str, list[float]] = {name: [] for name in runs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.steps // options.every):
        for name, engine in runs.items():
            started = time.perf_counter()
            states[name], trace = engine.run(states[name], data[name], periods=1)
            losses[name].append(float(np.mean(trace.loss)))
            seconds[name].append(time.perf_counter() - started)
            errors[name].append(float(np.mean(trace.test["error"])))
    base = statistics.median(seconds["highest"])
    rows = [
        {
            "precision": name,
            "steps": list(range(options.every, options.steps + 1, options.every))[: len(losses[name])],
            "training_loss": losses[name],
            "test_error": errors[name],
            "time_ratio": statistics.median(seconds[name]) / base,
            "seconds": statistics.median(seconds[name]) / options.every,
        }
        for name in runs
    ]
    steps = rows[0]["steps"]
    shown = [("step", *(f"loss, {name}" for name in runs))]
    shown += [
        (str(steps[place]), *(f"{losses[name][place]:.4f}" for name in runs))
        for place in range(0, len(steps), max(1, len(steps) // 10))
    ]
    shown.append(("test error at the end", *(f"{errors[name][-1]:.2%}" for name in runs)))
    shown.append(("time", *(f"{row['time_ratio']:.2f}" for row in rows)))
    print(f"means over {options.replicas} replicas of {options.seeds} seeds")
    print("\n".join(report.markdown(shown)))
    record.write(options.out, rows, seeds=range(options.seeds))


if __name__ == "__main__":
    main()
