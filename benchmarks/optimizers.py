"""Which optimisers of optax and optax.contrib work under a ladder of learning rates, tried one by one.

uv run benchmarks/optimizers.py --out benchmarks/results/cpu/optimizers.json

Each trains four replicas of a small network on a regression, with exchanges at each period (C so small that every
offered swap is made). It must learn at one rate at least.
"""

import argparse
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import record
from jaxpt.core import tree
from jaxpt.engine.updates import updated as update

RATES = (0.003, 0.3)
STEPS, EVERY, SEEDS = 200, 10, (0, 1, 2)
EXTRA: dict[str, Callable[[Any], Any]] = {
    "optax.contrib.dpsgd": lambda rate: optax.contrib.dpsgd(rate, 1.0, 0.1, 0),
    "optax.contrib.schedule_free": lambda rate: optax.contrib.schedule_free(optax.sgd(rate), rate),
    "optax.polyak_sgd": lambda rate: optax.polyak_sgd(scaling=rate),
    "optax.contrib.reduce_on_plateau": lambda rate: optax.chain(optax.sgd(rate), optax.contrib.reduce_on_plateau()),
    "optax.contrib.sam": lambda rate: optax.contrib.sam(optax.sgd(rate), optax.sgd(0.05)),
}
"""Those that ask for more than a rate, or take it under another name."""


def optimizers() -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Yields the name of everything in optax that takes a learning rate, and how it is made of one."""
    yield from EXTRA.items()
    for module in (optax, optax.contrib):
        for name, function in sorted(vars(module).items()):
            full = f"{module.__name__}.{name}"
            known = inspect.isfunction(function) and not name.startswith(("_", "scale_by_")) and full not in EXTRA
            if known and "learning_rate" in inspect.signature(function).parameters:
                yield full, lambda rate, make=function: make(learning_rate=rate)


def problem() -> jaxpt.Problem:
    """A network of one hidden layer, with weights of two axes and of one."""

    def loss(params: Any, batch: Any) -> jax.Array:
        return (jnp.tanh(batch["x"] @ params["in"] + params["bias"]) @ params["out"] - batch["y"]) ** 2

    def init(key: jax.Array) -> Any:
        first, last = jax.random.split(key)
        return {
            "in": 0.5 * jax.random.normal(first, (4, 16)),
            "bias": jnp.zeros(16),
            "out": 0.3 * jax.random.normal(last, (16,)),
        }

    return jaxpt.energy_problem(loss, init)


def examples() -> dict[str, np.ndarray]:
    """A smooth function of four numbers."""
    x = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
    return {"x": x, "y": np.sin(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2]}


def remembers(make: Callable[[Any], Any]) -> bool:
    """Whether the state after a step depends on the rate, beyond what the weights do."""
    params = problem().init(jax.random.key(0))[0]
    grads = jax.tree.map(jnp.ones_like, params)

    def total(params: Any, key: Any = None) -> jax.Array:
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)) + jnp.zeros(())

    more = {"obj_fn": total, "grad_fn": lambda params, key=None: grads}
    offered = {"key": jax.random.key(0), "value": jnp.ones(()), "grad": grads, "value_fn": total, **more}
    states = [update(make(rate), grads, make(jnp.asarray(0.01)).init(params), params, offered)[1] for rate in RATES]
    plain = [[np.asarray(tree.plain(jnp.asarray(leaf))) for leaf in jax.tree.leaves(state)] for state in states]
    return any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(*plain, strict=True))


def tried(name: str, make: Callable[[Any], Any]) -> dict[str, Any]:
    """Returns what came of one optimiser."""
    data = examples()
    row: dict[str, Any] = {"optimizer": name}
    try:
        ladder = jaxpt.Ladder(learning_rate=jaxpt.geometric(*RATES, 4))
        rule = jaxpt.Tempering(1e-6, "deo")
        engine = jaxpt.Engine(problem(), lambda h: make(h["learning_rate"]), ladder, rule, every=EVERY, batch_size=32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = jaxpt.fit(engine, data, data, steps=STEPS, seeds=SEEDS, progress=False)
            start = engine.evaluate(engine.init(jax.vmap(jax.random.key)(np.array(SEEDS, np.uint32))), data)["energy"]
        final = result.valid["energy"]
        row |= {"start": float(np.mean(start)), "best": float(np.nanmin(final, -1).mean())}
        row |= {"finite": float(np.isfinite(final).mean()), "swaps": int(result.trace.info.accepted.sum())}
        learns = row["best"] < 0.5 * row["start"]
        row["outcome"] = (
            "works" if learns and row["finite"] == 1 else "diverges" if row["finite"] < 1 else "learns little"
        )
        row["remembers"] = remembers(make)
    except jaxpt.Diverged as error:
        row |= {"outcome": "diverges", "why": str(error)}
    except (ValueError, TypeError) as error:
        row |= {"outcome": "refused", "why": str(error)}
    return row


def main() -> None:
    """Tries them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name, make in optimizers():
        rows.append(tried(name, make))
        shown = rows[-1]
        print(f"{name:40} {shown['outcome']:14}", shown.get("why", "")[:90] or f"{shown['best']:.4f}")
        record.write(options.out, rows, seeds=SEEDS, rates=RATES, steps=STEPS, every=EVERY)


if __name__ == "__main__":
    main()
