#!/usr/bin/env bash
# jax 0.10.2 with its default of 32-bit integers: jax.random.key keeps only the low 32 bits of a seed, without a message,
# so seeds that differ by a multiple of 2**32 draw the same numbers. jnp.asarray of the same integer raises OverflowError.
# Expected: an error, as for other integers, or all 64 bits (they fit into the key's two words). With jax_enable_x64 the
# upper half is used, so the same script draws other numbers.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'END'
import jax
import jax.numpy as jnp

small, large = jax.random.key(5), jax.random.key(2**32 + 5)
print("jax", jax.__version__)
print("seed 5:        ", jax.random.key_data(small), jax.random.normal(small, 3))
print("seed 2**32 + 5:", jax.random.key_data(large), jax.random.normal(large, 3))
assert (jax.random.key_data(small) == jax.random.key_data(large)).all(), "the seeds differ now"
try:
    jnp.asarray(2**32 + 5)
except OverflowError as error:
    print("jnp.asarray(2**32 + 5): OverflowError:", error)
else:
    raise SystemExit("jnp.asarray takes the integer now")
END
