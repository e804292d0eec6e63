"""Exploration of PBT in spaces: exact sets of values, laws of draws, and no compilation for other numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.core.ladder import as_arrays
from tests.conftest import traces_of
from tests.test_engine import slope

N = 4000
RATES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], np.float32)


def explored(space, values=RATES, name="learning_rate", replica=7, **settings):
    """N moves with N keys: the values of the worst replica, and those of its parent, 0 or 1, before."""
    rule = jaxpt.PBT(explore={name: space}, **settings)
    ladder = {"ladder": as_arrays(jaxpt.Ladder(**{name: values}, beta=np.arange(8.0)[::-1]))}
    seen = lambda hyper: jaxpt.Observation(
        jnp.asarray(0), jnp.arange(8.0), {"ladder": jnp.arange(8)}, hyper, ladder, jnp.asarray(True)
    )
    hyper = {name: jnp.asarray(values, jnp.float32), "other": jnp.arange(8.0)}
    moves = jax.jit(jax.vmap(lambda key: rule.propose(key, seen(hyper))[0]))(jax.random.split(jax.random.key(0), N))
    np.testing.assert_array_equal(moves.hyper[name][:, :6], np.broadcast_to(hyper[name][:6], (N, 6)))
    parents = np.asarray(moves.parents[:, replica])
    assert set(parents) == {0, 1}
    return np.asarray(moves.hyper[name][:, replica]), np.asarray(hyper[name])[parents]


def near(share, expected):
    return abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / N)


@pytest.mark.parametrize(
    ("space", "scale"), [(jaxpt.LogUniform(1e-3, 10.0), np.log), (jaxpt.Uniform(-2.0, 3.0), np.asarray)]
)
def test_draws_follow_the_law_of_the_space_and_stay_inside(space, scale):
    values, _ = explored(space, resample=1.0)
    assert values.min() >= np.float32(space.low)
    assert values.max() <= np.float32(space.high)
    low, high = map(float, scale(np.array([space.low, space.high])))
    shares = np.sort((scale(values) - low) / (high - low))
    # Kolmogorov's distance of N draws exceeds 2 / sqrt(N) with probability 0.0007.
    assert abs(shares - (np.arange(N) + 0.5) / N).max() < 2 / np.sqrt(N)


def test_a_perturbation_multiplies_within_the_bounds():
    values, before = explored(jaxpt.LogUniform(0.09, 0.9), resample=0.0)
    factor = values / before
    assert set(factor[before > 0.15].round(5)) == {np.float32(0.8), np.float32(1.2)}
    assert set(values[before < 0.15].round(5)) == {np.float32(0.09), np.float32(0.12)}, "0.08 is below the bound"
    assert near((factor > 1).mean(), 0.5)
    values, before = explored(jaxpt.Uniform(0.05, 0.85), resample=0.0, low=0.1, high=100.0)
    assert set(values.tolist()) == {np.float32(0.05), np.float32(0.85)}


def test_a_step_adds_and_leaves_zero():
    values, before = explored(jaxpt.Uniform(0.0, 0.8, step=0.25), values=np.r_[0.0, 0.5, RATES[2:]], resample=0.0)
    np.testing.assert_allclose(np.unique(values[before == 0]), [0.0, 0.25])
    np.testing.assert_allclose(np.unique(values[before == 0.5]), [0.25, 0.75])
    assert near((values[before == 0] > 0).mean(), 0.5)


def test_the_share_of_draws_is_resample():
    """A product by 0.8 or 1.2 is told apart from a draw."""
    for resample in (0.25, 0.6):
        values, before = explored(jaxpt.LogUniform(1e-3, 10.0), resample=resample)
        perturbed = np.isclose(values / before, 0.8, rtol=1e-5) | np.isclose(values / before, 1.2, rtol=1e-5)
        assert near((~perturbed).mean(), resample)


def test_a_set_is_drawn_from_evenly_and_stepped_along():
    sizes = jaxpt.Choice([64, 16, 128, 32])
    ladder = np.array([16, 64, 32, 128, 16, 16, 32, 64], np.float32)
    values, _ = explored(sizes, ladder, "batch_size", resample=1.0)
    kinds, counts = np.unique(values, return_counts=True)
    np.testing.assert_array_equal(kinds, [16, 32, 64, 128])
    assert all(near(count / N, 0.25) for count in counts)
    values, before = explored(sizes, ladder, "batch_size", resample=0.0)
    assert set(values[before == 16]) == {16, 32}, "at an end it stays or steps inwards"
    assert set(values[before == 64]) == {32, 128}
    assert near((values[before == 64] == 128).mean(), 0.5)


def test_bounds_on_batch_sizes_give_whole_numbers():
    ladder = np.array([16, 17, 32, 128, 16, 16, 32, 64], np.float32)
    for resample in (0.0, 1.0):
        values, _ = explored(jaxpt.LogUniform(16, 128), ladder, "batch_size", resample=resample)
        np.testing.assert_array_equal(values, values.round())
        assert values.min() >= 16
        assert values.max() <= 128


def test_names_without_a_space_go_by_the_ladder_and_by_the_same_bits():
    """The values of two rules on the same keys: without `explore`, and with it for another name."""
    columns = jaxpt.product(a=[0.1, 0.2, 0.4, 0.8], b=[1.0, 2.0])
    ladder = {"a+b": as_arrays(jaxpt.Ladder(**columns))}
    hyper = {name: jnp.asarray(column, jnp.float32) for name, column in columns.items()}
    seen = jaxpt.Observation(jnp.asarray(0), jnp.arange(8.0), {"a+b": jnp.arange(8)}, hyper, ladder, jnp.asarray(True))
    keys = jax.random.split(jax.random.key(0), 200)
    plain, spaced = (
        jax.vmap(lambda key, rule=rule: rule.propose(key, seen)[0].hyper)(keys)
        for rule in (jaxpt.PBT(), jaxpt.PBT(explore={"b": jaxpt.Uniform(0, 9)}))
    )
    np.testing.assert_array_equal(plain["a"], spaced["a"])
    assert not np.array_equal(plain["b"], spaced["b"])
    assert spaced["b"].max() > 2


@pytest.mark.slow
def test_other_numbers_of_a_space_compile_nothing(data):
    engine = jaxpt.Engine(
        jaxpt.nnx_problem(
            lambda rngs: __import__("flax").nnx.Linear(6, 3, rngs=rngs),
            lambda m, b: jaxpt.cross_entropy(m(b["x"]), b["y"]),
        ),
        lambda h: optax.sgd(h["learning_rate"]),
        jaxpt.Ladder(learning_rate=[0.1, 0.2, 0.4, 0.8]),
        every=2,
        batch_size=16,
    )
    trained = traces_of(engine, data, "rule")
    bounds = lambda low, high: jaxpt.PBT(explore={"learning_rate": jaxpt.LogUniform(low, high)})
    assert trained(bounds(0.1, 0.8)) > trained(bounds(0.01, 1)) == trained(bounds(1e-6, 3.5))
    first = trained(jaxpt.PBT(explore={"learning_rate": jaxpt.Choice([0.1, 0.2, 0.4, 0.8])}))
    sets = jaxpt.Choice([0.8, 0.4, 0.2, 0.1]), jaxpt.Choice(np.array([0.1, 0.2, 0.4, 0.8]))
    assert {trained(jaxpt.PBT(explore={"learning_rate": each})) for each in sets} == {trained(bounds(0.05, 2))}
    assert first > trained(bounds(0.05, 2)), "making an engine traces the optimiser, a new program once more"


@pytest.mark.slow
def test_a_run_explores_beyond_its_ladder_and_resumes_with_its_spaces(tmp_path):
    engine, _ = slope(jaxpt.Ladder(learning_rate=[0.25, 0.5, 1.0, 1.0]), rule=jaxpt.PBT())
    wide = dataclasses.replace(engine, rule=jaxpt.PBT(explore={"learning_rate": jaxpt.LogUniform(0.25, 8.0)}))
    args = {"progress": False, "steps": 80}
    result = jaxpt.fit(wide, **args)
    rates = result.trace.hyper["learning_rate"]
    assert 1.0 < rates.max() <= 8.0, "the steeper the lower"
    jaxpt.fit(wide, progress=False, steps=40, directory=tmp_path)
    again = jaxpt.fit(wide, **args, directory=tmp_path)
    np.testing.assert_array_equal(again.trace.hyper["learning_rate"], rates)
    other = dataclasses.replace(wide, rule=jaxpt.PBT(explore={"learning_rate": jaxpt.LogUniform(0.25, 9.0)}))
    with pytest.raises(ValueError, match=r"rule / explore learning_rate / high: 8\.0 -> 9\.0"):
        jaxpt.fit(other, progress=False, steps=120, directory=tmp_path)


def test_bounds_and_sets_may_be_arrays():
    assert jaxpt.Choice(jnp.array([2.0, 1.0])).values == (1.0, 2.0)
    assert jaxpt.LogUniform(jnp.float32(0.5), jnp.float32(1)).ends() == (0.5, 1.0)
