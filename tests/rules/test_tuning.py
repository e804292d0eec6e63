import copy
import dataclasses
import functools
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt import diagnostics
from jaxpt.rules.tuning import balanced_acceptance, begin, equal_rejection, observe, settle_C, solve_C, tune_ladder
from tests.conftest import make_engine
from tests.test_period import values_problem


def test_balanced_acceptance_is_the_mean_over_both_orders_in_balance():
    """Two energies on two rungs, swapped for ever: the share of accepted offers, 4 standard errors."""
    beta, energy, n = jnp.array([2.0, 1.0]), jnp.array([0.0, 1.3]), 200

    def step(rung, key):
        rung, info = jaxpt.exchange(key, beta, energy, rung, C=0.7)
        return rung, info.probability[0]

    run = lambda key: jax.lax.scan(step, jnp.arange(2), jax.random.split(key, 300))[1][100:].mean()
    measured = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), n)))
    expected = balanced_acceptance(jnp.array(-1.3), jnp.zeros(()), 0.7)
    assert expected == pytest.approx(2 / (1 + np.exp(0.7 * 1.3)), rel=1e-6)
    assert abs(measured.mean() - expected) < 4 * measured.std() / np.sqrt(n)


def test_balanced_acceptance_with_noise_and_broken_replicas():
    x, variance = 0.8, 0.5
    stays = np.exp(-x)
    expected = (stays * np.exp(-variance / 2) + stays * min(1, np.exp(x - variance / 2))) / (1 + stays)
    for sign in (1.0, -1.0):
        found = balanced_acceptance(jnp.array(sign * x), jnp.array(variance), 1.0)
        assert found == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(balanced_acceptance(jnp.array([jnp.inf, jnp.nan]), jnp.zeros(2), 1.0), 0)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_C_is_solved_over_twelve_decades(target, scale):
    rng = np.random.default_rng(0)
    ratio = jnp.asarray(scale * rng.normal(size=(16, 5)), jnp.float32)
    ratio = ratio.at[0, 0].set(jnp.nan).at[3, 2].set(jnp.inf)
    where = jnp.ones(ratio.shape, bool).at[8:].set(False)
    C = solve_C(ratio, jnp.zeros_like(ratio), target, jnp.float32(7), where)
    counted = np.isfinite(ratio) & np.asarray(where)
    reached = np.asarray(balanced_acceptance(ratio, jnp.zeros_like(ratio), C))[counted].mean()
    assert reached == pytest.approx(target, abs=1e-3)
    none = solve_C(jnp.zeros_like(ratio), jnp.zeros_like(ratio), target, jnp.float32(7), where)
    assert none == 7, "equal energies say nothing"


def test_equal_rejection_puts_the_rungs_where_the_barrier_is():
    beta = jnp.array([4.0, 3.0, 2.0, 1.0])
    np.testing.assert_allclose(equal_rejection(beta, jnp.full(3, 0.4)), beta, rtol=1e-6)
    # All of the barrier between 4 and 3: there the rungs go.
    np.testing.assert_allclose(equal_rejection(beta, jnp.array([0.9, 0, 0])), [4, 3.6667, 3.3333, 1], atol=1e-3)
    np.testing.assert_allclose(
        equal_rejection(beta, jnp.array([jnp.nan, 0.5, 0.5])), beta, rtol=1e-5, err_msg="an unknown pair counts as 0.5"
    )


def test_settling_moves_C_towards_the_target():
    offered, nothing = jnp.array([True, False]), jnp.zeros(2, bool)
    step = lambda p, n=0, offered=offered: settle_C(jnp.float32(2), jnp.asarray(n), offered, jnp.array([p, 0.9]), 0.5)
    assert step(0.7) > 2 > step(0.3)
    assert step(0.5) == step(0.7, offered=nothing) == 2
    assert 2 < step(0.7, 100) < step(0.7, 10)


