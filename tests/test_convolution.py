import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxpt

OWN = {"conv_general_dilated": jaxpt.conv_general_dilated}
CASES = [
    ((2, 8, 8, 1), (3, 3), 5, (2, 2), "SAME"),
    ((2, 9, 7, 3), (3, 5), 4, (1, 2), "VALID"),
    ((2, 6, 6, 2), (2, 2), 3, (1, 1), [(1, 0), (0, 2)]),
    ((2, 5, 5, 2), (1, 1), 3, (1, 1), "SAME"),
]


@pytest.mark.parametrize(("shape", "kernel", "features", "strides", "padding"), CASES)
def test_products_equal_lax_with_gradients_under_vmap(shape, kernel, features, strides, padding):
    """In float64 to 1e-12: the same sums in another order."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(3, *shape)))
        w = jnp.asarray(rng.normal(size=(3, *kernel, shape[-1], features)))

        def total(conv, x, w):
            out = conv(x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return jnp.sum(jnp.sin(out)), out

        def grads(conv):
            return jax.vmap(jax.grad(lambda x, w: total(conv, x, w), (0, 1), has_aux=True))(x, w)

        pair = grads(jaxpt.conv_by_products), grads(lax.conv_general_dilated)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *pair)


@pytest.mark.parametrize(
    "extra",
    [{"kernel_dilation": 2}, {"feature_group_count": 2}, {"input_dilation": 2, "padding": ((1, 1), (1, 1))}],
)
def test_what_products_do_not_cover_goes_to_lax(extra):
    layers = [nnx.Conv(4, 6, (3, 3), rngs=nnx.Rngs(0), **extra, **conv) for conv in ({}, OWN)]
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    np.testing.assert_array_equal(layers[0](x), layers[1](x))


def test_it_replaces_the_convolution_of_a_stock_layer():
    stock, own = (nnx.Conv(3, 6, (3, 3), strides=2, rngs=nnx.Rngs(0), **conv) for conv in ({}, OWN))
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    np.testing.assert_allclose(stock(x), own(x), rtol=1e-5, atol=1e-5)
