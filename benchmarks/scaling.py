"""Training examples per second against the number of replicas, until memory ends; and how many replicas fit.

uv run benchmarks/scaling.py --model lenet --batch 128 --out FILE.json
uv run benchmarks/scaling.py --most 64 --steps 5 --out FILE.json        # two to three minutes on four CPU cores

M doubles from 1. A program is run only if it needs less than the memory there is, as its own analysis says; the
largest M that fits is then found between the last two by analysis alone.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import networks, record
from benchmarks.throughput import compiled_bytes, engine


def memory() -> int:
    """Returns the bytes that the first device may use; of a CPU, its share of the machine's memory."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(jax.devices())


def needed(options: argparse.Namespace, replicas: int) -> int:
    """Returns the bytes that a run of so many replicas takes on one device."""
    one = engine(options.model, jaxpt.conv_general_dilated, options, replicas)
    data, state = prepared(options, one)
    return compiled_bytes(one.lower(state, data, periods=1, donate=True).compile()) or 0


def prepared(options: argparse.Namespace, one: jaxpt.Engine) -> tuple[Any, Any]:
    """Returns data and first state."""
    data = networks.images(options.model, max(options.batch * options.steps, 1024))
    return one.placed.put(jaxpt.Data(data, jax.tree.map(lambda a: a[:1], data))), one.init(jax.random.key(0))


def timed(options: argparse.Namespace, replicas: int) -> list[float]:
    """Returns the seconds of a step of all replicas, for each round."""
    one = engine(options.model, jaxpt.conv_general_dilated, options, replicas)
    data, state = prepared(options, one)
    seconds = []
    for _ in range(options.rounds + 1):
        started = time.perf_counter()
        state, _ = one.run(state, data, periods=1, donate=True)
        jax.block_until_ready(state.replicas.params)
        seconds.append((time.perf_counter() - started) / options.steps)
    return seconds[1:]  # the first one compiles


def main() -> None:
    """Measures and writes as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(networks.SHAPES), default="lenet")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="training steps that are timed together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=4096, help="replicas to stop at")
    parser.add_argument("--gib", type=float, help="memory of a device; as JAX or the machine says if not given")
    parser.add_argument("--precision", choices=["default", "high", "highest"], default="highest")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jaxpt.use_all_cores()
    limit = int(options.gib * 2**30) if options.gib else memory()
    rows: list[dict[str, Any]] = []
    replicas, fits, fails = 1, 0, None
    while replicas <= options.most:
        size = needed(options, replicas)
        if size > limit:
            fails = replicas
            break
        seconds = timed(options, replicas)
        median = statistics.median(seconds)
        rows.append(
            {
                "model": options.model,
                "replicas": replicas,
                "batch": options.batch,
                "images_per_second": replicas * options.batch / median,
                "seconds": median,
                "spread": [min(seconds), max(seconds)],
                "bytes_per_device": size,
            }
        )
        rate, size_mb = replicas * options.batch / median, size / 1e6
        print(f"M = {replicas:5}: {rate:12,.0f} replica-images/s, {size_mb:8,.0f} MB a device", flush=True)
        fits, replicas = replicas, 2 * replicas
        record.write(options.out, rows, device_bytes=limit, largest_that_fits=None)
    while fails and fails - fits > max(1, fits // 16):  # to a sixteenth
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if needed(options, middle) <= limit else (fits, middle)
    print(f"largest M that fits into {limit / 2**30:.1f} GiB: {fits}{'' if fails else ' or more'}")
    record.write(options.out, rows, device_bytes=limit, largest_that_fits=fits)


if __name__ == "__main__":
    main()
