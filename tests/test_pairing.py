import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpt.pairing import random_adjacent


@pytest.mark.parametrize("rungs", [2, 3, 8])
def test_random_adjacent_offers_one_pair_and_each_as_often(rungs):
    keys = jax.random.split(jax.random.key(0), 4000)
    pairs = np.asarray(jax.vmap(lambda k: random_adjacent(k, jnp.asarray(0), rungs))(keys))
    assert (pairs.sum(1) == 1).all()
    if rungs > 2:
        assert stats.chisquare(pairs.sum(0)).pvalue > 0.001
