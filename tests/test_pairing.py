import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxpt
from jaxpt.pairing import deo, named, random_adjacent, seo


@pytest.mark.parametrize("rungs", [2, 3, 8])
def test_random_adjacent_offers_one_pair_and_each_as_often(rungs):
    keys = jax.random.split(jax.random.key(0), 4000)
    pairs = np.asarray(jax.vmap(lambda k: random_adjacent(k, jnp.asarray(0), rungs))(keys))
    assert (pairs.sum(1) == 1).all()
    if rungs > 2:
        assert stats.chisquare(pairs.sum(0)).pvalue > 0.001


def test_seo_offers_all_even_or_all_odd_pairs_by_a_fair_coin():
    keys = jax.random.split(jax.random.key(1), 4000)
    pairs = np.asarray(jax.vmap(lambda k: seo(k, jnp.asarray(0), 6))(keys))
    even = pairs[:, 0]
    np.testing.assert_array_equal(pairs, np.where(even[:, None], [1, 0, 1, 0, 1], [0, 1, 0, 1, 0]))
    assert stats.binomtest(int(even.sum()), len(even)).pvalue > 0.001


@pytest.mark.parametrize("rungs", [2, 3, 6])
def test_deo_offers_even_and_odd_pairs_in_turn(rungs):
    for turn in range(4):
        pairs = deo(jax.random.key(turn), jnp.asarray(turn), rungs)
        np.testing.assert_array_equal(pairs, np.arange(rungs - 1) % 2 == turn % 2)


def test_an_unknown_pairing_is_refused_by_name():
    for make in (lambda: jaxpt.Tempering(1.0, "even"), lambda: named("even")):
        with pytest.raises(ValueError, match="pairing must be one of random_adjacent, seo, deo"):
            make()
