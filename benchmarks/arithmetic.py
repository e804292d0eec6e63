"""Whether a device computes what NumPy computes: sums, products, random bits and normals. A minute, before any timing.

uv run benchmarks/arithmetic.py --out FILE.json

Every error is relative to the largest right value, in float64. A step of LeNet is checked as well: each of the stacked
replicas must get the gradients that it gets alone. The command fails if an error is above its bound. Products at lower
precisions are reported with the bound of the type that they may use: TF32 on GPUs, bfloat16 on TPUs.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import special

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from benchmarks import networks, record
from experiments import report

Check = tuple[str, float, float]
"""What was computed, its error, the largest error allowed."""


def error(found: Any, right: Any) -> float:
    """Returns the largest difference, relative to the largest right value."""
    right = np.asarray(right, np.float64)
    return float(np.abs(np.asarray(found, np.float64) - right).max() / max(np.abs(right).max(), 1e-30))


def sums(size: int) -> Iterator[Check]:
    """Yields sums of rows, of everything, and of squares, in float32."""
    x = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    wide = x.astype(np.float64)
    yield "sums of rows", error(jax.jit(lambda a: a.sum(1))(x), wide.sum(1)), 1e-5
    yield "sum of squares", error(jax.jit(lambda a: (a * a).sum())(x), (wide * wide).sum()), 1e-5
    # Far from zero, where a sum in one pass loses the digits.
    spread = error(jax.jit(lambda a: jnp.var(a + 100.0, 1))(x), (x + np.float32(100)).astype(np.float64).var(1))
    yield "variances of numbers near 100", spread, 1e-4


def products(size: int) -> Iterator[Check]:
    """Yields products of matrices at the three precisions, one pair and eight stacked ones."""
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(8, size, size)).astype(np.float32) for _ in range(2))
    right = a.astype(np.float64) @ b.astype(np.float64)
    for precision, bound in {"highest": 1e-5, "high": 5e-3, "default": 2e-2}.items():
        product = jax.jit(partial(jnp.matmul, precision=precision))
        yield f"product, {precision}", error(product(a[0], b[0]), right[0]), bound
        yield f"stacked products, {precision}", error(product(a, b), right), bound


def draws(size: int) -> Iterator[Check]:
    """Yields random bits beside those of this machine's CPU, and normals beside SciPy's inverse error function."""
    with jax.default_device(jax.devices("cpu")[0]):
        alone = [jax.random.bits(key, (size,)) for key in jax.random.split(jax.random.key(0), 4)]
        right = np.stack([np.asarray(bits) for bits in alone])
    keys = jax.random.split(jax.random.key(0), 4)
    stacked = np.asarray(jax.jit(jax.vmap(lambda key: jax.random.bits(key, (size,))))(keys))
    yield "random bits, share that differs from a CPU's", float(np.mean(stacked != right)), 0.0
    low = float(np.nextafter(np.float32(-1), np.float32(0)))
    uniform = jax.jit(jax.vmap(lambda key: jax.random.uniform(key, (size,), minval=low)))(keys)
    normal = jax.jit(jax.vmap(lambda key: jax.random.normal(key, (size,))))(keys)
    yield "normals", error(normal, np.sqrt(2) * special.erfinv(np.asarray(uniform, np.float64))), 1e-5


def gradients(replicas: int, batch: int) -> Iterator[Check]:
    """Yields the gradients of stacked replicas of LeNet beside those of each alone, with dropout."""
    problem = networks.problem("lenet", lax.conv_general_dilated)
    keys = jax.random.split(jax.random.key(2), replicas)
    params, rest = jax.jit(jax.vmap(problem.init))(keys)
    images, hyper = networks.images("lenet", batch), networks.fixed("lenet")

    def gradient(params: Any, rest: Any, key: jax.Array) -> Any:
        return jax.grad(lambda p: problem.loss(p, rest, images, hyper, key)[0].mean())(params)

    with jax.default_matmul_precision("highest"):
        stacked = jax.jit(jax.vmap(gradient))(params, rest, keys)
        alone = jax.jit(gradient)
        for place in range(replicas):
            row = partial(jax.tree.map, lambda leaf, m=place: leaf[m])
            pairs = zip(
                *(jax.tree.leaves(t) for t in (row(stacked), alone(row(params), row(rest), keys[place]))), strict=True
            )
            yield f"LeNet's gradients, replica {place}", max(error(one, other) for one, other in pairs), 1e-4


def main() -> None:
    """Checks, prints, writes; fails if a number is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="rows and columns of matrices, numbers drawn by a key")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for group in (
        sums(options.size),
        products(options.size),
        draws(options.size),
        gradients(options.replicas, options.batch),
    ):
        for name, found, bound in group:
            rows.append({"check": name, "error": found, "bound": bound, "right": found <= bound})
        record.write(options.out, rows)
    shown = [("computed", "error", "allowed", "right")]
    shown += [(r["check"], f"{r['error']:.1e}", f"{r['bound']:.0e}", "yes" if r["right"] else "NO") for r in rows]
    print("\n".join(report.markdown(shown)))
    if wrong := [row["check"] for row in rows if not row["right"]]:
        raise SystemExit(f"this device does not compute what NumPy computes: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
