import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import jaxpt
from jaxpt.rules.pairing import deo, named, random_adjacent, seo


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


def test_deo_offers_the_only_pair_of_two_rungs_in_every_exchange():
    assert all(deo(jax.random.key(0), jnp.asarray(turn), 2).tolist() == [True] for turn in range(4))


@pytest.mark.parametrize("rungs", [3, 6])
def test_deo_offers_even_and_odd_pairs_in_turn(rungs):
    for turn in range(4):
        pairs = deo(jax.random.key(turn), jnp.asarray(turn), rungs)
        np.testing.assert_array_equal(pairs, np.arange(rungs - 1) % 2 == turn % 2)


def all_pairs(key, turn, num_rungs):
    return jnp.ones(num_rungs - 1, bool)


def coins(key, turn, num_rungs):
    return jax.random.bernoulli(key, 0.6, (num_rungs - 1,))


def late(key, turn, num_rungs):
    """Right for 300 exchanges."""
    return (jnp.arange(num_rungs - 1) % 2 == 0) | (turn >= 300)


@pytest.mark.parametrize("pairing", [all_pairs, coins, late, jax.jit(coins, static_argnums=2)])
@pytest.mark.parametrize("rungs", [2, 3, 8])
def test_an_exchange_gives_a_permutation_whatever_is_offered(pairing, rungs):
    """Pairs are taken from the cold end by a plain loop; one that shares a rung with the pair before is left out."""
    keys, turns = jax.random.split(jax.random.key(0), 40), jnp.arange(280, 320)
    before = jax.vmap(lambda key: jax.random.permutation(key, rungs))(keys)
    beta, equal = jnp.linspace(2.0, 1.0, rungs), jnp.zeros(rungs)  # equal energies: whatever is offered is accepted
    many = jax.vmap(lambda k, rung, turn: jaxpt.exchange(k, beta, equal, rung, pairing=pairing, turn=turn))
    after, info = jax.tree.map(np.asarray, many(keys, before, turns))
    offers = jax.vmap(lambda key, turn: pairing(jax.random.split(key)[0], turn, rungs))(keys, turns)
    for row, asked in enumerate(np.asarray(offers)):
        kept = []
        for pair in range(rungs - 1):
            kept.append(bool(asked[pair]) and not (kept and kept[-1]))
        np.testing.assert_array_equal(info.attempted[row], kept)
        np.testing.assert_array_equal(info.accepted[row], kept)
        on_rung = np.argsort(before[row])
        for pair in np.flatnonzero(kept):
            on_rung[[pair, pair + 1]] = on_rung[[pair + 1, pair]]
        np.testing.assert_array_equal(np.argsort(after[row]), on_rung)


def tempered(pairing, rungs=4):
    problem = jaxpt.energy_problem(lambda w: w**2, jax.random.normal)
    ladder = jaxpt.Ladder(learning_rate=np.linspace(0.1, 0.2, rungs))
    rule = jaxpt.Tempering(1.0, pairing)
    return jaxpt.Engine(problem, lambda h: optax.sgd(h["learning_rate"]), ladder, rule, every=2)


@pytest.mark.parametrize(
    ("pairing", "said"),
    {
        all_pairs: r"turn=0 and num_rungs=4 it offers rungs \(0, 1\) and \(1, 2\) together: \[True, True, True\]",
        coins: "together",
        late: r"turn=300 and num_rungs=4",
        (lambda key, turn, num_rungs: jnp.zeros(num_rungs, bool)): r"bool\[3\] for 4 rungs, but it returns bool\[4\]",
        (lambda key, turn, num_rungs: jnp.arange(3) % 2): r"but it returns int32\[3\]",
        (lambda key, turn, num_rungs: [True, False, True]): r"but it returns \[True, False, True\]",
        (lambda key, turn, num_rungs: None): "but it returns None",
        (lambda key, turn: None): r"pairing is called as pairing\(key, turn, num_rungs\)",
        (lambda key, turn, num_rungs: deo(key, 0, num_rungs) if turn % 2 else deo(key, 1, num_rungs)): "Tracer",
    }.items(),
)
def test_an_engine_refuses_a_pairing_that_would_not_do(pairing, said):
    with pytest.raises(ValueError, match=said):
        tempered(pairing)


def test_an_engine_takes_pairings_of_ones_own():
    tempered(lambda key, turn, num_rungs: jnp.arange(num_rungs - 1) % 3 == turn % 3)
    tempered(lambda key, turn, num_rungs: np.arange(num_rungs - 1) % 2 == 0)
    tempered(all_pairs, 2)


def test_an_unknown_pairing_is_refused_by_name():
    for make in (lambda: jaxpt.Tempering(1.0, "even"), lambda: named("even")):
        with pytest.raises(ValueError, match="pairing must be one of random_adjacent, seo, deo"):
            make()
