#!/usr/bin/env bash
# tensorflow-probability 0.25.0 (JAX substrate): ReplicaExchangeMC over MetropolisAdjustedLangevinAlgorithm samples
# another law than the target. Of a standard normal distribution in two dimensions the coldest rung has the standard
# deviation 1.09 instead of 1, eight standard errors off. The same kernel alone is right, and so is the exchange over
# Hamiltonian or random-walk moves. 0.26.0-dev20261027 with jax 0.10.2 does the same.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow-probability==0.25.0 jax==0.4.35 jaxlib==0.4.35 numpy==1.26.4
"$folder/venv/bin/python" - <<'END'
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_probability.substrates.jax as tfp

CHAINS = 2000
STANDARD_ERROR = 1 / np.sqrt(2 * 2 * CHAINS)


def log_density(x):
    return -jnp.sum(x**2, -1) / 2


MOVES = {
    "Langevin": lambda density: tfp.mcmc.MetropolisAdjustedLangevinAlgorithm(density, step_size=0.6),
    "Hamiltonian": lambda density: tfp.mcmc.HamiltonianMonteCarlo(density, step_size=0.5, num_leapfrog_steps=3),
    "random walk": lambda density: tfp.mcmc.RandomWalkMetropolis(density),
}


def deviation(kernel):
    sample = lambda key: tfp.mcmc.sample_chain(
        200, jnp.zeros((CHAINS, 2)), kernel=kernel, num_burnin_steps=100, trace_fn=None, seed=key
    )
    return float(np.std(np.asarray(jax.jit(sample)(jax.random.PRNGKey(0)))[-1]))


wrong = set()
for name, make in MOVES.items():
    exchange = tfp.mcmc.ReplicaExchangeMC(
        log_density, inverse_temperatures=np.float32([1.0, 0.5, 0.25]), make_kernel_fn=make
    )
    for what, kernel in (("under exchange", exchange), ("alone", make(log_density))):
        found = deviation(kernel)
        print(f"{name} {what}: standard deviation {found:.3f}, +- {STANDARD_ERROR:.3f}")
        if abs(found - 1) > 5 * STANDARD_ERROR:
            wrong.add(f"{name} {what}")
print("tensorflow-probability", tfp.__version__, "jax", jax.__version__)
assert wrong == {"Langevin under exchange"}, "every kernel is right now, or another one is wrong"
END
