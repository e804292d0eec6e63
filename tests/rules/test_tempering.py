import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt.rules import exchange
from jaxpt.rules.pairing import random_adjacent


def repeat(n, beta, energy, rung, **options):
    """n exchanges from the same state, with n keys."""
    run = lambda key: exchange(key, beta, energy, rung, **options)
    moved, info = jax.vmap(run)(jax.random.split(jax.random.key(1), n))
    return np.asarray(moved), jax.tree.map(np.asarray, info)


def test_an_exchange_only_permutes():
    rng = np.random.default_rng(0)
    beta, energy = jnp.sort(rng.random(7, np.float32))[::-1], jnp.asarray(rng.random(7, np.float32))
    rung = jnp.asarray(rng.permutation(7))
    moved, info = repeat(500, beta, energy, rung, C=5.0)
    np.testing.assert_array_equal(np.sort(moved, -1), np.tile(np.arange(7), (500, 1)))
    swapped = (moved != np.asarray(rung)).sum(-1)
    np.testing.assert_array_equal(swapped, 2 * info.accepted.sum(-1))
    assert 0 < info.accepted.sum() < 500


def test_the_swapped_replicas_are_those_on_the_accepted_pair():
    beta, energy = jnp.array([4.0, 3.0, 2.0, 1.0]), jnp.array([1.0, 4.0, 2.0, 3.0])
    rung = jnp.array([2, 0, 3, 1])
    moved, info = repeat(200, beta, energy, rung, C=1.0)
    for after, accepted in zip(moved, info.accepted, strict=True):
        expected = np.array(rung)
        for pair in np.flatnonzero(accepted):
            low, high = np.flatnonzero(rung == pair)[0], np.flatnonzero(rung == pair + 1)[0]
            expected[low], expected[high] = pair + 1, pair
        np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("C", [0.5, 1.0, 20.0])
@pytest.mark.parametrize("beta", [(2.0, 1.0), (100.0, 60.0), (1.0, 1.0)])
@pytest.mark.parametrize("energy", [(0.3, 0.31), (0.31, 0.3), (0.2, 1.2), (1.2, 0.2), (0.5, 0.5)])
def test_acceptance_matches_the_metropolis_rule(C, beta, energy):
    """Formula and measured frequency, 4 standard errors of 4000 tries; a flipped sign fails every unequal case."""
    expected = np.exp(min(0.0, C * (beta[0] - beta[1]) * (energy[0] - energy[1])))
    n = 4000
    _, info = repeat(n, jnp.array(beta), jnp.array(energy), jnp.array([0, 1]), C=C)
    np.testing.assert_allclose(info.probability[0], expected, rtol=2e-4, atol=1e-7)
    tolerance = 4 * np.sqrt(expected * (1 - expected) / n) + 1e-3
    assert abs(info.accepted.mean() - expected) < tolerance


def test_which_pair_is_offered_says_nothing_about_its_acceptance():
    """Two keys, not one: a pairing that draws its coin as the swap does must not see the swap's; 4 standard errors."""
    coin = lambda key, turn, rungs: jax.random.uniform(key, (rungs - 1,)) < 0.5
    _, info = repeat(4000, jnp.array([1.0, 0.0]), jnp.array([0.0, jnp.log(2.0)]), jnp.arange(2), pairing=coin)
    np.testing.assert_allclose(info.probability, 0.5, rtol=1e-5)
    offered = info.attempted.sum()
    assert abs(offered - 2000) < 4 * np.sqrt(1000)
    assert abs(info.accepted.sum() / offered - 0.5) < 4 * 0.5 / np.sqrt(offered)


def test_the_colder_rung_ends_up_with_the_lower_energy():
    """With a large C the ladder sorts the energies: the sign that the paper's printed Delta has wrong."""
    rng = np.random.default_rng(3)
    energy, rung = jnp.asarray(rng.random(6, np.float32)), jnp.asarray(rng.permutation(6))
    beta = jnp.linspace(6.0, 1.0, 6)
    for key in jax.random.split(jax.random.key(0), 400):
        rung, _ = exchange(key, beta, energy, rung, C=1e6)
    np.testing.assert_array_equal(rung, np.argsort(np.argsort(energy)))


def test_nothing_is_attempted_during_burn_in():
    moved, info = repeat(50, jnp.ones(3), jnp.zeros(3), jnp.arange(3), allowed=False)
    assert not info.attempted.any()
    np.testing.assert_array_equal(moved, np.tile(np.arange(3), (50, 1)))


def test_a_broken_replica_sinks_to_the_hottest_rung_and_stays():
    rung, beta = jnp.array([0, 1, 2, 3]), jnp.array([4.0, 3.0, 2.0, 1.0])
    energy = jnp.array([jnp.nan, 0.1, 0.2, 0.3])
    for key in jax.random.split(jax.random.key(0), 100):
        rung, _ = exchange(key, beta, energy, rung)
    assert rung[0] == 3


