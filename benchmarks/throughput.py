"""How fast M replicas train: one after another, naively vmapped, by jaxpt, and in PyTorch; one interleaved run.

uv run benchmarks/throughput.py --model lenet --replicas 1 2 4 8 16 --batch 128 --out FILE.json

Variants:
    sequential   (a) M jitted single steps in a row, on minibatches that lie ready
    naive        (b) jit(vmap(step)) with stock convolutions, likewise
    stock        (c) Engine.run with replica_axis="auto" and stock convolutions, drawing its minibatches
    own          (d) the same with jaxpt.conv_general_dilated in every convolution
    torch        (e) PyTorch, M steps in a row, channels-last
    torch_vmap   (f) PyTorch's vmap over functional_call

Every round times each variant once, in an order that changes from round to round; a variant's time is the median.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import networks, record, torch_steps
from experiments import report
from jaxpt.engine.replica import train_step


class Variant(NamedTuple):
    """One way of training M replicas."""

    run: Callable[[], Any]
    """Trains all replicas for --steps steps, and waits for the end."""
    compile_seconds: float | None = None
    """Time to trace and compile."""
    bytes: int | None = None
    """What the compiled program needs at once on one device: arguments, results, temporaries."""
    flops: float | None = None
    """XLA's own count for one image, where it can count."""
    how: str = ""
    """What "auto" picked."""


def engine(model: str, convolution: Any, options: argparse.Namespace, replicas: int) -> jaxpt.Engine:
    """Returns replicas that differ in their learning rate; one period is --steps steps."""
    rates = np.linspace(0.5, 1.0, replicas) * networks.LEARNING_RATE
    problem = networks.problem(model, convolution)
    return jaxpt.Engine(
        jaxpt.with_compute_dtype(problem) if options.precision == "bfloat16" else problem,
        networks.optimizer,
        jaxpt.Ladder(learning_rate=rates),
        jaxpt.Independent(),
        every=options.steps,
        batch_size=options.batch,
        fixed=networks.fixed(model),
        precision=products(options),
    )


def products(options: argparse.Namespace) -> str:
    """Returns the precision of float32 products."""
    return "default" if options.precision == "bfloat16" else str(options.precision)


def compiled_bytes(compiled: Any) -> int | None:
    """Returns the memory of a compiled program, buffers that it shares counted once; None if XLA does not say."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    own = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return int(own - memory.alias_size_in_bytes)


def single_steps(options: argparse.Namespace, replicas: int, stacked: bool) -> Variant:
    """(a) and (b): a bare step, called from Python, on one device."""
    one = engine(options.model, lax.conv_general_dilated, options, replicas)
    state = jaxpt.Engine.init(one, jax.random.key(0)).replicas
    state = jax.tree.map(jnp.array, jax.device_put(state, jax.devices()[0]))
    data = networks.images(options.model, options.batch * options.steps)
    batches = [
        jax.device_put(jax.tree.map(lambda leaf, i=i: leaf[i :: options.steps], data), jax.devices()[0])
        for i in range(options.steps)
    ]
    step = partial(train_step, one.problem, one.optimizer, one.schedule)
    every = jnp.ones(options.batch, bool)

    def bare(replica: Any, batch: Any, number: jax.Array) -> Any:
        return step(replica, batch, every, number)[0]

    lifted = jax.jit(jax.vmap(bare, (0, None, None)) if stacked else bare, donate_argnums=0)
    rows = [state] if stacked else [jax.tree.map(lambda leaf, m=m: leaf[m], state) for m in range(replicas)]
    with jax.default_matmul_precision(products(options)):
        started = time.perf_counter()
        compiled = lifted.lower(rows[0], batches[0], jnp.int32(0)).compile()
        seconds = time.perf_counter() - started

    def run() -> None:
        for number, batch in enumerate(batches):
            for place, row in enumerate(rows):
                rows[place] = compiled(row, batch, jnp.int32(number))
        jax.block_until_ready(rows)

    cost = compiled.cost_analysis() or {}
    flops = None if stacked else cost.get("flops", 0) / options.batch
    return Variant(run, seconds, compiled_bytes(compiled), flops)


def whole_runs(options: argparse.Namespace, replicas: int, convolution: Any) -> Variant:
    """(c) and (d): what a user runs."""
    one = engine(options.model, convolution, options, replicas)
    data = networks.images(options.model, max(options.batch * options.steps, 1024))
    valid = jax.tree.map(lambda leaf: leaf[:1], data)
    placed = one.placed.put(jaxpt.Data(data, valid))
    state = [one.init(jax.random.key(0))]
    started = time.perf_counter()
    compiled = one.lower(state[0], placed, periods=1, donate=True).compile()
    seconds = time.perf_counter() - started

    def run() -> None:
        state[0], _ = one.run(state[0], placed, periods=1, donate=True)
        jax.block_until_ready(state[0].replicas.params)

    return Variant(run, seconds, compiled_bytes(compiled), how=str(one.execution(placed)))


VARIANTS: dict[str, Callable[[argparse.Namespace, int], Variant]] = {
    "sequential": lambda options, replicas: single_steps(options, replicas, stacked=False),
    "naive": lambda options, replicas: single_steps(options, replicas, stacked=True),
    "stock": lambda options, replicas: whole_runs(options, replicas, lax.conv_general_dilated),
    "own": lambda options, replicas: whole_runs(options, replicas, jaxpt.conv_general_dilated),
    "torch": lambda options, replicas: Variant(torch_steps.in_a_row(options, replicas)),
    "torch_vmap": lambda options, replicas: Variant(torch_steps.vmapped(options, replicas)),
}


def product_peak(size: int = 2048) -> float:
    """Returns the best FLOP/s seen in a product of two square matrices, float32, on one device."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: jnp.dot(a, a, precision="highest"))
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        product(a).block_until_ready()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


