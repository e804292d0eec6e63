"""What several devices are worth, and how little crosses between them.

uv run benchmarks/devices.py --model lenet --replicas 8 --batch 128 --devices 1 2 4 --out FILE.json

Throughput: the same replicas on so many devices (of a CPU: host devices, one thread of computation each), in one
interleaved run; every round times each number of devices once, in an order that changes from round to round.

Bytes: what a device receives from the others in a period, from the shapes of the collectives in the compiled program,
for a rule that exchanges rungs and for one that copies weights.
"""

import argparse
import math
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import networks, record
from experiments import report

RULES = {"exchange": jaxpt.Tempering(1.0), "copies of weights": jaxpt.PBT()}
_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast)(?:-done)?\("
)
_SHAPE = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")


def collectives(text: str) -> list[tuple[str, list[int], int]]:
    """Returns (kind, shape, bytes of a number) of what each collective of a compiled program gives every device."""
    found = []
    for result, kind in _COLLECTIVE.findall(text):
        for name, bits, shape in _SHAPE.findall(result):
            size = 1 if name == "pred" else max(1, int(bits) // 8)
            found.append((kind, [int(n) for n in shape.split(",") if n], size))
    return found


def make(options: argparse.Namespace, replicas: int, devices: int, rule: jaxpt.Rule) -> jaxpt.Engine:
    """Returns the engine whose period is --steps steps, on so many devices."""
    return jaxpt.Engine(
        networks.problem(options.model, jaxpt.conv_general_dilated),
        networks.optimizer,
        jaxpt.Ladder(learning_rate=jaxpt.geometric(0.005, 0.01, replicas)),
        rule,
        every=options.steps,
        batch_size=options.batch,
        fixed=networks.fixed(options.model),
        placement=jaxpt.placement.shard_map(jax.devices()[:devices]),
    )


def received(options: argparse.Namespace, data: jaxpt.Data, replicas: int, devices: int, rule: str) -> int:
    """Returns the bytes that one device receives from all others in a period; an all-gather is all that there is."""
    engine = make(options, replicas, devices, RULES[rule])
    state = engine.init(jax.random.key(0))
    found = collectives(engine.lower(state, data, periods=1).compile().as_text())
    if others := {kind for kind, _, _ in found} - {"all-gather"}:
        raise RuntimeError(f"a run gathers and nothing else, but the program has {', '.join(others)}")
    return sum(math.prod(shape) * size for _, shape, size in found) * (devices - 1) // devices


def timed(options: argparse.Namespace, data: jaxpt.Data) -> dict[int, list[float]]:
    """Returns the seconds of a step of all replicas for each number of devices and each round."""
    runs = {}
    for devices in options.devices:
        engine = make(options, options.replicas, devices, RULES["exchange"])
        runs[devices] = engine, engine.placed.put(data), [engine.init(jax.random.key(0))]
    seconds: dict[int, list[float]] = {devices: [] for devices in runs}
    for turn in range(options.rounds + 1):
        order = list(runs)[turn % len(runs) :] + list(runs)[: turn % len(runs)]
        for devices in order:
            engine, placed, state = runs[devices]
            started = time.perf_counter()
            state[0], _ = engine.run(state[0], placed, periods=1, donate=True)
            jax.block_until_ready(state[0].replicas.params)
            if turn:  # the first one compiles
                seconds[devices].append((time.perf_counter() - started) / options.steps)
    return seconds


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(networks.SHAPES), default="lenet")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=10, help="training steps in a period, which is timed as a whole")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--counted", type=int, nargs="*", default=[8, 16, 32, 64], help="M for which bytes are counted")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jaxpt.use_all_cores(max(options.devices))
    images = networks.images(options.model, max(options.batch * options.steps, 1024))
    data = jaxpt.Data(images, jax.tree.map(lambda leaf: leaf[: options.batch], images))

    seconds = timed(options, data)
    first = options.devices[0]
    rows: list[dict[str, Any]] = []
    shown = [("devices", "replica-images/s", f"times as fast as {first}", "spread")]
    for devices, values in seconds.items():
        ratios = [a / b for a, b in zip(seconds[first], values, strict=True)]
        rate = options.replicas * options.batch / statistics.median(values)
        rows.append(
            {
                "model": options.model,
                "replicas": options.replicas,
                "batch": options.batch,
                "devices": devices,
                "images_per_second": rate,
                "seconds": statistics.median(values),
                "spread": [min(values), max(values)],
                "speedup": statistics.median(ratios),
                "speedup_spread": [min(ratios), max(ratios)],
            }
        )
        ends = f"{min(ratios):.2f} to {max(ratios):.2f}"
        shown.append((str(devices), f"{rate:,.0f}", f"{statistics.median(ratios):.2f}", ends))
    print(f"{options.model}, {options.replicas} replicas, batch {options.batch}, medians of {options.rounds} rounds\n")
    print("\n".join(report.markdown(shown)))

    most = max(options.devices)
    crossing = [
        {"replicas": M, "devices": most, "rule": rule, "bytes_per_period": received(options, data, M, most, rule)}
        for rule in RULES
        for M in options.counted
    ]
    print(f"\nbytes that each of {most} devices receives in a period\n")
    by = {(row["rule"], row["replicas"]): row["bytes_per_period"] for row in crossing}
    table = [("M", *RULES)] + [(str(M), *(f"{by[rule, M]:,}" for rule in RULES)) for M in options.counted]
    print("\n".join(report.markdown(table)))
    record.write(options.out, rows, crossing=crossing)


if __name__ == "__main__":
    main()
