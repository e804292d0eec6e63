#!/usr/bin/env bash
# flax 0.12.8: a plain array that a module's constructor keeps is data when the module is made outside of JAX's
# transformations, and static when it is made inside one (jax.eval_shape, jax.jit, jax.vmap): nnx.split then has no leaf
# for it, and the graph definition holds a tracer. jax.jit of a function that makes the module returns an empty state,
# without a message. nnx.data(array) or nnx.Variable(array) has a leaf in both.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'END'
import flax
import jax
import jax.numpy as jnp
from flax import nnx


class Table(nnx.Module):
    def __init__(self, wrap):
        self.values = wrap(jnp.arange(3.0))


found = {}
for name, wrap in {"plain": lambda array: array, "nnx.data": nnx.data, "nnx.Variable": nnx.Variable}.items():
    state = lambda: nnx.split(Table(wrap))[1]
    found[name] = len(jax.tree.leaves(state())), len(jax.tree.leaves(jax.jit(state)()))
    print(f"{name}: {found[name][0]} leaf made outside, {found[name][1]} made inside jax.jit")
print("flax", flax.__version__)
assert found == {"plain": (1, 0), "nnx.data": (1, 1), "nnx.Variable": (1, 1)}, "arrays are data in both cases now"
END
