import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxpt

X = jnp.ones((200, 50))


@pytest.mark.parametrize("layer", [jaxpt.Dropout, jaxpt.GaussianNoise])
def test_layers_do_nothing_in_evaluation(layer):
    module = layer("strength", rngs=nnx.Rngs(0))
    module.strength[...] = 0.5
    assert not np.array_equal(module(X), X)
    module.eval()
    np.testing.assert_array_equal(module(X), X)
    np.testing.assert_array_equal(nnx.view(module, deterministic=True)(X), X)


def test_every_call_draws_anew():
    module = jaxpt.Dropout("rate", rngs=nnx.Rngs(0))
    module.strength[...] = 0.5
    assert not np.array_equal(module(X), module(X))


@pytest.mark.parametrize("layer", [jaxpt.linen.Dropout, jaxpt.linen.GaussianNoise])
def test_linen_layers_read_the_collection(layer):
    module = layer("strength")
    variables = module.init(jax.random.key(0), X, deterministic=True)
    assert variables["hyperparameters"]["strength"].shape == ()
    filled = {"hyperparameters": {"strength": jnp.asarray(0.5)}}
    rngs = {"params": jax.random.key(1)}
    assert not np.array_equal(module.apply(filled, X, deterministic=False, rngs=rngs), X)
    np.testing.assert_array_equal(module.apply(filled, X, deterministic=True), X)
