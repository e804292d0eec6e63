import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.core.ladder import BETA, Ladder, as_arrays, respaced
from tests.conftest import nnx_problem


def test_spacings():
    np.testing.assert_allclose(np.diff(jaxpt.linear(0.1, 0.4, 4)), 0.1)
    values = jaxpt.geometric(0.01, 0.08, 4)
    np.testing.assert_allclose(values[1:] / values[:-1], 2)
    with pytest.raises(ValueError, match="positive ends"):
        jaxpt.geometric(0, 1, 3)


@pytest.mark.parametrize(
    ("name", "values", "beta"),
    [
        ("learning_rate", [0.1, 0.2], [10, 5]),
        ("dropout_rate", [0.2, 0.5], [4, 1]),
        ("batch_size", [64, 32], [64, 32]),
        ("temperature", [0.5, 2.0], [2, 0.5]),
        ("gradient_noise", [0.5, 1.0], [4, 1]),
    ],
)
def test_beta_follows_from_the_name(name, values, beta):
    ladder = jaxpt.Ladder(**{name: values})
    np.testing.assert_allclose(ladder.beta, beta, rtol=1e-6)
    np.testing.assert_allclose(ladder.values[name], values, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(BETA))
def test_rung_0_is_coldest_whichever_end_is_given_first(name):
    values = [0.1, 0.2, 0.4] if name != "batch_size" else [1, 2, 4]
    up, down = jaxpt.Ladder(**{name: values}), jaxpt.Ladder(**{name: values[::-1]})
    np.testing.assert_array_equal(up.values[name], down.values[name])
    assert np.all(np.diff(up.beta) < 0)


def test_coupled_hyperparameters_are_turned_round_together():
    ladder = jaxpt.Ladder(learning_rate=[0.2, 0.1], weight_decay=[3, 4], beta="learning_rate", name="both")
    np.testing.assert_allclose(ladder.values["weight_decay"], [4, 3])
    assert ladder.name == "both"
    assert ladder.num_rungs == 2


def test_beta_may_be_given_as_numbers_or_as_a_function():
    np.testing.assert_allclose(jaxpt.Ladder(weight_decay=[1, 2], beta=[3.0, 1.0]).beta, [3, 1])
    np.testing.assert_allclose(jaxpt.Ladder(weight_decay=[1, 2], beta=lambda v: v**2).beta, [4, 1])
    assert jaxpt.Ladder(weight_decay=[1, 2], beta=[1.0, 1.0]).num_rungs == 2, "a flat ladder is monotone"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "at least one hyperparameter"),
        ({"learning_rate": []}, "one value per rung"),
        ({"learning_rate": 0.1}, "one value per rung"),
        (
            {"learning_rate": [0.1, 0.2], "weight_decay": [1.0], "beta": "learning_rate"},
            r"weight_decay: \(1,\)",
        ),
        ({"batch_size": [64, 32.5]}, "whole number"),
        ({"learning_rate": [0.1, np.nan]}, "learning_rate must be finite"),
        ({"learning_rate": [0.1, np.inf]}, "learning_rate must be finite"),
        ({"learning_rate": [0.1, 1e39]}, "learning_rate must be finite"),
        ({"weight_noise": [1e-20, 1e-3], "beta": "weight_noise"}, "beta must be finite"),
        ({"learning_rate": [0.1, -0.2]}, "must lie between 0 and inf"),
        ({"dropout_rate": [0.1, 1.2]}, "must lie between 0 and 1"),
        ({"dropout_rate": [0.0, 0.1], "beta": "dropout_rate"}, "dropout rate above 0"),
        ({"learning_rate": [0.0, 0.1], "beta": "learning_rate"}, "beta must be finite"),
        ({"learning_rate": [0.1, 0.3, 0.2], "beta": "learning_rate"}, "not monotone"),
        ({"weight_decay": [0.1, 0.2], "beta": "weight_decay"}, "no inverse temperature is known for 'weight_decay'"),
        ({"learning_rate": [1, 2], "dropout_rate": [0.1, 0.2], "beta": np.negative}, "say which of them"),
        ({"learning_rate": [1, 2], "beta": "rate"}, "names no hyperparameter"),
        ({"learning_rate": [1, 2], "beta": [1.0]}, "one number per rung"),
        ({"learning_rate": [1, 2], "beta": [1.0, np.inf]}, "the given beta"),
    ],
)
def test_each_mistake_has_a_message_of_its_own(arguments, message):
    with pytest.raises(ValueError, match=message):
        jaxpt.Ladder(**arguments)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("learning_rate", [0.01, 0.03, 0.1]),
        ("dropout_rate", [0.1, 0.3, 0.5]),
        ("batch_size", [128, 32, 16]),
        ("weight_noise", [0.1, 0.4, 0.5]),
    ],
)
def test_respaced_rungs_take_the_values_that_their_beta_belongs_to(name, values):
    ladder = as_arrays(Ladder(**{name: values}))
    moved = jax.jit(respaced)(ladder, ladder.beta.at[1].set(0.3 * ladder.beta[0] + 0.7 * ladder.beta[2]))
    again = Ladder(**{name: np.asarray(moved.values[name])})
    np.testing.assert_allclose(again.beta, moved.beta, rtol=1e-6)
    for new, old in ((moved.beta, ladder.beta), (moved.values[name], ladder.values[name])):
        np.testing.assert_array_equal(new[jnp.array([0, 2])], old[jnp.array([0, 2])])
    wanted = float(0.3 * ladder.beta[0] + 0.7 * ladder.beta[2])
    assert moved.beta[1] == pytest.approx(wanted, abs=0.5 if name == "batch_size" else 1e-5 * wanted)
    assert (moved.name, moved.source) == (ladder.name, name)
    np.testing.assert_allclose(respaced(ladder, ladder.beta).values[name], ladder.values[name], rtol=1e-6)


