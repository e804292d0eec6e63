from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from experiments.evidence.plain_pbt import select
from tests.test_engine import slope

RATES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], np.float32)


@partial(jax.jit, static_argnames="n")
def moves(rule, energy, allowed, n):
    ladder = {"learning_rate": jaxpt.core.ladder.as_arrays(jaxpt.Ladder(learning_rate=RATES))}
    hyper = {"learning_rate": jnp.asarray(RATES), "other": jnp.arange(8.0)}
    rung = {"learning_rate": jnp.arange(8)}

    def run(key):
        seen = jaxpt.Observation(jnp.asarray(0), energy, rung, hyper, ladder, allowed)
        move, _, info = rule.propose(key, seen)
        return move, info

    return jax.vmap(run)(jax.random.split(jax.random.key(0), n))


def many(rule, energy, n=2000, allowed=True):
    """n moves of eight replicas from the same state, with n keys."""
    return jax.tree.map(np.asarray, moves(rule, energy, jnp.asarray(allowed), n))


def test_the_worst_quarter_goes_on_as_explored_copies_of_the_best_quarter():
    energy = jnp.array([3.0, 0.0, 7.0, 1.0, 6.0, 2.0, 4.0, 5.0])
    move, info = many(jaxpt.PBT(resample=0.0), energy)
    worst, rest = [2, 4], [0, 1, 3, 5, 6, 7]
    np.testing.assert_array_equal(move.parents[:, rest], np.broadcast_to(rest, (2000, 6)))
    np.testing.assert_array_equal(info.parents, move.parents)
    assert not info.attempted.any()
    for replica in worst:
        parents = move.parents[:, replica]
        assert set(parents) == {1, 3}
        assert abs((parents == 1).sum() - 1000) < 4 * np.sqrt(500)
        factor = move.hyper["learning_rate"][:, replica] / RATES[parents]
        assert set(factor.round(5)) == {np.float32(0.8), np.float32(1.2)}
        assert abs((factor > 1).sum() - 1000) < 4 * np.sqrt(500)
    np.testing.assert_array_equal(move.hyper["learning_rate"][:, rest], np.broadcast_to(RATES[rest], (2000, 6)))
    np.testing.assert_array_equal(move.hyper["other"], np.broadcast_to(np.arange(8.0), (2000, 8)))
    np.testing.assert_array_equal(move.rung["learning_rate"], np.broadcast_to(np.arange(8), (2000, 8)))


def test_a_move_has_the_distribution_of_a_plain_loop_on_the_host():
    n, energy = 4000, np.array([3.0, 0.0, 7.0, 1.0, 6.0, 2.0, 4.0, 5.0])
    move, _ = many(jaxpt.PBT(), jnp.asarray(energy), n)
    random = np.random.default_rng(0)
    parents, rates = (np.stack(x) for x in zip(*(select(random, energy, RATES, True) for _ in range(n)), strict=True))

    def shares(parents, rates):
        """Share of each parent and kind of rate in each slot: kept, times 0.8, times 1.2, or drawn anew."""
        ratio = rates / RATES[parents]
        kinds = [np.isclose(ratio, factor, rtol=1e-4) for factor in (1, 0.8, 1.2)]
        kinds.append(~np.any(kinds[1:], 0) & (parents != np.arange(8)))
        kinds[0] &= parents == np.arange(8)
        return np.array([[((parents == k) & kind).mean(0) for k in range(8)] for kind in kinds])

    ours, plain = shares(move.parents, move.hyper["learning_rate"]), shares(parents, rates)
    np.testing.assert_allclose(ours.sum((0, 1)), 1)
    # No value of the ladder is 0.8 or 1.2 times 0.2 or 0.4, the rates of the parents, so draws are told apart.
    assert (abs(ours - plain) <= 4 * np.sqrt(2 * plain * (1 - plain) / n)).all()


def test_resampling_draws_from_the_ladder_and_exploration_stays_within_its_ends():
    energy = jnp.arange(8.0)
    move, _ = many(jaxpt.PBT(resample=1.0), energy)
    values, counts = np.unique(move.hyper["learning_rate"][:, 6:], return_counts=True)
    np.testing.assert_array_equal(values, RATES)
    assert (abs(counts - 500) < 4 * np.sqrt(500)).all()
    move, _ = many(jaxpt.PBT(quantile=0.5, low=0.01, high=100.0, resample=0.0), energy)
    assert set(move.hyper["learning_rate"][:, 4:].ravel()) == {RATES[0], RATES[-1]}


@pytest.mark.parametrize("rule", [jaxpt.PBT(), jaxpt.CopyBest()])
def test_burn_in_and_broken_replicas(rule):
    energy = jnp.array([3.0, jnp.nan, 7.0, 1.0, 6.0, jnp.inf, 4.0, 5.0])
    own = np.broadcast_to(np.arange(8), (2000, 8))
    move, _ = many(rule, energy, allowed=False)
    np.testing.assert_array_equal(move.parents, own)
    np.testing.assert_array_equal(move.hyper["learning_rate"], np.broadcast_to(RATES, (2000, 8)))
    move, _ = many(rule, energy)
    assert not np.isin(move.parents[:, [1, 5]], [1, 5]).any(), "the broken ones are replaced"
    move, _ = many(rule, jnp.full(8, jnp.nan))
    np.testing.assert_array_equal(move.parents, own, "when all are broken, none is copied")


def test_copying_the_best_copies_weights_and_keeps_the_grid():
    engine, state = slope(jaxpt.Ladder(learning_rate=[0.25, 0.5, 1.0]), rule=jaxpt.CopyBest())
    state, trace = engine.run(state, periods=2)
    # From 0, 1, 2 four steps of each rate lead to -1, -1 and -2; the last is the best, and from there on -6.
    np.testing.assert_allclose(trace.valid["energy"], [[-1, -1, -2], [-3, -4, -6]])
    np.testing.assert_allclose(state.replicas.params, [-6, -6, -6])
    np.testing.assert_array_equal(trace.info.parents, [[2, 2, 2], [2, 2, 2]])
    np.testing.assert_array_equal(state.replicas.hyper["learning_rate"], [0.25, 0.5, 1.0])


def test_momentum_is_copied_and_rescaled_from_the_rate_that_it_came_with():
    import optax

    engine, state = slope(
        jaxpt.Ladder(learning_rate=[0.25, 0.5]),
        lambda h: optax.sgd(h["learning_rate"], momentum=0.5),
        rule=jaxpt.CopyBest(),
        rescale_momentum="learning_rate",
    )
    after, trace = engine.run(state, periods=1)
    assert trace.info.parents.tolist() == [[1, 1]]
    momentum = 1 + 0.5 + 0.25 + 0.125
    np.testing.assert_allclose(after.replicas.opt_state[0].trace, [momentum * 2, momentum], rtol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"quantile": 0.0}, {"quantile": 0.6}, {"low": 0.0}, {"high": np.inf}, {"resample": 1.5}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        jaxpt.PBT(**settings)
