#!/usr/bin/env bash
# jaxlib 0.10.2 on CPUs: a compiled, vmapped sum of squares of W @ row over more than 32,768 rows of three numbers is wrong
# (jax issue 39103), by more than rounding by orders of magnitude, without a message. Without XLA's YNNPACK fusions the
# same program is right, and so is a loop in NumPy.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'END'
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

rng = np.random.default_rng(0)
w, rows = rng.normal(size=(3, 3)).astype("f4"), rng.normal(size=(40_000, 3)).astype("f4")
f = jax.jit(jax.vmap(lambda w, row: jnp.sum((w @ row) ** 2), in_axes=(None, 0)))
right = ((rows.astype("f8") @ w.T.astype("f8")) ** 2).sum(-1)


def error(found):
    return float((np.abs(np.asarray(found) - right) / right).max())


stock = error(f(w, rows))
fewer = float((np.abs(np.asarray(f(w, rows[:32_768])) - right[:32_768]) / right[:32_768]).max())
option = {"xla_cpu_experimental_ynn_fusion_type": ""}
without = error(f.lower(w, rows).compile(compiler_options=option)(w, rows))
print("jaxlib", jaxlib.__version__)
print(f"largest relative error of a row: {stock:.2g}; of 32,768 rows: {fewer:.2g}; without the fusions: {without:.2g}")
assert stock > 0.01, "the sums are right now"
assert fewer < 1e-3 and without < 1e-3, "these were right"
END
