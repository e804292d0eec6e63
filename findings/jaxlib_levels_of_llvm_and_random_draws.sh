#!/usr/bin/env bash
# jax and jaxlib 0.12.0.1, CPU: at LLVM's level 3, the default, each draw of random numbers (threefry) of a program adds
# 1 to 2 seconds to its compilation. At level 2 (`xla_backend_optimization_level`) it adds less than a tenth of that, and
# the numbers are the same to the bit. A program that draws the first weights of a network of 20 layers is one to suffer.
# Needs Python 3.12 or later: PYTHON=python3.12 findings/jaxlib_levels_of_llvm_and_random_draws.sh
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.12.0.1 jaxlib==0.12.0.1
cat >"$folder/levels.py" <<'END'
import time

import jax
import numpy as np


def draws(key):
    return [jax.random.uniform(jax.random.fold_in(key, i), (3, 3, 16, 16)) for i in range(6)]


key, seconds, numbers = jax.random.key(0), {}, {}
jax.block_until_ready(jax.jit(draws).lower(key).compile(compiler_options={"xla_backend_optimization_level": 0})(key))
for level in (3, 2):
    lowered = jax.jit(draws).lower(key)
    started = time.process_time()
    program = lowered.compile(compiler_options={"xla_backend_optimization_level": level})
    seconds[level] = time.process_time() - started
    numbers[level] = np.stack([np.asarray(each) for each in program(key)])
    print(f"jax {jax.__version__}, level {level}: {seconds[level]:.2f} seconds to compile six draws", flush=True)
jax.clear_caches()
started = time.process_time()
jax.jit(draws).lower(key).compile()
default = time.process_time() - started
print(f"without the option: {default:.2f} seconds; same bits: {np.array_equal(numbers[3], numbers[2])}")
assert np.array_equal(numbers[3], numbers[2])
assert seconds[3] > 5 * seconds[2] and default > 5 * seconds[2], "the levels differ less"
END
"$folder/venv/bin/python" "$folder/levels.py"