@functools.cache
def still():
    """The energy of a replica is the number that it has; nothing trains."""
    problem = jaxpt.energy_problem(lambda w: w, lambda key: jax.random.normal(key))
    return problem._replace(loss=lambda w, state, batch, hyper, key: (0 * w[None], state))


def at_rest(h):
    return jaxpt.gradient_noise(0.0 * sum(h.values()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "settle"),
    [
        pytest.param(1e-3, 0, marks=pytest.mark.slow),
        pytest.param(1.0, 0, marks=pytest.mark.slow),
        pytest.param(1e3, 0, marks=pytest.mark.slow),
        (1e3, 200),
    ],
)
def test_automatic_C_lands_on_its_target_from_any_scale(scale, settle):
    """Fixed energies of a thousandth or a thousand: the mean acceptance within 0.05 of 0.4 over 24 ladders."""
    rule = jaxpt.Tempering("auto", target=0.4, settle=settle)
    engine = jaxpt.Engine(still(), at_rest, jaxpt.Ladder(x=[1.0, 2.0], beta=[2.0, 1.0]), rule, every=1, burn_in=10)
    state = engine.init(jax.random.split(jax.random.key(0), 24))
    state = state._replace(replicas=state.replicas._replace(params=scale * state.replicas.params))
    _, trace = engine.run(state, periods=610)
    C = np.asarray(trace.info.C)
    assert (C[10 + settle :] == C[-1]).all(), "frozen"
    measured = np.asarray(trace.info.probability)[10 + settle :].mean()
    assert measured == pytest.approx(0.4, abs=0.05)


@pytest.mark.slow
def test_several_ladders_have_a_C_each():
    """One ladder's inverse temperatures are a thousand times the other's."""
    engine = jaxpt.Engine(
        still(),
        at_rest,
        [jaxpt.Ladder(x=[1, 2, 3], beta=[3, 2, 1]), jaxpt.Ladder(y=[1, 2, 3], beta=[3000, 2000, 1000])],
        jaxpt.Tempering("auto", "deo", adapt_ladder=True, window=4, settle=0),
        every=1,
        burn_in=10,
    )
    state, trace = engine.run(engine.init(jax.random.key(0)), periods=40)
    for ladder, given in zip(("x", "y"), ([3, 2, 1], [3000, 2000, 1000]), strict=True):
        assert (np.asarray(state.ladders[ladder].beta) != given).any(), "it has adapted"
    C = np.asarray(trace.info.C)
    assert (state.rule.C, state.rule.tuning.C.shape) == ("auto", (2,))
    np.testing.assert_allclose(C[-2] / C[-1], 1000, rtol=0.01)
    assert trace.info.ladder.tolist() == [0, 1] * 20


@pytest.mark.slow
def test_noise_correction_needs_a_probe_and_is_recorded():
    v = {"v": jnp.arange(40.0)}
    rungs = jaxpt.Ladder(learning_rate=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="give the engine probe=512"):
        make_engine(values_problem(), rungs, rule=jaxpt.Tempering(noise_corrected=True))
    slopes = jaxpt.energy_problem(lambda w, batch: w * batch["v"], lambda key: jax.random.normal(key))
    problem = slopes._replace(loss=lambda w, state, batch, hyper, key: (0 * w * batch["v"], state))
    engine = jaxpt.Engine(
        problem, at_rest, rungs, jaxpt.Tempering(0.01, "deo", noise_corrected=True), every=1, batch_size=4, probe=10
    )
    start = engine.init(jax.random.key(0))
    _, trace = engine.run(start, jaxpt.Data(v, v), periods=400)
    weights = np.asarray(start.replicas.params)
    on_rung = weights[np.argsort(trace.rung["learning_rate"], -1)]
    beta = np.asarray(trace.info.beta[0])
    # Of the mean of 10 of the numbers 0 .. 39 without replacement; a weight multiplies it.
    variance = np.var(np.arange(40), ddof=1) / 10 * (1 - 10 / 40)
    expected = (0.01 * np.diff(beta) * np.diff(on_rung, axis=-1)) ** 2 * variance / 2
    measured = np.asarray(trace.info.correction)
    np.testing.assert_allclose((measured / expected).mean(0), 1, rtol=0.05)
    # And it is the variance that the energies' differences really have.
    energy = np.asarray(trace.valid["energy"])
    difference = energy[:, 0] - energy[:, 1]
    np.testing.assert_allclose(np.var(difference), variance * (weights[0] - weights[1]) ** 2, rtol=0.3)
    assert "noise correction" in str(diagnostics.diagnosis(trace))


