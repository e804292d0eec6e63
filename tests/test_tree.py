import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt.core import tree


def test_leading_is_the_shared_first_axis():
    assert tree.leading({"a": np.zeros((3, 2)), "b": np.zeros(3)}) == 3


@pytest.mark.parametrize("bad", [{}, {"a": np.zeros(())}, {"a": np.zeros(2), "b": np.zeros(3)}])
def test_leading_says_which_arrays_disagree(bad):
    with pytest.raises(ValueError, match=r"data\.train"):
        tree.leading(bad, "data.train")


def test_take_takes_from_every_leaf():
    taken = tree.take({"a": jnp.arange(6).reshape(3, 2), "b": jnp.arange(3)}, 1)
    np.testing.assert_array_equal(taken["a"], [2, 3])
    assert taken["b"] == 1


def test_a_registered_class_travels_through_jit_without_its_constructor():
    ladder = jaxpt.Ladder(learning_rate=[0.1, 0.2])
    doubled = jax.jit(lambda la: jax.tree.map(lambda leaf: 2 * leaf, la))(ladder)
    assert isinstance(doubled, jaxpt.Ladder)
    assert doubled.name == "learning_rate"
    np.testing.assert_allclose(doubled.values["learning_rate"], [0.2, 0.4], rtol=1e-6)
