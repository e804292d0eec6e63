"""The recipes of CONTRIBUTING, followed outside the package: a rule, a recorder and a problem by public names alone."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotate(jaxpt.Rule):
    """Every replica goes one rung up, the last one to the coldest; counts its turns."""

    turns: int = 0
    needs_beta: ClassVar[bool] = False

    def check(self, engine):
        if engine.num_replicas < 3:
            raise ValueError(f"Rotate needs three rungs, but the ladder has {engine.num_replicas}")

    def init(self, ladders):
        return Rotate(jnp.zeros((), jnp.int32))

    def propose(self, key, seen):
        count, turns = len(seen.energy), self.turns + seen.allowed
        moved = {name: jnp.where(seen.allowed, (place + 1) % count, place) for name, place in seen.rung.items()}
        values = {k: v[moved[name]] for name, ladder in seen.ladders.items() for k, v in ladder.values.items()}
        return jaxpt.Move(moved, {**seen.hyper, **values}), Rotate(turns), jaxpt.Info.none(count)


class Largest(jaxpt.Recorder):
    """Keeps the largest energy of each period."""

    def open(self, run):
        self.rows = [] if run.trace is None else run.trace.valid["energy"].max(-1).tolist()
        self.directory, self.closed = run.directory, False

    def add(self, trace, seconds, images):
        assert seconds[0] < seconds[1]
        self.rows += trace.valid["energy"].max(-1).tolist()

    def close(self):
        self.closed = True


def bowl():
    """A problem written by hand: w goes down a parabola, |w - 1|^2."""

    def loss(w, rest, batch, hyper, key):
        return (w - 1.0) ** 2 + jnp.zeros(1), rest

    return jaxpt.Problem(
        init=lambda key: (jax.random.normal(key), ()),
        loss=loss,
        evaluate=lambda w, rest, batch: {"energy": loss(w, rest, batch, {}, None)[0]},
        model=lambda w, rest: lambda: w,
    )


def engine(rates=(0.1, 0.2, 0.3), rule=None):
    ladder = jaxpt.Ladder(learning_rate=list(rates))
    return jaxpt.Engine(bowl(), lambda h: optax.sgd(h["learning_rate"]), ladder, rule or Rotate(), every=1, burn_in=1)


@pytest.mark.parametrize("directory", [False, True], ids=["without", "with a directory"])
def test_a_rule_a_recorder_and_a_problem_by_the_recipes(directory, tmp_path):
    largest, options = Largest(), {"directory": tmp_path / "run"} if directory else {}
    if directory:  # cut after three steps, then gone on with
        jaxpt.fit(engine(), steps=3, recorders=[largest], progress=False, **options)
        assert (len(largest.rows), largest.directory) == (3, tmp_path / "run")
    result = jaxpt.fit(engine(), steps=6, recorders=[largest], progress=False, **options)
    assert result.trace.rung["learning_rate"].tolist() == [
        [(k + max(0, t - 1)) % 3 for k in range(3)] for t in range(6)
    ]
    assert int(result.state.rule.turns) == 5
    # Each step takes w - 1 to (1 - 2 rate) (w - 1), whichever rate is in force.
    shrunk = np.prod(1 - 2 * result.trace.hyper["learning_rate"], 0)
    start = engine().init(jax.random.key(0)).replicas.params
    np.testing.assert_allclose(result.state.replicas.params - 1, shrunk * (np.asarray(start) - 1), rtol=1e-5)
    assert largest.rows == result.trace.valid["energy"].max(-1).tolist()
    assert largest.closed
    assert float(result.best().model()) == result.state.replicas.params[result.best().replica]


def test_a_rule_is_checked_with_its_engine():
    with pytest.raises(ValueError, match="Rotate needs three rungs, but the ladder has 2"):
        engine((0.1, 0.2))


def test_a_rule_that_is_no_pytree_is_refused():
    class Plain(jaxpt.Rule):
        propose = Rotate.propose

    with pytest.raises(ValueError, match=r"rule must be a pytree.*register_dataclass above .*class Plain\("):
        engine(rule=Plain())
    with pytest.raises(ValueError, match=r"of a class below jaxpt.Rule"):
        engine(rule=object())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Separate(jaxpt.Rule):
    """Written for arguments one by one."""

    needs_beta: ClassVar[bool] = False

    def propose(self, key, turn, energy, rung, hyper, ladders, allowed):
        raise AssertionError


def test_a_rule_whose_propose_takes_other_arguments_is_refused():
    with pytest.raises(ValueError, match=r"rule\.propose\(key, seen\), but .* 'energy'; write .* jaxpt\.Observation"):
        engine(rule=Separate())


def test_recorders_are_objects():
    with pytest.raises(ValueError, match=r"recorders must be a list of jaxpt\.Recorder objects"):
        jaxpt.fit(engine(), steps=3, recorders=[Largest], progress=False)


@pytest.mark.parametrize(("kind", "lacks"), [(jaxpt.Rule, "propose"), (jaxpt.Recorder, "add")])
def test_what_a_class_must_have_is_asked_for_at_construction(kind, lacks):
    with pytest.raises(TypeError, match=f"abstract method '?{lacks}"):
        type("Empty", (kind,), {})()


def test_lines_that_are_asked_for_are_written_once(tmp_path):
    jaxpt.fit(engine(), steps=3, directory=tmp_path, recorders=[jaxpt.JsonLines()], progress=False)
    assert len((tmp_path / "periods.jsonl").read_text().splitlines()) == 3


def test_the_earlier_names_are_the_new_functions():
    assert jaxpt.errors is jaxpt.zero_one_loss
    assert jaxpt.mixture is jaxpt.ensemble
    assert jaxpt.Result.mixture is jaxpt.Result.ensemble
