import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt


def test_cross_entropy_with_smoothing_is_the_mixture_of_targets():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 4)).astype(np.float32), np.array([0, 1, 2, 3, 0])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    plain = -log_p[np.arange(5), labels]
    np.testing.assert_allclose(jaxpt.cross_entropy(logits, labels), plain, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jaxpt.cross_entropy)(logits, labels, 0.0), plain, rtol=1e-5)
    smooth = 0.8 * plain - 0.2 * log_p.mean(-1)
    np.testing.assert_allclose(jax.jit(jaxpt.cross_entropy)(logits, labels, 0.2), smooth, rtol=1e-5)


def test_errors_are_wrong_first_guesses():
    assert jaxpt.zero_one_loss(jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1, 1])).tolist() == [False, True]


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [1, 26]])
def test_labels_out_of_range_are_named(labels):
    with pytest.raises(ValueError, match=f"labels {min(labels)} .. {max(labels)}"):
        jaxpt.cross_entropy(jnp.zeros((2, 3)), jnp.asarray(labels))


def test_labels_must_be_integers():
    with pytest.raises(ValueError, match="must be integers"):
        jaxpt.cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2))


def test_negative_log_likelihood_of_a_softmax_is_the_cross_entropy():
    logits, labels = jnp.array([[1.0, 2.0, -1.0], [0.0, 0.0, 3.0]]), jnp.array([0, 2])
    found = jaxpt.negative_log_likelihood(jax.nn.softmax(logits), labels)
    np.testing.assert_allclose(found, jaxpt.cross_entropy(logits, labels), rtol=1e-6)
    assert jaxpt.negative_log_likelihood(jnp.array([[0.0, 1.0]]), jnp.array([0])) == jnp.inf
    with pytest.raises(ValueError, match="labels must lie in"):
        jaxpt.negative_log_likelihood(jax.nn.softmax(logits), labels + 1)
