"""Times the lowerings of `jaxpt.conv_general_dilated` layer by layer; `convolution.choice` follows its figures.

uv run benchmarks/convolutions.py --model resnet20 --replicas 4 --batch 32 --out convolutions.json

Each convolution, and each of its two gradients, runs for M replicas with kernels and images of their own inside a
scan, as in training. The lowerings take turns; medians over the rounds are reported, and with --out the spread (the
quartiles' distance over the median). Limit the cores with `taskset -c 0,1` and say how many.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from benchmarks import record
from experiments import report
from jaxpt.devices import placement
from jaxpt.lowering.convolution import batching, choice
from jaxpt.lowering.convolution.geometry import Geometry, geometry


class Layer(NamedTuple):
    """A square convolution."""

    image: int
    kernel: int
    stride: int
    padding: int
    channels: int
    features: int

    @property
    def shape(self) -> Geometry:
        """Its geometry."""
        image, kernel, stride, padding = ((n, n) for n in self[:4])
        return geometry(image, kernel, stride, [padding] * 2)


MODELS = {
    "lenet": [Layer(32, 5, 1, 0, 1, 6), Layer(14, 5, 1, 0, 6, 16), Layer(5, 5, 1, 0, 16, 120)],
    "lenet-cifar": [Layer(32, 5, 1, 0, 3, 16), Layer(14, 5, 1, 0, 16, 120)],
    "digits": [
        Layer(28, 3, 1, 1, 1, 32),
        Layer(14, 3, 1, 1, 32, 64),
        Layer(14, 5, 1, 2, 32, 64),
        Layer(8, 3, 1, 0, 8, 16),
    ],
    "resnet20": [
        Layer(32, 3, 1, 1, 3, 16),
        Layer(32, 3, 1, 1, 16, 16),
        Layer(32, 3, 2, 1, 16, 32),
        Layer(16, 3, 1, 1, 32, 32),
        Layer(16, 3, 2, 1, 32, 64),
        Layer(8, 3, 1, 1, 64, 64),
    ],
}


def arguments(layer: Layer, part: str, replicas: int, batch: int) -> list[jax.Array]:
    """Returns the two random float32 arrays that a part takes."""
    images = (replicas, batch, layer.image, layer.image, layer.channels)
    kernel = (replicas, layer.kernel, layer.kernel, layer.channels, layer.features)
    output = (replicas, batch, *layer.shape.output, layer.features)
    shapes = {"forward": (images, kernel), "input_gradient": (output, kernel), "kernel_gradient": (images, output)}
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes[part]]


def timer(layer: Layer, part: str, lowering: str, a: jax.Array, b: jax.Array, least: float) -> Callable[[], float]:
    """Returns a function that runs the compiled part for at least about `least` seconds and gives seconds per pass."""
    compute = functools.partial(batching.compute, part, batching.Static(layer.shape, lowering, None, None, None))

    @functools.partial(jax.jit, static_argnames="passes")
    def program(a: jax.Array, b: jax.Array, passes: int) -> Any:
        def body(carry: Any, _: None) -> Any:
            # The result is carried, so it is computed in full, and each pass depends on the one before.
            out = compute(a + 1e-30 * carry.ravel()[0], b)
            return out, None

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(compute, a, b))
        return jax.lax.scan(body, zeros, None, length=passes)[0]

    def seconds(passes: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(program(a, b, passes))
        return (time.perf_counter() - start) / passes

    seconds(1)
    passes = max(1, round(least / seconds(1)))
    seconds(passes)
    return lambda: seconds(passes)


def rows(models: Sequence[str], replicas: int, batch: int, rounds: int, least: float) -> list[dict[str, Any]]:
    """Returns one row per layer, part and lowering, printing as it goes."""
    table = []
    for model in models:
        for layer in MODELS[model]:
            for part in choice.PARTS:
                a, b = arguments(layer, part, replicas, batch)
                work = batching.describe(part, layer.shape, a.shape, b.shape)
                chosen = choice.choose(work, placement.platform())
                timers = {name: timer(layer, part, name, a, b, least) for name in choice.LOWERINGS}
                taken: dict[str, list[float]] = {name: [] for name in timers}
                for _ in range(rounds):
                    for name, run in timers.items():
                        taken[name].append(run())
                found = []
                for name, seconds in taken.items():
                    low, median, high = np.percentile(seconds, (25, 50, 75))
                    what = {"model": model, "layer": layer._asdict(), "part": part, "lowering": name}
                    found.append({**what, "seconds": median, "spread": (high - low) / median, "chosen": name == chosen})
                best = min(row["seconds"] for row in found)
                table += [{**row, "time_ratio": row["seconds"] / best} for row in found]
                cells = [f"{r['lowering']}{'*' * r['chosen']} {1e3 * r['seconds']:.1f}" for r in found]
                print(f"| {model} | {' '.join(map(str, layer))} | {part} | {' | '.join(cells)} |", flush=True)
    return table


def main() -> None:
    """Reads the arguments, prints a table in milliseconds (the chosen lowering has a star) and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--least", type=float, default=0.05, help="seconds that one measurement takes at least")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = report.environment()["device"]
    print(f"{device}, jax {jax.__version__}, M = {given.replicas}, batch {given.batch}; ms")
    table = rows(given.model, given.replicas, given.batch, given.rounds, given.least)
    record.write(given.out, table, replicas=given.replicas, batch=given.batch, rounds=given.rounds)


if __name__ == "__main__":
    main()
