#!/usr/bin/env bash
# optax 0.2.8: optax.rprop reads its learning rate in `init` only. inject_hyperparams lets the rate be set and records the
# new one, and training goes on exactly as before, without a message. optax.sgd follows the same assignment.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'END'
import jax.numpy as jnp
import optax


def update_after_setting_the_rate(make, rate):
    optimizer = optax.inject_hyperparams(make)(learning_rate=0.1)
    params, gradient = jnp.ones(2), jnp.array([1.0, -1.0])
    state = optimizer.init(params)
    state.hyperparams["learning_rate"] = jnp.asarray(rate)
    for _ in range(3):  # the first update is zero
        update, state = optimizer.update(gradient, state, params)
    return update.tolist(), float(state.hyperparams["learning_rate"])


print("optax", optax.__version__)
for make in (optax.rprop, optax.sgd):
    old, new = update_after_setting_the_rate(make, 0.1), update_after_setting_the_rate(make, 0.001)
    print(f"{make.__name__}: rate 0.1 -> third update {old[0]}, rate set to 0.001 (recorded {new[1]:g}) -> third update {new[0]}")
    assert 0 not in old[0] and (old[0] == new[0]) == (make is optax.rprop), "rprop follows the rate now"
END
