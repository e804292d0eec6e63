"""`Tempering()`: energies in units of their own spread."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt.core.ladder import as_arrays
from jaxpt.rules.exchange import energy_spread
from tests.conftest import make_engine, small_problem

RATES = np.geomspace(0.01, 0.08, 4)


def offer(rule, energy, rung=range(4), rates=RATES, turn=0, key=0):
    """One exchange by the rule; returns the move and its record."""
    ladder = as_arrays(jaxpt.Ladder(learning_rate=rates))
    rung = jnp.asarray(rung)
    seen = jaxpt.Observation(
        jnp.asarray(turn),
        jnp.asarray(energy, jnp.float32),
        {"learning_rate": rung},
        {"learning_rate": ladder.values["learning_rate"][rung]},
        {"learning_rate": ladder},
        jnp.asarray(True),
    )
    move, _, info = rule.propose(jax.random.key(key), seen)
    return move, info


def test_the_spread_is_the_median_absolute_deviation():
    assert float(energy_spread(jnp.array([0.0, 1.0, 3.0, 6.0]))) == 1.5
    assert float(energy_spread(jnp.array([0.0, jnp.nan, 3.0, jnp.inf, 1.0]))) == 1.0, "of the finite ones"
    for nothing in ([2.0] * 4, [jnp.nan] * 3, [1.0, jnp.inf]):
        assert float(energy_spread(jnp.array(nothing))) == 1.0


def test_the_spread_of_equal_energies_keeps_their_unit():
    """Error rates of a small split are often equal; a median of zero must not bring in a unit of its own."""
    ties = jnp.array([0.02, 0.02, 0.02, 0.01])
    for unit in (1.0, 1e-3, 1e3):
        np.testing.assert_allclose(energy_spread(unit * ties), unit * 0.0025, rtol=1e-5)


@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
def test_the_probability_is_the_formula(strength):
    _, info = offer(jaxpt.Tempering(strength=strength), [0.0, 1.0, 6.0, 3.0])
    np.testing.assert_allclose(info.probability, np.exp(strength * np.array([-1, -5, 0]) / 1.5), rtol=1e-5)
    np.testing.assert_allclose(info.C, strength / 1.5, rtol=1e-6)
    np.testing.assert_array_equal(info.beta, [4, 3, 2, 1])


@pytest.mark.parametrize("strength", [0.7, 2.0])
def test_it_leaves_a_law_of_the_orders_invariant(strength):
    """For given energies DEO's turns are in balance with exp(-strength sum b E / spread), exactly; a control is not."""
    energy = np.array([0.3, 0.1, 1.2, 0.55])
    spread = np.median(np.abs(energy - np.median(energy)))
    orders = list(itertools.permutations(range(4)))  # order[k]: the replica on rung k
    place = {order: k for k, order in enumerate(orders)}
    probability = jax.jit(
        jax.vmap(
            lambda rung, turn: offer(jaxpt.Tempering(pairing="deo", strength=strength), energy, rung, turn=turn)[1]
        )
    )

    def law(strength):
        weight = np.exp(-strength * energy[np.array(orders)] @ np.array([4.0, 3, 2, 1]) / spread)
        return weight / weight.sum()

    for turn in (0, 1):
        info = probability(jnp.argsort(jnp.array(orders), -1), jnp.full(24, turn))
        kernel = np.zeros((24, 24))
        for row, order in enumerate(orders):
            pairs = np.flatnonzero(info.attempted[row])
            for chosen in itertools.product([False, True], repeat=len(pairs)):
                moved, share = list(order), 1.0
                for pair, swaps in zip(pairs, chosen, strict=True):
                    p = float(info.probability[row, pair])
                    share *= p if swaps else 1 - p
                    if swaps:
                        moved[pair], moved[pair + 1] = moved[pair + 1], moved[pair]
                kernel[row, place[tuple(moved)]] += share
        np.testing.assert_allclose(law(strength) @ kernel, law(strength), atol=1e-6)
        flow = law(strength)[:, None] * kernel
        np.testing.assert_allclose(flow, flow.T, atol=1e-6)
        assert np.abs(law(0.8 * strength) @ kernel - law(0.8 * strength)).max() > 1e-3