_PAUSE = 0.25  # seconds between variants: a library's threads may spin for a while after their work


def measure(options: argparse.Namespace, replicas: int) -> list[dict[str, Any]]:
    """Returns one row per variant, from interleaved rounds."""
    variants = {name: VARIANTS[name](options, replicas) for name in options.variants}
    for variant in variants.values():
        variant.run()  # whatever is done once only
    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(options.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(_PAUSE)
            started = time.perf_counter()
            variants[name].run()
            times[name].append((time.perf_counter() - started) / options.steps)
    peak = product_peak()
    base = statistics.median(times["sequential"])
    work = networks.flops_per_image(options.model) * options.batch * replicas
    rows = []
    for name, variant in variants.items():
        seconds = statistics.median(times[name])
        rows.append(
            {
                "model": options.model,
                "replicas": replicas,
                "batch": options.batch,
                "precision": options.precision,
                "variant": name,
                "time_ratio": seconds / base,
                "seconds": seconds,
                "spread": [min(times[name]), max(times[name])],
                "rounds": options.rounds,
                "compile_seconds": variant.compile_seconds,
                "bytes_per_device": variant.bytes,
                "flops_per_second": work / seconds,
                "share_of_product_peak": work / seconds / peak,
                "product_peak_flops_per_second": peak,
                "flops_per_image_by_hand": networks.flops_per_image(options.model),
                "flops_per_image_by_xla": variant.flops,
                "how": variant.how,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Returns rows as Markdown."""
    title = ("model", "M", "batch", "variant", "time / (a)", "ms a step (range)", "compile s", "MB", "GFLOP/s")
    shown = [(*title, "of peak", "how")]
    for row in rows:
        low, high = (1e3 * s for s in row["spread"])
        shown.append(
            (
                row["model"],
                str(row["replicas"]),
                str(row["batch"]),
                row["variant"],
                f"{row['time_ratio']:.2f}",
                f"{1e3 * row['seconds']:.1f} ({low:.1f}-{high:.1f})",
                "-" if row["compile_seconds"] is None else f"{row['compile_seconds']:.1f}",
                "-" if row["bytes_per_device"] is None else f"{row['bytes_per_device'] / 1e6:.0f}",
                f"{row['flops_per_second'] / 1e9:.1f}",
                f"{row['share_of_product_peak']:.0%}",
                row["how"],
            )
        )
    return "\n".join(report.markdown(shown))


def main() -> None:
    """Measures and writes as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(networks.SHAPES), default="lenet")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="training steps that are timed together")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--precision", choices=["default", "high", "highest", "bfloat16"], default="highest")
    parser.add_argument("--compile", action="store_true", help="torch.compile for the variant torch")
    parser.add_argument("--threads", type=int, help="PyTorch's threads; all cores if not given")
    parser.add_argument("--out", type=Path, help="JSON file, written after every number of replicas")
    options = parser.parse_args()
    jaxpt.use_all_cores()
    options.variants = list(dict.fromkeys(["sequential", *options.variants]))
    if missing := torch_steps.missing():
        left_out = [name for name in options.variants if name.startswith("torch")]
        options.variants = [name for name in options.variants if not name.startswith("torch")]
        print(f"left out: {', '.join(left_out)} ({missing})" if left_out else "", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for replicas in options.replicas:
        rows += measure(options, replicas)
        print(table(rows[-len(options.variants) :]), flush=True)
        record.write(options.out, rows, torch=torch_steps.version())


if __name__ == "__main__":
    main()