@pytest.mark.slow
def test_several_ladders_take_turns():
    rates = jaxpt.Ladder(learning_rate=[0.1, 0.2, 0.3])
    noises = jaxpt.Ladder(dropout_rate=[0.1, 0.2, 0.3])
    ladders = {la.name: jax.tree.map(jnp.asarray, la) for la in (rates, noises)}
    rung = dict.fromkeys(ladders, jnp.arange(3))
    hyper = {name: value for la in ladders.values() for name, value in la.values.items()} | {"other": jnp.ones(3)}
    rule, energy = jaxpt.Tempering(1e6), jnp.array([3.0, 2.0, 1.0])
    for turn in range(40):
        seen = jaxpt.Observation(jnp.asarray(turn), energy, rung, hyper, ladders, jnp.asarray(True))
        move, rule, info = rule.propose(jax.random.key(turn), seen)
        idle = list(ladders)[1 - turn % 2]
        assert info.ladder == turn % 2
        np.testing.assert_array_equal(move.rung[idle], rung[idle])
        rung, hyper = move.rung, move.hyper
    for name, ladder in ladders.items():
        np.testing.assert_array_equal(rung[name], [2, 1, 0])
        np.testing.assert_array_equal(hyper[name], ladder.values[name][rung[name]])
    np.testing.assert_array_equal(hyper["other"], 1)


def test_the_pairs_of_each_of_several_ladders_alternate():
    """A ladder's parity goes by its own exchanges, not by those of all: two ladders, even and odd pairs each."""
    ladders = [jaxpt.Ladder(x=[1, 2, 3, 4], beta=[4, 3, 2, 1]), jaxpt.Ladder(y=[1, 2, 3, 4], beta=[4, 3, 2, 1])]
    ladders = {ladder.name: jax.tree.map(jnp.asarray, ladder) for ladder in ladders}
    rung, hyper = dict.fromkeys(ladders, jnp.arange(4)), {name: la.values[name] for name, la in ladders.items()}
    rule, offers = jaxpt.Tempering(1.0, "deo"), []
    for turn in range(8):
        seen = jaxpt.Observation(jnp.asarray(turn), jnp.zeros(4), rung, hyper, ladders, jnp.asarray(True))
        offers.append(rule.propose(jax.random.key(turn), seen)[2].attempted.tolist())
    even, odd = [True, False, True], [False, True, False]
    assert offers == [even, even, odd, odd] * 2


def test_each_ladder_may_have_its_own_C():
    ladders = [jaxpt.Ladder(y=[1, 2], beta=[2, 1]), jaxpt.Ladder(x=[1, 2], beta=[2, 1])]  # exchanged by name: x, y
    make = lambda C: jaxpt.Engine(
        jaxpt.energy_problem(jnp.square, lambda key: jax.random.normal(key)),
        lambda h: jaxpt.langevin(0.01, h["x"] + h["y"]),
        ladders,
        jaxpt.Tempering(C),
        every=1,
    )
    engine = make([1.0, 30.0])
    _, trace = engine.run(engine.init(jax.random.key(0)), periods=4)
    assert trace.info.C.tolist() == [1, 30, 1, 30]
    assert trace.info.ladder.tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match=r"one for each ladder \(x, y\), but there are 3"):
        make([1.0, 2.0, 3.0])


def test_a_replica_that_diverges_leaves_the_cold_rung_even_if_the_noise_of_its_energy_overflows():
    variance = jnp.array([[0.0, np.inf], [np.inf, 0.0]])
    move = lambda energy: jaxpt.exchange(
        jax.random.key(0), jnp.array([2.0, 1.0]), jnp.array(energy), jnp.arange(2), variance=variance
    )[0].tolist()
    assert move([1e20, 1.0]) == [1, 0]
    assert move([1.0, 1e20]) == [0, 1]


@pytest.mark.parametrize("C", [0.0, -1.0, np.inf, np.nan, 1e39, [1.0, -1.0], []])
def test_C_must_be_positive(C):
    with pytest.raises(ValueError, match='C must be "scaled" or "auto", or positive and finite'):
        jaxpt.Tempering(C)


@pytest.mark.parametrize("C", [3.0, np.float64(3)])
def test_C_may_be_any_kind_of_float(C):
    assert jaxpt.Tempering(C).C == 3


def test_new_numbers_trace_nothing():
    beta, energy, rung = jnp.array([2.0, 1.0]), jnp.array([1.0, 2.0]), jnp.array([0, 1])
    count = 0

    def pairing(key, turn, rungs):
        nonlocal count
        count += 1
        return random_adjacent(key, turn, rungs)

    for C in (1.0, 2.0, 3.0):
        exchange(jax.random.key(0), beta * C, energy + C, rung, C=C, pairing=pairing, turn=int(C))
    assert count == 1
