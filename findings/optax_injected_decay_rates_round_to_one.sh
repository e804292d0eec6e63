#!/usr/bin/env bash
# optax 0.2.8: inject_hyperparams gives every number the dtype of the first weight, those that nobody set as well. In
# bfloat16 Adam's b2 = 0.999 is 1.0, its bias correction divides by zero, and the first update of a network with bfloat16
# weights is NaN. optax.adam alone, or hyperparam_dtype=float32, trains.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'END'
import jax.numpy as jnp
import optax

params, gradient = jnp.ones(2, jnp.bfloat16), jnp.array([0.5, -0.5], jnp.bfloat16)
inject = optax.inject_hyperparams
found = {}
for name, optimizer in {
    "adam": optax.adam(0.001),
    "injected": inject(optax.adam)(learning_rate=0.001),
    "injected, hyperparam_dtype=float32": inject(optax.adam, hyperparam_dtype=jnp.float32)(learning_rate=0.001),
}.items():
    state = optimizer.init(params)
    update, _ = optimizer.update(gradient, state, params)
    b2 = float(state.hyperparams["b2"]) if hasattr(state, "hyperparams") else 0.999
    found[name] = bool(jnp.isfinite(update).all())
    print(f"optax {optax.__version__}, {name}: b2 {b2:.4f}, first update {update.tolist()}")

assert found == {"adam": True, "injected": False, "injected, hyperparam_dtype=float32": True}, found
END
