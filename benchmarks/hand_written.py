"""The engine beside a hand-written scan that trains the same small network on the same minibatch sizes.

uv run benchmarks/hand_written.py --out benchmarks/results/cpu/hand-written.json

Eight replicas of a dense network on one device, without exchanges. The hand-written program has no more than it must:
one jitted scan over periods, a scan over steps inside, the gradient under vmap, SGD with momentum, minibatches drawn
with replacement, and the validation loss after each period. Both train for the same number of steps in turn; the figure
is the median over rounds of the engine's time to the other's, with its 95 % interval (order statistics).
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import record
from benchmarks.tuning import paired
from experiments import report

REPLICAS, BATCH, EXAMPLES, INPUTS, CLASSES = 8, 16, 1024, 64, 10
Arrays = dict[str, Any]


class Net(nnx.Module):
    """One hidden layer of 64."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.hidden, self.out = nnx.Linear(INPUTS, 64, rngs=rngs), nnx.Linear(64, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        return self.out(nnx.relu(self.hidden(x)))


def engine(every: int) -> jaxpt.Engine:
    """Returns the engine, with periods of so many steps."""
    return jaxpt.Engine(
        jaxpt.nnx_problem(Net, lambda model, batch: jaxpt.cross_entropy(model(batch["x"]), batch["y"])),
        lambda h: optax.sgd(h["learning_rate"], momentum=0.9),
        jaxpt.Ladder(learning_rate=jaxpt.geometric(0.01, 0.1, REPLICAS)),
        jaxpt.Independent(),
        every=every,
        batch_size=BATCH,
        placement=jaxpt.placement.single(),
    )


def loss(params: Arrays, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean loss of one replica on a minibatch."""
    hidden = jax.nn.relu(x @ params["kernel"] + params["bias"])
    logits = hidden @ params["out_kernel"] + params["out_bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def weights(key: jax.Array) -> Arrays:
    """Returns the weights of one replica."""
    first, second = jax.random.split(key)
    return {
        "kernel": jax.random.normal(first, (INPUTS, 64)) / 8,
        "bias": jnp.zeros(64),
        "out_kernel": jax.random.normal(second, (64, CLASSES)) / 8,
        "out_bias": jnp.zeros(CLASSES),
    }


@functools.partial(jax.jit, static_argnames=("every", "periods"), donate_argnums=0)
def trained(
    state: tuple[Arrays, Arrays],
    rates: jax.Array,
    train: Arrays,
    valid: Arrays,
    key: jax.Array,
    every: int,
    periods: int,
) -> Any:
    """Returns the state after some periods, and the losses."""

    def update(params: Arrays, momentum: Arrays, rate: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, x, y)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        return jax.tree.map(lambda p, m: p - rate * m, params, momentum), momentum, value

    def step(state: Any, rows: jax.Array) -> Any:
        x, y = train["x"][rows], train["y"][rows]
        *state, value = jax.vmap(update, (0, 0, 0, None, None))(*state, rates, x, y)
        return tuple(state), value

    def period(state: Any, key: jax.Array) -> Any:
        state, losses = jax.lax.scan(step, state, jax.random.randint(key, (every, BATCH), 0, EXAMPLES))
        return state, (losses.mean(0), jax.vmap(loss, (0, None, None))(state[0], valid["x"], valid["y"]))

    with jax.default_matmul_precision("highest"):  # as the engine does
        return jax.lax.scan(period, state, jax.random.split(key, periods))


def programs(every: int, steps: int) -> dict[str, Callable[[], Any]]:
    """Returns {name: function that trains for so many steps}."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(EXAMPLES, INPUTS)).astype(np.float32), rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)
    train, valid = {"x": x, "y": y}, {"x": x[:64], "y": y[:64]}
    made, periods = engine(every), steps // every
    data = made.placed.put(jaxpt.Data(train, valid))
    held: dict[str, Any] = {"engine": made.init(jax.random.key(0))}
    params = jax.vmap(weights)(jax.random.split(jax.random.key(1), REPLICAS))
    held["hand"] = params, jax.tree.map(jnp.zeros_like, params)
    rates = jnp.asarray(made.ladders["learning_rate"].values["learning_rate"])
    arrays = jax.device_put((train, valid))

    def by_engine() -> None:
        held["engine"], _ = made.run(held["engine"], data, periods=periods, max_periods=periods, donate=True)
        jax.block_until_ready(held["engine"])

    def by_hand() -> None:
        held["hand"], _ = trained(held["hand"], rates, *arrays, jax.random.key(2), every, periods)
        jax.block_until_ready(held["hand"])

    return {"engine": by_engine, "hand-written": by_hand}


def measure(every: int, steps: int, rounds: int) -> dict[str, Any]:
    """Returns the times of both programs."""
    found: dict[str, list[float]] = {}
    made = programs(every, steps)
    for turn in range(rounds + 1):
        for name in sorted(made, reverse=bool(turn % 2)):
            started = time.perf_counter()
            made[name]()
            if turn:  # the first compiles
                found.setdefault(name, []).append(time.perf_counter() - started)
    ratio, low, high = paired(found["engine"], found["hand-written"])
    return {
        "every": every,
        "replicas": REPLICAS,
        "batch": BATCH,
        "steps": steps,
        "rounds": rounds,
        "microseconds_a_step": {name: 1e6 * statistics.median(times) / steps for name, times in found.items()},
        "engine_to_hand_written": [ratio, low, high],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Returns rows as Markdown."""
    lines: list[tuple[str, ...]] = [("steps in a period", "engine / hand-written")]
    for row in rows:
        ratio, low, high = row["engine_to_hand_written"]
        lines.append((str(row["every"]), f"{ratio:.2f} [{low:.2f}, {high:.2f}]"))
    return "\n".join(report.markdown(lines))


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, nargs="+", default=[60, 1], help="steps in a period, one case each")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    rows = [measure(every, options.steps, options.rounds) for every in options.every]
    record.write(options.out, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