def test_what_is_auto_stays_auto():
    rule = dataclasses.replace(jaxpt.Tempering("auto"), target=0.3)
    assert rule.auto
    assert "C='auto'" in repr(rule)
    assert dataclasses.replace(copy.deepcopy(rule), target=0.4).auto
    fixed = dataclasses.replace(rule, C=2.0)
    assert (fixed.C, fixed.auto, fixed.tuning) == (2, False, None)
    ladder = jaxpt.core.ladder.as_arrays(jaxpt.Ladder(learning_rate=[0.1, 0.2, 0.3]))
    begun = rule.init({"learning_rate": ladder})
    assert jax.tree.structure(begun) == jax.tree.structure(rule) != jax.tree.structure(fixed)
    leaves, structure = jax.tree.flatten(begun)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, begun)
    handed_on = (
        jax.tree.unflatten(structure, leaves),
        doubled,
        jax.jit(lambda r: r)(begun),
        pickle.loads(pickle.dumps(begun)),
    )
    for other in handed_on:
        assert (other.C, other.auto) == ("auto", True)
        assert jax.tree.structure(other) == structure
    assert (begun.tuning.C.tolist(), doubled.tuning.C.tolist()) == ([1], [2])
    # Handed on with other settings, a run's rule starts afresh.
    assert dataclasses.replace(begun, target=0.4).tuning.C.tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"C": "automatic"}, "or positive and finite"),
        ({"pairing": "even"}, "pairing must be one of random_adjacent, seo, deo"),
        ({"target": 1.0}, "target must be an acceptance probability"),
        ({"window": 0}, "window must be an integer of at least 1"),
        ({"settle": -1}, "settle must be an integer of at least 0"),
        ({"swap_while_tuning": True}, "but nothing is tuned"),
    ],
)
def test_settings_out_of_range(settings, said):
    with pytest.raises(ValueError, match=said):
        jaxpt.Tempering(**settings)


def adapted(energies, window=4):
    """The beta of a ladder of five rungs after one adaptation on these energies, period by period."""
    ladder = jaxpt.Ladder(temperature=[1.0, 1.25, 5 / 3, 2.5, 5.0], name="temperature")
    beta, tuning = jnp.asarray(ladder.beta), begin(1, 5, window)
    tuning = jax.tree.map(jnp.asarray, tuning)
    for energy in energies:
        log_ratio = (beta[:-1] - beta[1:]) * (energy[:-1] - energy[1:])
        tuning = observe(tuning, jnp.int32(0), log_ratio, jnp.zeros(4))
    ladders = {"temperature": jax.tree.map(jnp.asarray, ladder)}
    _, after = tune_ladder(tuning, jnp.int32(0), ladders, jnp.float32(1.0), jnp.bool_(False))
    return np.asarray(beta), np.asarray(after["temperature"].beta)


def test_a_diverged_replica_does_not_draw_the_rungs_to_it():
    energy = jnp.array([0.0, 1.0, 3.0, 4.0, 12.0])
    before, after = adapted([energy] * 4)
    assert np.abs(after - before).max() > 0.01, "healthy energies of different spacing move the rungs"
    before, after = adapted([energy.at[4].set(jnp.nan)] * 4)
    np.testing.assert_array_equal(after, before)
    # One bad period out of four does not count.
    mixed = adapted([energy, energy, energy, energy.at[4].set(jnp.inf)])[1]
    np.testing.assert_allclose(mixed, adapted([energy] * 4)[1], rtol=1e-5)