def test_units_and_temperatures_do_not_matter():
    energy = np.array([0.4, 0.1, 0.9, 0.3])
    _, first = offer(jaxpt.Tempering(), energy)
    for scale, shift in ((1e-3, 0.0), (50.0, 7.0)):
        _, other = offer(jaxpt.Tempering(), scale * energy + shift)
        np.testing.assert_allclose(other.probability, first.probability, rtol=1e-3)
    _, other = offer(jaxpt.Tempering(), energy, rates=np.linspace(0.1, 0.9, 4))
    np.testing.assert_array_equal(other.probability, first.probability)


def test_no_strength_accepts_all_and_a_great_one_sorts():
    _, info = offer(jaxpt.Tempering(strength=0.0), [0.0, 1.0, 6.0, 3.0])
    assert (info.probability == 1).all()
    rung = jnp.array([0, 1, 2, 3])
    for turn in range(8):
        move, _ = offer(jaxpt.Tempering(pairing="deo", strength=1e4), [5.0, 1.0, 6.0, 3.0], rung, turn=turn)
        rung = move.rung["learning_rate"]
    assert rung.tolist() == [2, 0, 3, 1], "the coldest rung has the lowest energy"
    assert move.hyper["learning_rate"].tolist() == np.float32(RATES)[[2, 0, 3, 1]].tolist()


def test_a_diverged_replica_sinks_to_the_hottest_rung():
    rung = jnp.arange(4)
    for turn in range(6):
        move, info = offer(jaxpt.Tempering(pairing="deo"), [jnp.nan, 1.0, 1.5, 3.0], rung, turn=turn, key=turn)
        rung = move.rung["learning_rate"]
        assert np.isfinite(info.C)
    assert rung[0] == 3


@pytest.mark.slow
def test_it_follows_the_energies_without_a_new_program(data):
    """C follows the spread of each period's energies; another strength compiles nothing."""
    traces = 0

    def pairing(key, turn, rungs):
        nonlocal traces
        traces += 1
        return jaxpt.deo(key, turn, rungs)

    engine = make_engine(small_problem(), rule=jaxpt.Tempering(pairing=pairing))
    _, trace = engine.run(engine.init(jax.random.key(0)), data, periods=4)
    energy = np.asarray(trace.valid["energy"], np.float64)
    spread = np.median(np.abs(energy - np.median(energy, -1, keepdims=True)), -1)
    np.testing.assert_allclose(trace.info.C, 1 / spread, rtol=1e-3)
    before = traces
    other = dataclasses.replace(engine, rule=jaxpt.Tempering(pairing=pairing, strength=3.0))
    checks = traces - before
    _, trace = other.run(other.init(jax.random.key(0)), data, periods=4)
    assert traces - before == checks, "nothing is traced but the checks at construction"
    np.testing.assert_allclose(trace.info.C[0], 3 / spread[0], rtol=1e-3)


def test_it_is_the_default():
    default = make_engine(small_problem()).rule
    assert isinstance(default, jaxpt.Tempering)
    assert default.scaled
    assert str(default.C) == "scaled"


@pytest.mark.parametrize("strength", [-1.0, np.inf, np.nan])
def test_strength_must_be_a_number(strength):
    with pytest.raises(ValueError, match="strength must be a finite number, 0 or more"):
        jaxpt.Tempering(strength=strength)


def test_what_needs_a_C_says_so():
    with pytest.raises(ValueError, match=r'adapt_ladder=True moves the rungs .* give C="auto" or a number'):
        jaxpt.Tempering(adapt_ladder=True)
    with pytest.raises(ValueError, match="swap_while_tuning=True, but nothing is tuned"):
        jaxpt.Tempering(swap_while_tuning=True)
    with pytest.raises(ValueError, match='C must be "scaled" or "auto", or positive'):
        jaxpt.Tempering("best")


def test_numbers_that_would_count_for_nothing_are_refused():
    with pytest.raises(ValueError, match=r"strength=3 would change nothing.*but C is 100"):
        jaxpt.Tempering(100.0, strength=3.0)
    with pytest.raises(ValueError, match=r"strength=3 would change nothing.*but C is 'auto'"):
        jaxpt.Tempering("auto", strength=3.0)
    with pytest.raises(ValueError, match=r'target=0.2 would change nothing, since C="scaled" is not tuned'):
        jaxpt.Tempering(target=0.2)
