"""Proofs that the exchange is right, each of which fails when the code is broken: `mutants.py` lists how."""

import functools
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpt.diagnostics import round_trip_rate, round_trips
from tests.rules.mutants import MUTANTS, load

try:
    from jax import enable_x64  # jax 0.11 and later
except ImportError:
    from jax.experimental import enable_x64


def kernels(m, states=4, rungs=3):
    """The kernel [turn, states ** rungs, states ** rungs] of DEO's two turns, exactly, and the target.

    The outcome is a step function of the uniform numbers with steps at the acceptance probabilities, so one number in
    each step, weighted by its length, gives the kernel of the code itself. Two draws are allowed for: whoever draws
    once uses the first.
    """
    beta, energy = jnp.array([1.7, 1.0, 0.4]), jnp.array([0.0, 0.3, 1.1, 2.0])
    configurations = np.array(list(itertools.product(range(states), repeat=rungs)))
    cells = np.array(list(itertools.product([0, 1], repeat=2 * (rungs - 1)))).reshape(-1, 2, rungs - 1)

    # Replica 0 does not stand on rung 0: who confuses replicas with rungs is found out.
    rung = jnp.array([1, 2, 0])

    def offer(on_rung, uniform, turn):
        draws = iter([*uniform, *uniform])
        with mock.patch("jax.random.uniform", lambda key, shape=(), *rest: jnp.broadcast_to(next(draws), shape)):
            call = functools.partial(m.exchange.__wrapped__, jax.random.key(0), beta, energy[on_rung][rung], rung)
            return call(C=1.0, pairing=m.deo, turn=turn)

    first = lambda on_rung, turn: offer(on_rung, jnp.full((2, rungs - 1), 0.5), turn)[1].probability
    many = jax.jit(jax.vmap(jax.vmap(offer, (None, 0, None)), (0, 0, None)))
    weight = np.exp(-np.asarray(energy)[configurations] @ np.asarray(beta))
    found = np.zeros((2, len(configurations), len(configurations)))
    for turn in range(2):
        p = np.asarray(jax.jit(jax.vmap(first, (0, None)))(configurations, turn))[:, None, None, :]
        below = cells[None] == 0
        uniform = np.where(below, p / 2, (1 + p) / 2)
        moved, _ = many(configurations, uniform, turn)
        moved = np.asarray(moved)
        assert (np.sort(moved, -1) == np.arange(rungs)).all(), "no permutation"
        after = np.zeros((*moved.shape[:2], rungs), int)
        np.put_along_axis(after, moved, np.broadcast_to(configurations[:, None, np.asarray(rung)], moved.shape), -1)
        index = after @ states ** np.arange(rungs)[::-1]
        share = np.where(below, p, 1 - p).prod((-1, -2))
        for row in range(len(configurations)):
            np.add.at(found[turn, row], index[row], share[row])
    return found, weight / weight.sum()


def exact_kernel(m):
    """Each turn leaves exp(-beta E) on all rungs invariant and is in detailed balance; both in sequence are not."""
    with enable_x64(True):
        (even, odd), target = kernels(m)
    balance = lambda kernel: np.abs(target[:, None] * kernel - (target[:, None] * kernel).T).max()
    for kernel in (even, odd):
        np.testing.assert_allclose(kernel.sum(1), 1, atol=1e-12)
        np.testing.assert_allclose(target @ kernel, target, atol=1e-12)
        assert balance(kernel) < 1e-12
        assert np.abs(kernel - np.eye(len(kernel))).max() > 0.1, "something moves"
    np.testing.assert_allclose(target @ even @ odd, target, atol=1e-12)
    assert balance(even @ odd) > 1e-3


def walk(m, pairing, energies, beta, exchanges, seeds=1):
    """The index process [exchanges, seeds, M] and the probabilities; energies(key) [M] are those of the RUNGS."""

    def one(key, rung):
        def step(rung, turn):
            draw, swap = jax.random.split(jax.random.fold_in(key, turn))
            moved, info = m.exchange(swap, beta, energies(draw)[rung], rung, pairing=pairing, turn=turn)
            return moved, (rung, info)

        return jax.lax.scan(step, rung, jnp.arange(exchanges))[1]

    start = jnp.arange(len(beta))
    path, info = jax.jit(jax.vmap(one, (0, None), 1))(jax.random.split(jax.random.key(0), seeds), start)
    return np.asarray(path), jax.tree.map(np.asarray, info)


def conveyor(m):
    """All swaps accepted: DEO carries every replica round the ladder once in 2 M exchanges."""
    for rungs in (4, 5):
        turns = 14 * rungs
        path, info = walk(m, m.deo, lambda key, rungs=rungs: jnp.zeros(rungs), jnp.ones(rungs), turns)
        start = np.arange(rungs)
        place = np.where(start % 2 == 0, start, 2 * rungs - 1 - start)  # on a circle of 2 M: up, then down
        place = (place + np.arange(turns)[:, None]) % (2 * rungs)
        np.testing.assert_array_equal(path[:, 0], np.where(place < rungs, place, 2 * rungs - 1 - place))
        np.testing.assert_array_equal(info.accepted, info.attempted)
        # Place M - 1 is the arrival at the hottest rung; the first begins a trip, unless one began at place M before.
        first = (rungs - 1 - place[0]) % (2 * rungs)
        trips = (turns - 1 - first) // (2 * rungs) + (place[0] == rungs)
        np.testing.assert_array_equal(round_trips(path)[0], trips)