def test_a_burn_in_too_short_to_adapt_in_is_refused():
    with pytest.raises(ValueError, match="holds 5; take a longer burn_in or a shorter window"):
        make_engine(values_problem(), rule=jaxpt.Tempering("auto", adapt_ladder=True), every=4, burn_in=20)


@pytest.mark.slow
def test_the_noise_of_energies_lowers_the_automatic_C():
    """The same energies; with noise in them the correction takes acceptance away, so C must make up for it."""
    exact = jaxpt.energy_problem(lambda w, batch: w + 0 * batch["v"], lambda key: jax.random.normal(key))
    noisy = jaxpt.energy_problem(lambda w, batch: w + w * batch["v"], lambda key: jax.random.normal(key))
    v = np.random.default_rng(0).permutation(np.linspace(-10, 10, 1000)).astype(np.float32)
    found = []
    for problem in (exact, noisy):
        still = problem._replace(loss=lambda w, state, batch, hyper, key: (0 * w * batch["v"], state))
        rule = jaxpt.Tempering("auto", noise_corrected=True, window=200, settle=0)
        settings = {"every": 1, "burn_in": 200, "batch_size": 4, "probe": 20}
        engine = jaxpt.Engine(still, at_rest, jaxpt.Ladder(learning_rate=[0.1, 0.2]), rule, **settings)
        start = engine.init(jax.random.split(jax.random.key(1), 8))
        _, trace = engine.run(start, jaxpt.Data({"v": v}, {"v": v}), periods=700)
        late = np.asarray(trace.info.C)[-1], np.asarray(trace.info.probability)[200:]
        found.append(late)
    (without, _), (with_noise, probability) = found
    assert (with_noise < 0.9 * without).all()
    # What burn-in shows holds noise too; `settle` would take out the rest.
    assert probability.mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_swaps_while_tuning_keep_a_good_ladder_good():
    """Replicas that cannot leave their well without swaps say nothing about the ladder; with swaps they do."""
    energy = lambda x: 8 * (x**2 - 1) ** 2 + 0.8 * x
    problem = jaxpt.energy_problem(energy, lambda key: jnp.ones(()))
    rungs = jaxpt.Ladder(temperature=[0.3, 0.55, 1.0, 1.8, 3.2])

    def spread(swap):
        rule = jaxpt.Tempering(1.0, "deo", adapt_ladder=True, swap_while_tuning=swap, window=200)
        engine = jaxpt.Engine(
            problem, lambda h: jaxpt.langevin(0.002, h["temperature"]), rungs, rule, every=20, burn_in=20 * 1000
        )
        _, trace = engine.run(engine.init(jax.random.split(jax.random.key(0), 16)), periods=5000)
        assert np.asarray(trace.info.attempted)[:1000].any() == swap
        made = diagnostics.exchanges(trace)
        assert made.step[0] > 20 * 800, "exchanges on the way there do not count"
        return diagnostics.rejection(diagnostics.window(trace, 20 * 2500)).mean(0).std()

    with_swaps, without = spread(True), spread(False)
    assert with_swaps < 0.04
    assert without > 2 * with_swaps


@pytest.mark.slow
def test_the_steps_that_fill_no_period_swap_nothing_after_the_burn_in():
    """And a run with swaps from its first period on is not said to have none."""
    problem = jaxpt.energy_problem(jnp.square, lambda key: jax.random.normal(key))
    rule = jaxpt.Tempering("auto", "deo", swap_while_tuning=True, window=4)
    rungs = jaxpt.Ladder(temperature=[1.0, 1.1, 1.2, 1.3])
    engine = jaxpt.Engine(problem, lambda h: jaxpt.langevin(0.1, h["temperature"]), rungs, rule, every=10, burn_in=80)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = jaxpt.fit(engine, steps=127, progress=False).trace.info
        assert info.attempted[:12].any(-1).all()
        assert not info.attempted[12].any()
        jaxpt.fit(engine, steps=50, progress=False)
