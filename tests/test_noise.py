import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt.models import noise


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_dropout_with_a_traced_rate_keeps_the_mean(rate):
    x = jnp.ones(40_000)
    out = np.asarray(jax.jit(noise.dropout)(jax.random.key(0), x, rate))
    zero = (out == 0).mean()
    assert abs(zero - rate) < 4 * np.sqrt(rate * (1 - rate) / x.size) + 1e-9
    if rate < 1:
        np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=2**-16 / (1 - rate))


@pytest.mark.parametrize("rate", [0.05, 1 / 3, 0.9999])
def test_the_scale_is_that_of_the_rate_which_is_used(rate):
    """The rate is a multiple of 2**-16, and the mean is kept with that one to the last bit."""
    out = np.asarray(noise.dropout(jax.random.key(0), jnp.ones(100_000), rate))
    kept = 2**16 / out[out != 0].astype(np.float64)
    np.testing.assert_allclose(kept, round(2**16 * (1 - rate)), rtol=1e-6)
    assert abs((out != 0).mean() - kept[0] / 2**16) < 4 * np.sqrt(rate * (1 - rate) / out.size)


def test_elements_are_dropped_independently_in_arrays_of_any_shape():
    for shape in ((), (1,), (3, 5, 7)):
        assert noise.dropout(jax.random.key(0), jnp.ones(shape), 0.5).shape == shape
    out = np.asarray(noise.dropout(jax.random.key(0), jnp.ones((2000, 7)), 0.5)) - 1
    correlation = np.corrcoef(out.T) - np.eye(7)
    assert np.abs(correlation).max() < 5 / np.sqrt(2000), "neighbours share a random word, not its bits"


SHARED = {  # shape of what is dropped: shape of the words that are drawn
    (6, 4): (3, 4),
    (6, 4, 4): (6, 2, 4),
    (6, 3, 4): (3, 3, 4),
    (5, 4, 2): (5, 2, 2),
    (5, 7): (5, 4),
    (3,): (2,),
    (1, 1): (1, 1),
    (): (),
    (0, 3): (0, 3),
    (3, 0): (3, 0),
}


@pytest.mark.parametrize("shape", SHARED)
def test_two_elements_half_an_axis_apart_share_a_word(shape):
    key, drawn = jax.random.key(0), SHARED[shape]
    found, words = np.asarray(noise._sixteen_bits(key, shape)), np.asarray(jax.random.bits(key, drawn, jnp.uint32))
    assert found.shape == shape
    if not shape:
        assert found == words >> 16
        return
    axis = next((i for i, (n, m) in enumerate(zip(shape, drawn, strict=True)) if n != m), 0)
    low, high = np.split(found, [drawn[axis]], axis)
    np.testing.assert_array_equal(low, words & 0xFFFF)
    np.testing.assert_array_equal(high, np.take(words, range(high.shape[axis]), axis) >> 16)


def test_elements_that_share_a_word_are_independent():
    out = np.asarray(noise.dropout(jax.random.key(0), jnp.ones((40_000, 2)), 0.5)) - 1
    assert abs(np.mean(out[:20_000] * out[20_000:])) < 4 / 200
    numbers = np.asarray(noise._sixteen_bits(jax.random.key(1), (40_000,)))
    np.testing.assert_allclose(
        [numbers[:20_000].mean(), numbers[20_000:].mean()], 2**15, atol=4 * 2**16 / 12**0.5 / 141
    )
    assert numbers.max() < 2**16


def test_dropout_moves_no_single_numbers_under_vmap():
    """Halves of a word that lie beside each other cost most of a training step on a TPU."""
    keys, x = jax.random.split(jax.random.key(0), 8), jnp.ones((8, 128, 14, 14, 6))
    text = str(jax.make_jaxpr(jax.vmap(lambda key, x: noise.dropout(key, x, 0.1)))(keys, x))
    assert "bitcast_convert_type" not in text
    assert "reshape" not in text
    assert "shape=(128, 7, 14, 6)" in text, "one word of 32 bits for two numbers"


def test_dropout_of_everything_has_a_finite_gradient():
    grad = jax.grad(lambda x: noise.dropout(jax.random.key(0), x, 1.0).sum())(jnp.ones(5))
    np.testing.assert_array_equal(grad, 0)


def test_gaussian_noise_has_the_given_deviation():
    out = noise.gaussian(jax.random.key(0), jnp.full(40_000, 2.0), 0.5)
    assert abs(out.mean() - 2) < 4 * 0.5 / 200
    assert abs(out.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * 40_000)


def test_gradient_noise_is_fresh_with_each_key_and_leaf():
    transform = noise.gradient_noise(0.5)
    zeros = {"a": jnp.zeros(20_000), "b": jnp.zeros(20_000)}
    state = transform.init(zeros)
    one, _ = transform.update(zeros, state, key=jax.random.key(0))
    two, _ = transform.update(zeros, state, key=jax.random.key(1))
    assert abs(one["a"].std() - 0.5) < 0.01
    for u, v in ((one["a"], one["b"]), (one["a"], two["a"])):
        assert abs(np.corrcoef(u, v)[0, 1]) < 4 / np.sqrt(20_000)


def test_two_noises_of_one_optimizer_are_independent():
    """Langevin noise and gradient noise add up in variance: 1 + 2 * 0.5 * 1 = 2."""
    both = optax.chain(noise.gradient_noise(1.0), noise.langevin(1.0, 0.5))
    zeros = jnp.zeros(40_000)
    moved, _ = both.update(zeros, both.init(zeros), zeros, key=jax.random.key(0))
    assert abs(moved.var() - 2) < 4 * 2 * np.sqrt(2 / 40_000)
    one, two = (noise.gradient_noise(1.0, salt) for salt in (0, 1))
    pair = [n.update(zeros, n.init(zeros), key=jax.random.key(0))[0] for n in (one, two)]
    assert abs(np.corrcoef(*pair)[0, 1]) < 4 / 200


def test_langevin_on_a_quadratic_has_the_exactly_known_variance():
    """W <- (1 - lr k) W + sqrt(2 lr T) xi has the stationary variance T / (k (1 - lr k / 2))."""
    lr, temperature, stiffness = 0.1, 0.7, 2.0
    transform = noise.langevin(lr, temperature)

    def step(w, key):
        updates, _ = transform.update(stiffness * w, transform.init(w), w, key=key)
        return optax.apply_updates(w, updates), None

    w, _ = jax.lax.scan(step, jnp.zeros(40_000), jax.random.split(jax.random.key(0), 60))
    expected = temperature / (stiffness * (1 - lr * stiffness / 2))
    assert abs(w.var() - expected) < 4 * expected * np.sqrt(2 / w.size)
