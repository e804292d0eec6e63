"""Numbers are leaves: no value, however special, is part of a pytree's structure."""

import ast
import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.rules import Replay
from jaxpt.rules.step_size import AdaptedStepSize

WELLS = jaxpt.energy_problem(lambda w: w**2, jax.random.normal)


def train(h):
    return optax.sgd(h["learning_rate"] * h["dropout_rate"])


def engine(rates, rule, burn_in=0, fixed=0.1):
    fixed = {"learning_rate": fixed}
    return jaxpt.Engine(WELLS, train, jaxpt.Ladder(dropout_rate=rates), rule, every=2, burn_in=burn_in, fixed=fixed)


# Values on both sides of every border: no beta at 0 and 1, ties, either order, not monotone, negative zero.
ROWS = [
    [0.1, 0.2, 0.4],
    [0.4, 0.2, 0.1],
    [0.0, 0.1, 0.2],
    [0.2, 0.1, 0.0],
    [0.5, 1.0, 0.1],
    [0.3, 0.3, 0.3],
    [-0.0] * 3,
]
GRID = jaxpt.Independent()
MAKE = {
    "Ladder": [
        *([jaxpt.Ladder(**{name: row}) for row in ROWS] for name in ("dropout_rate", "learning_rate", "mine")),
        [jaxpt.Ladder(learning_rate=row, dropout_rate=row) for row in ROWS],
        [
            jaxpt.Ladder(mine=row, beta=beta)
            for row, beta in zip(ROWS, itertools.cycle([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), strict=False)
        ],
        [jaxpt.Ladder(dropout_rate=ROWS[0]), jaxpt.Ladder(dropout_rate=ROWS[1], beta="dropout_rate")],
    ],
    "Tempering": [
        [jaxpt.Tempering(1.0), jaxpt.Tempering(30.0, target=0.1, settle=0), jaxpt.Tempering(np.array(2.0, np.float32))],
        [jaxpt.Tempering("auto"), jaxpt.Tempering("auto", target=0.3, settle=1)],
        [jaxpt.Tempering(), jaxpt.Tempering(strength=0.0), jaxpt.Tempering("scaled", strength=30.0)],
    ],
    "Cooldown": [
        [jaxpt.Cooldown(start=1, steps=2), jaxpt.Cooldown(start=0, steps=9, floor=0.5), jaxpt.Cooldown(0.3).over(100)],
        [jaxpt.Cooldown(0.3), jaxpt.Cooldown(0.3, floor=0.1)],
    ],
    "Search": [
        [jaxpt.Search(steps=2), jaxpt.Search(steps=9, factor=1.5), jaxpt.Search(0.3).over(100, 10)],
        [jaxpt.Search(0.3), jaxpt.Search(0.3, factor=1.0)],
    ],
    "Hyperparameter": [[jaxpt.equinox.Hyperparameter("a", 1.0), jaxpt.equinox.Hyperparameter("a", jnp.nan)]],
    "Dropout": [[jaxpt.equinox.Dropout("a"), jaxpt.equinox.Dropout("a", True)]],
    "GaussianNoise": [[jaxpt.equinox.GaussianNoise("a"), jaxpt.equinox.GaussianNoise("a", True)]],
    "PBT": [
        [jaxpt.PBT(), jaxpt.PBT(0.5, 0.1, 3.0, 0.0), jaxpt.PBT(resample=1.0)],
        [jaxpt.PBT(explore={"a": jaxpt.Uniform(0, 1)}), jaxpt.PBT(explore={"a": jaxpt.Uniform(-1.5, 3)})],
    ],
    "Uniform": [
        [jaxpt.Uniform(0, 1), jaxpt.Uniform(-2.5, 1.0)],
        [jaxpt.Uniform(0, 1, step=1), jaxpt.Uniform(0, 1, step=0.1)],
    ],
    "LogUniform": [[jaxpt.LogUniform(1, 2), jaxpt.LogUniform(1e-4, 1.5)]],
    "Choice": [[jaxpt.Choice([16, 32]), jaxpt.Choice((0.5, -0.0))]],
    "CopyBest": [[jaxpt.CopyBest(), jaxpt.CopyBest()]],
    "Independent": [[GRID, jaxpt.Independent()]],
    "AdaptedStepSize": [[AdaptedStepSize(jaxpt.Tempering(1.0), 0.5), AdaptedStepSize(jaxpt.Tempering(3.0), 0.8)]],
    "_Word": [
        [jaxpt.Tempering("auto").C, jaxpt.Tempering("auto", target=0.3).C],
        [jaxpt.Tempering().C, jaxpt.Tempering(strength=3.0).C],
    ],
    "Replay": [[Replay({"a": jnp.zeros(3)}), Replay({"a": jnp.full(3, jnp.nan)})]],
    "Engine": [
        [
            engine(row, GRID, burn_in, fixed)
            for row, burn_in, fixed in zip(ROWS, range(7), map(float, range(1, 8)), strict=True)
        ],
        [engine(row, jaxpt.Tempering(C)) for row, C in zip(ROWS[:2], [1.0, 3.0], strict=True)],
    ],
}


def test_every_registered_class_is_here():
    found = set()
    for file in Path(jaxpt.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and any("register" in ast.dump(d) for d in node.decorator_list):
                found.add(node.name)
    assert found == set(MAKE)


@pytest.mark.parametrize("name", MAKE)
def test_other_numbers_keep_the_structure(name):
    for same in MAKE[name]:
        for a, b in itertools.pairwise(same):
            assert jax.tree.structure(a) == jax.tree.structure(b), (a, b)


def test_another_value_without_beta_takes_the_state_and_compiles_nothing():
    """Rates 0 have no inverse temperature, and 0.1 has: the same program trains both, as w -> w (1 - 0.2 rate)."""
    traced = []

    def optimizer(h):
        traced.append(1)
        return optax.sgd(0.1 * h["dropout_rate"])

    first = jaxpt.Engine(WELLS, optimizer, jaxpt.Ladder(dropout_rate=[0.0, 0.5]), GRID, every=3)
    other = dataclasses.replace(first, ladder=jaxpt.Ladder(dropout_rate=[0.1, 0.5]))
    state = first.init(jax.random.key(0))
    first.run(state, periods=1)
    compiled = len(traced)
    start = other.init(jax.random.key(0))
    after, _ = other.run(start, periods=1)
    assert len(traced) == compiled, "nothing is traced anew"
    factor = (1 - 0.2 * np.array([0.1, 0.5])) ** 3
    np.testing.assert_allclose(after.replicas.params, np.asarray(start.replicas.params) * factor, rtol=1e-5)
    other.run(state, periods=1)  # the other's state is taken


def test_the_reason_names_the_values_at_hand():
    ladder = jaxpt.Ladder(dropout_rate=[0.0, 0.25])
    assert "beta from dropout_rate = [0.0, 0.25] is [inf, 3.0]" in ladder.missing
    assert jaxpt.Ladder(dropout_rate=[0.125, 0.25]).missing is None
    assert "no inverse temperature is known for 'mine'" in jaxpt.Ladder(mine=[1, 2]).missing
    assert "the ladder couples a, b" in jaxpt.Ladder(a=[1, 2], b=[1, 2]).missing
    assert "not monotone" in jaxpt.Ladder(learning_rate=[0.1, 0.3, 0.2]).missing
    of_seeds = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), ladder)
    assert "[0.0, 0.25]" in of_seeds.missing
    with pytest.raises(ValueError, match=r"beta from dropout_rate = \[0.0, 0.25\]"):
        engine([0.0, 0.25], jaxpt.Tempering(1.0))