def test_respacing_interpolates_what_does_not_give_beta():
    ladder = as_arrays(Ladder(learning_rate=[0.1, 0.2, 0.4], weight_decay=[1.0, 3.0, 4.0], beta=[4.0, 2.0, 1.0]))
    moved = respaced(ladder, jnp.array([4.0, 3.0, 1.0]))
    np.testing.assert_allclose(moved.values["weight_decay"], [1, 2, 4])
    np.testing.assert_allclose(moved.values["learning_rate"], [0.1, 0.15, 0.4], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"weight_decay": [0.3, 0.1, 0.2]}, "no inverse temperature is known for 'weight_decay'"),
        pytest.param(
            {"weight_decay": [0.3, 0.1, 0.2], "learning_rate": [0.1, 0.3, 0.2]},
            "say which of them gives",
            marks=pytest.mark.slow,
        ),
        pytest.param({"learning_rate": [0.1, 0.3, 0.2]}, "not monotone", marks=pytest.mark.slow),
        pytest.param({"label_smoothing": [0.0, 0.3, 0.2]}, "no inverse temperature is known", marks=pytest.mark.slow),
        pytest.param({"temperature": [0.0, 0.1, 0.2]}, "beta must be finite", marks=pytest.mark.slow),
    ],
)
def test_only_rules_that_go_by_temperature_need_one(values, said, data):
    """Grid search, PBT and copying the best take any values, in any order; tempering says what is missing."""
    ladder = jaxpt.Ladder(**values)
    for name, given in values.items():
        np.testing.assert_array_equal(ladder.values[name], np.float32(given))
    settings = {"every": 5, "batch_size": 16, "fixed": {"dropout_rate": 0.1}}
    make = functools.partial(jaxpt.Engine, nnx_problem(), lambda h: optax.adamw(0.01, weight_decay=sum(h.values())))
    for rule in (jaxpt.Independent(), jaxpt.PBT(), jaxpt.CopyBest()):
        engine = make(ladder, rule, **settings)
    with jax.debug_nans(True):
        # The ladder's numbers may be traced, too.
        state = jax.jit(lambda ladder: dataclasses.replace(engine, ladder=ladder).init(jax.random.key(0)))(ladder)
        _, trace = engine.run(state, data, periods=2)
    assert np.isfinite(trace.valid["energy"]).all()
    with pytest.raises(ValueError, match=said):
        make(ladder, jaxpt.Tempering(), **settings)