def round_trip_rates(m):
    """Within 2 % of the formulas under DEO, SEO and random pairs, for energies that mix between exchanges."""
    spread = jnp.array([0.0, 0.6, 1.0, 1.8, 2.4])
    energies = lambda key: spread + 0.7 * jax.random.normal(key, (5,))
    beta = jnp.array([3.0, 2.2, 1.4, 0.7, 0.0])
    for name in ("deo", "seo", "random_adjacent"):
        path, info = walk(m, getattr(m, name), energies, beta, 12_000, seeds=24)
        rejection = 1 - info.probability.mean((0, 1))
        measured = round_trips(path).sum() / (len(path) * path.shape[1])
        assert measured == pytest.approx(round_trip_rate(rejection, name), rel=0.02), name


def noisy_acceptance(m):
    """The penalty method's mean acceptance, as probability and as frequency; 4 standard errors."""
    beta, C, n = jnp.array([2.0, 1.0]), 0.5, 100_000
    rung = jnp.array([1, 0])  # the replica on the colder rung is number 1
    for difference, deviation in ((4.0, 3.0), (1.0, 2.0), (-1.0, 2.0), (0.0, 1.0)):
        noise = deviation * jax.random.normal(jax.random.key(0), (n,))
        energies = jnp.stack([jnp.full(n, difference) + noise, jnp.zeros(n)], -1)
        variance = jnp.full((2, 2), deviation**2)
        run = lambda key, e, v=variance: m.exchange(key, beta, e, rung, C=C, variance=v)[1]
        info = jax.vmap(run)(jax.random.split(jax.random.key(1), n), energies)
        D, s = C * difference, C * deviation
        phi = stats.norm.cdf
        expected = phi((-(s**2) / 2 - D) / s) + np.exp(-D) * phi((D - s**2 / 2) / s)
        accepted = np.asarray(info.probability[:, 0], np.float64)
        assert abs(accepted.mean() - expected) < 4 * accepted.std() / np.sqrt(n)
        assert abs(info.accepted.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / n)
        np.testing.assert_allclose(info.correction, s**2 / 2, rtol=1e-5)
    assert phi(-(1.5**2) / 2 / 1.5 - 2 / 1.5) + np.exp(-2) * phi((2 - 1.5**2 / 2) / 1.5) == pytest.approx(
        0.1161, abs=1e-4
    )


def noise_of_the_pair(m):
    """Three replicas, of which one pair's difference is noisy: it alone is corrected, wherever it stands.

    The last order is no swap of two, so who stands on rung k is not the rung on which replica k stands.
    """
    variance = jnp.array([[0.0, 8.0, 0.0], [8.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    for rung, expected in (([0, 1, 2], [4, 0]), ([2, 1, 0], [0, 4]), ([0, 2, 1], [0, 0]), ([1, 2, 0], [0, 4])):
        _, info = m.exchange(
            jax.random.key(0), jnp.array([3.0, 2.0, 1.0]), jnp.zeros(3), jnp.array(rung), variance=variance
        )
        np.testing.assert_allclose(info.correction, expected)
        np.testing.assert_allclose(info.probability, np.exp(-np.array(expected, float)), rtol=1e-6)


def uniform_occupancy(m):
    """Zero energies: in the end every replica is as often on each rung, and independently of the start."""
    for pairing in (m.seo, m.random_adjacent):
        path, _ = walk(m, pairing, lambda key: jnp.zeros(4), jnp.array([4.0, 3.0, 2.0, 1.0]), 60, seeds=1500)
        for replica in (0, 3):
            counts = np.bincount(path[-1, :, replica], minlength=4)
            assert stats.chisquare(counts).pvalue > 0.001, counts


def pairs_swap_independently(m):
    """Two pairs of one exchange, each accepted with probability one half: both in a quarter of all cases."""
    run = lambda key: m.exchange(key, jnp.array([2.0, 1.0, 1.0, 0.0]), jnp.array([0.0, 1.0, 1.0, 2.0]) * np.log(2.0),
                                 jnp.arange(4), pairing=m.deo)[1].accepted  # fmt: skip
    accepted = np.asarray(jax.vmap(run)(jax.random.split(jax.random.key(0), 4000)))
    both = (accepted[:, 0] & accepted[:, 2]).sum()
    assert abs(accepted.sum() - 4000) < 4 * np.sqrt(2000)
    assert abs(both - 1000) < 4 * np.sqrt(4000 * 0.25 * 0.75)


def strength(m):
    """C scales the log ratio."""
    _, info = m.exchange(jax.random.key(0), jnp.array([2.0, 1.0]), jnp.array([0.0, 1.0]), jnp.arange(2), C=3.0)
    np.testing.assert_allclose(info.probability, np.exp(-3.0), rtol=1e-6)


PROOFS = [
    exact_kernel,
    conveyor,
    round_trip_rates,
    noisy_acceptance,
    noise_of_the_pair,
    uniform_occupancy,
    pairs_swap_independently,
    strength,
]
CAUGHT = {
    "flipped sign": exact_kernel,
    "C left out": strength,
    "no correction for noise": noisy_acceptance,
    "missing half variance": noisy_acceptance,
    "correction of the wrong pair": noise_of_the_pair,
    "parity held": conveyor,
    "coin held": uniform_occupancy,
    "swap applied twice": conveyor,
    "two uniforms for one pair": exact_kernel,
    "one uniform for all pairs": pairs_swap_independently,
    "energies of the replica of the rung's number": exact_kernel,
    "a pair that was not offered swaps": exact_kernel,
}


@functools.cache
def original():
    return load()


SLOW = [round_trip_rates]


@pytest.mark.parametrize(
    "proof", [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW else [], id=p.__name__) for p in PROOFS]
)
def test_proof(proof):
    proof(original())


def test_every_mutant_has_its_proof():
    assert set(CAUGHT) == set(MUTANTS)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name):
    mutant = load(name)
    with pytest.raises(AssertionError):
        CAUGHT[name](mutant)
