"""What a rule of one's own gets wrong is said before the first step, by shapes; every rule of jaxpt passes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from tests.conftest import make_engine, small_problem

M, NAME = 4, "learning_rate+dropout_rate"


def ruled(propose, **fields):
    """An engine whose rule proposes what `propose(key, seen)` makes of the move, the rule and the record."""
    plain = lambda self, key, seen: propose(self, seen, jaxpt.Move(seen.rung, seen.hyper), jaxpt.Info.none(M))
    made = type("Mine", (jaxpt.Rule,), {"propose": plain, "needs_beta": False, **fields})
    rule = jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(made), [], [])
    return make_engine(small_problem(), rule=rule())


def turned(seen):
    return {name: M - 1 - rung for name, rung in seen.rung.items()}


WRONG = {
    "must return (jaxpt.Move, the rule, jaxpt.Info), but it returns a dict of 1": lambda rule, seen, move, info: (
        seen.rung
    ),
    "in place of the Move it returns a dict of 1": lambda rule, seen, move, info: (seen.rung, rule, info),
    "in place of the Mine it returns a NoneType": lambda rule, seen, move, info: (move, None, info),
    "in place of the Info it returns a Move of 4": lambda rule, seen, move, info: (move, rule, move),
    "must be a dict with dropout_rate, learning_rate, but it has none; begin with {**seen.hyper}": (
        lambda rule, seen, move, info: (move._replace(hyper={}), rule, info)
    ),
    f"rung of the move that propose of Mine returns must be a dict with {NAME}, but it has x": (
        lambda rule, seen, move, info: (move._replace(rung={"x": jnp.arange(M)}), rule, info)
    ),
    "moves the rungs of learning_rate+dropout_rate, but returns the hyperparameters as they were": (
        lambda rule, seen, move, info: (move._replace(rung=turned(seen)), rule, info)
    ),
    f"rung['{NAME}'] of the move that propose of Mine returns must be integers of shape (4,), but it is float32": (
        lambda rule, seen, move, info: (
            jaxpt.Move({NAME: seen.rung[NAME] * 1.0}, {k: v * 1 for k, v in seen.hyper.items()}), rule, info
        )
    ),
    "hyper['learning_rate'] of the move that propose of Mine returns must be floats of shape (4,)": (
        lambda rule, seen, move, info: (
            move._replace(hyper={**seen.hyper, "learning_rate": jnp.float32(0.1)}), rule, info
        )
    ),
    "parents of the move that propose of Mine returns must be integers of shape (4,), but it is int32 of shape (3,)": (
        lambda rule, seen, move, info: (move._replace(parents=jnp.arange(3)), rule, info)
    ),
    "copies weights (parents of the move), but does not record it": (
        lambda rule, seen, move, info: (move._replace(parents=jnp.arange(M)), rule, info)
    ),
    "attempted of the Info that propose of Mine returns must have shape (3,) for 4 replicas, but its shape is (6,)": (
        lambda rule, seen, move, info: (move, rule, jaxpt.Info.none(7))
    ),
    "ladders of the move that propose of Mine returns must have the structure": (
        lambda rule, seen, move, info: (move._replace(ladders={"other": seen.ladders[NAME]}), rule, info)
    ),
}  # fmt: skip


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_fit_is_said_before_the_first_step(said):
    engine = ruled(WRONG[said])
    for begin in (engine.init, engine.abstract):
        with pytest.raises(ValueError) as refused:  # noqa: PT011  looked at below
            begin(jax.random.key(0))
        assert said in str(refused.value)


def test_the_state_of_a_rule_keeps_its_shape():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Counting(jaxpt.Rule):
        count: jax.Array | int = 0
        needs_beta = False

        def propose(self, key, seen):
            return jaxpt.Move(seen.rung, seen.hyper), Counting(self.count + seen.energy), jaxpt.Info.none(M)

    with pytest.raises(ValueError, match=r"the rule.count that propose of Counting returns must be integers of shape "):
        make_engine(small_problem(), rule=Counting()).init(jax.random.key(0))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"search": 0.2, "cooldown": 0.3},
        {"rule": jaxpt.Tempering("auto", "deo", adapt_ladder=True), "burn_in": 400},
        {"rule": jaxpt.Tempering(10.0, noise_corrected=True), "probe": 8},
        {"rule": jaxpt.Independent()},
        {"rule": jaxpt.PBT()},
        {"rule": jaxpt.CopyBest(), "diverged": "respawn"},
    ],
)
def test_every_rule_passes(settings):
    engine = make_engine(small_problem(), **settings)
    assert engine.abstract(jax.random.split(jax.random.key(0), 2)).replicas.rung[NAME].shape == (2, M)


def test_a_rule_that_moves_rungs_with_their_values_passes():
    def propose(rule, seen, move, info):
        rung = turned(seen)
        moved = {k: v[rung[n]] for n, ladder in seen.ladders.items() for k, v in ladder.values.items()}
        return jaxpt.Move(rung, {**seen.hyper, **moved}), rule, info

    state = ruled(propose).init(jax.random.key(0))
    np.testing.assert_array_equal(state.replicas.rung[NAME], range(M))
