import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.engine.reads import has_state, hyperparameters_read
from jaxpt.engine.replica import rescale_momentum
from jaxpt.engine.scoring import mean_scores


@pytest.mark.parametrize(("chunk", "size"), [(1, 1), (3, 3), (7, 5), (9, 5), (10, 10), (100, 10)])
def test_means_over_even_chunks_are_means_over_all(chunk, size):
    sizes = set()

    def energy(w, batch):
        sizes.add(len(batch))
        return w * batch

    problem = jaxpt.energy_problem(energy, lambda key: jnp.ones(()), metrics={"big": lambda w, batch: batch > 4})
    engine = jaxpt.Engine(
        problem, lambda h: optax.sgd(h["learning_rate"]), jaxpt.Ladder(learning_rate=[0.1, 0.2]), every=1
    )
    replicas = engine.init(jax.random.key(0)).replicas._replace(params=jnp.array([1.0, 2.0]))
    scores = mean_scores(problem, jax.vmap, replicas, jnp.arange(10.0), chunk)
    np.testing.assert_allclose(scores["energy"], [4.5, 9.0], rtol=1e-6)
    np.testing.assert_allclose(scores["big"], [0.5, 0.5], rtol=1e-6)
    assert sizes == {size}


def test_rescale_momentum_touches_momentum_only():
    params = {"w": jnp.ones((2, 3))}
    state = jax.vmap(optax.chain(optax.trace(0.9), optax.scale_by_adam()).init)(params)
    state = jax.tree.map(jnp.ones_like, state)
    assert has_state(state, (optax.TraceState,))
    scaled = rescale_momentum(state, jnp.array([2.0, 0.5]))
    np.testing.assert_array_equal(scaled[0].trace["w"][:, 0], [2.0, 0.5])
    jax.tree.map(np.testing.assert_array_equal, scaled[1], state[1])
    assert not has_state(state[1], (optax.TraceState,))


def test_reads_finds_the_names_even_those_that_only_an_update_reads():
    problem = jaxpt.energy_problem(lambda w: w, lambda key: jnp.ones(()))
    hyper = dict.fromkeys(["learning_rate", "momentum", "idle"], jax.ShapeDtypeStruct((), jnp.float32))
    optimizer = lambda h: optax.sgd(lambda step: h["learning_rate"] * step, momentum=h["momentum"])
    assert hyperparameters_read(problem, optimizer, None, hyper) == {"learning_rate", "momentum"}
    schedule = lambda h, step: {**h, "learning_rate": h["idle"]}
    assert hyperparameters_read(problem, optimizer, schedule, hyper) == {"learning_rate", "momentum", "idle"}
    with pytest.raises(KeyError, match="weight_decay"):
        hyperparameters_read(problem, lambda h: optax.sgd(h["weight_decay"]), None, hyper)
