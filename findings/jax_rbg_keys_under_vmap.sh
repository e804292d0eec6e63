#!/usr/bin/env bash
# jax 0.10.2: "rbg" keys under vmap draw all bits from the first key of the batch. A member of a vmapped population gets other
# numbers than the same key alone, and members after the first ones ignore their own keys: replacing those changes nothing.
# (The documentation of jax.random mentions that rbg does not vmap as others do; no message appears.)
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'END'
import jax
import jax.numpy as jnp

print("jax", jax.__version__)
draw = lambda key: jax.random.bits(key, (2,))
keys = jax.random.split(jax.random.key(0, impl="rbg"), 3)
others = jax.random.split(jax.random.key(1, impl="rbg"), 3)
mixed = jnp.concatenate([keys[:1], others[1:]])  # the same first key, other keys after it
alone = jnp.stack([draw(key) for key in keys])
print("each key alone:", alone.tolist())
print("under vmap:    ", jax.vmap(draw)(keys).tolist())
print("keys 1, 2 new: ", jax.vmap(draw)(mixed).tolist())
assert (jax.vmap(draw)(keys) == jax.vmap(draw)(mixed)).all(), "later keys count now"
assert (jax.vmap(draw)(keys)[1:] != alone[1:]).any(), "vmap agrees with single keys now"
END
