"""Accumulated gradients, clipping, masks and partitions take the replica's own rate under swaps, as in a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt

X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
DATA = {"x": X, "y": X @ np.array([1.0, -2.0, 0.5], np.float32) + 1}
EVERY, STEPS = 4, 24


def energy(params, batch):
    return (batch["x"] @ params["body"]["w"] + params["out"]["b"] - batch["y"]) ** 2


def init(key):
    return {"body": {"w": jax.random.normal(key, (3,))}, "out": {"b": jnp.zeros(())}}


def label(params):
    return jax.tree.map_with_path(lambda path, _: "head" if path[0].key == "out" else "body", params)


def is_vector(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 0, params)


OPTIMIZERS = {
    "MultiSteps": lambda h: optax.MultiSteps(optax.adam(h["learning_rate"]), every_k_schedule=4),
    "clipping": lambda h: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(h["learning_rate"])),
    "a mask": lambda h: optax.adamw(h["learning_rate"], weight_decay=0.1, mask=is_vector),
    "masked": lambda h: optax.chain(
        optax.masked(optax.add_decayed_weights(h["learning_rate"]), is_vector), optax.sgd(h["learning_rate"])
    ),
    "partition": lambda h: optax.partition(
        {"head": optax.adam(h["learning_rate"]), "body": optax.adam(0.1 * h["learning_rate"])}, label
    ),
    "freezing": lambda h: optax.partition({"head": optax.adam(h["learning_rate"]), "body": optax.set_to_zero()}, label),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_plain_loop_with_the_rates_of_each_period(name):
    """Every offered swap is accepted, so rates change; the batch is the whole split, so its order does not matter."""
    make = OPTIMIZERS[name]
    ladder = jaxpt.Ladder(learning_rate=[0.01, 0.03, 0.1])
    problem = jaxpt.energy_problem(energy, init)
    engine = jaxpt.Engine(problem, make, ladder, jaxpt.Tempering(strength=0.0), every=EVERY, batch_size=32)
    state = engine.init(jax.random.key(0))
    after, trace = engine.run(state, jaxpt.Data(DATA, DATA), periods=STEPS // EVERY)
    rates = np.asarray(trace.hyper["learning_rate"])
    assert len({tuple(row) for row in rates.tolist()}) > 1, "rates were swapped"

    @jax.jit
    def step(params, opt_state, rate):
        transform = make({"learning_rate": rate})
        grads = jax.grad(lambda params: energy(params, DATA).mean())(params)
        updates, opt_state = transform.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for replica in range(3):
        params = jax.tree.map(lambda leaf, k=replica: leaf[k], state.replicas.params)
        opt_state = make({"learning_rate": rates[0, replica]}).init(params)
        for number in range(STEPS):
            params, opt_state = step(params, opt_state, rates[number // EVERY, replica])
        for found, expected in zip(jax.tree.leaves(after.replicas.params), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(found[replica], expected, rtol=1e-3, atol=1e-5)
