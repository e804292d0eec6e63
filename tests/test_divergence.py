import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.core import tree
from tests.conftest import make_engine, small_problem

HOTTEST, PLANTED = 3, 4  # replica, and the period after which it breaks
ROOM = 12  # one program for all of these


@tree.register(data=("inner",), meta=("vetoed",))
@dataclasses.dataclass(frozen=True)
class Veto(jaxpt.Rule):
    """A rule whose swaps with one replica are taken back."""

    inner: jaxpt.Tempering
    vetoed: int

    def propose(self, key, seen):
        move, inner, info = self.inner.propose(key, seen)
        ((name, before), after) = next(iter(seen.rung.items())), next(iter(move.rung.values()))
        # Swaps are of pairs: the partner is who stands where the vetoed replica stood.
        involved = (jnp.arange(len(before)) == self.vetoed) | (after == before[self.vetoed])
        kept = jnp.where(involved & (after[self.vetoed] != before[self.vetoed]), before, after)
        values = {key: value[kept] for key, value in seen.ladders[name].values.items()}
        return move._replace(rung={name: kept}, hyper={**seen.hyper, **values}), Veto(inner, self.vetoed), info


def broken(state, replica):
    params = jax.tree.map(lambda leaf: leaf.at[replica].set(jnp.nan), state.replicas.params)
    return state._replace(replicas=state.replicas._replace(params=params))


def run(engine, data, harm, before=PLANTED, after=8):
    """So many periods, the harm, and further ones; the state then and both traces."""
    state, first = engine.run(engine.init(jax.random.key(1)), data, periods=before, max_periods=ROOM)
    state, second = engine.run(harm(state), data, periods=after, max_periods=ROOM)
    return state, tree.take(first, slice(before)), tree.take(second, slice(after))


def others(tree_of_replicas, replica):
    return jax.tree.map(lambda leaf: np.delete(np.asarray(leaf), replica, -1), tree_of_replicas)


@pytest.mark.users_compiler
@pytest.mark.slow
def test_a_broken_replica_changes_nothing_for_the_others(data):
    """To the bit as where it is whole and never allowed to swap: it stands at the hot end, where nobody wants to go."""
    engine = make_engine(small_problem(), rule=Veto(jaxpt.Tempering(2.0, "deo"), HOTTEST))
    healthy, before, _ = run(engine, data, lambda state: state)
    assert before.rung["learning_rate+dropout_rate"][:, HOTTEST].tolist() == [HOTTEST] * PLANTED

    free = make_engine(small_problem(), rule=jaxpt.Tempering(2.0, "deo"))
    state, _ = engine.run(engine.init(jax.random.key(1)), data, periods=PLANTED, max_periods=ROOM)
    rule = free.init(jax.random.key(1)).rule
    found, trace = free.run(broken(state, HOTTEST)._replace(rule=rule), data, periods=8, max_periods=ROOM)
    trace = tree.take(trace, slice(8))

    _, _, expected = run(engine, data, lambda state: state)
    assert np.isnan(trace.valid["energy"][:, HOTTEST]).all()
    for name in ("loss", "valid", "test", "rung", "hyper"):
        jax.tree.map(
            np.testing.assert_array_equal,
            others(getattr(trace, name), HOTTEST),
            others(getattr(expected, name), HOTTEST),
        )
    weights = [[np.delete(leaf, HOTTEST, 0) for leaf in jax.tree.leaves(s.replicas[:3])] for s in (found, healthy)]
    jax.tree.map(np.testing.assert_array_equal, *weights)
    assert np.asarray(trace.info.accepted)[:, :-1].any(), "the others do swap"


@tree.register(data=("inner", "hidden"), meta=())
@dataclasses.dataclass(frozen=True)
class Hiding(jaxpt.Rule):
    """A rule that is shown no energy of some replicas, whole as they may be, so that it swaps none of them."""

    inner: jaxpt.Tempering
    hidden: object  # [M], whether
    noise_corrected = True

    def init(self, ladders):
        return dataclasses.replace(self, inner=self.inner.init(ladders))

    def propose(self, key, seen):
        seen = seen._replace(energy=jnp.where(self.hidden, jnp.nan, seen.energy))
        move, inner, info = self.inner.propose(key, seen)
        return move, dataclasses.replace(self, inner=inner), info


@pytest.fixture(scope="module")
def tuned():
    rule = jaxpt.Tempering("auto", "deo", adapt_ladder=True, noise_corrected=True, window=3)
    return make_engine(small_problem(), rule=Hiding(rule, np.zeros(4, bool)), burn_in=30, probe=30)


@pytest.mark.slow
@pytest.mark.parametrize("planted", [3, 10], ids=["while C and ladder are tuned", "while swaps go on"])
def test_tuning_and_noise_correction_do_not_see_a_broken_replica(planted, tuned, data):
    """To the bit, C and ladder too, as where it is whole but out of play: its weights reach nobody in any way.

    Out of play means that its energy tunes nothing either. Where it is only kept from swapping, the C that all share
    still aims at a mean acceptance in which its pairs count, and the others' trajectories cannot be the same.
    """
    at_hot_end = lambda state: int(jnp.argmax(state.replicas.rung["learning_rate+dropout_rate"]))
    hide = lambda state: state._replace(rule=dataclasses.replace(state.rule, hidden=np.arange(4) == at_hot_end(state)))
    harms = {"broken": lambda state: broken(state, at_hot_end(state)), "hidden": hide, "none": lambda state: state}
    ends, first, then = {}, {}, {}
    for name, harm in harms.items():
        ends[name], first[name], then[name] = run(tuned, data, harm, planted, after=12)
    where = np.argmax(first["none"].rung["learning_rate+dropout_rate"][-1])
    assert np.isnan(then["broken"].valid["energy"][:, where]).all()
    assert np.isfinite(then["hidden"].valid["energy"]).all()
    for name in ("loss", "valid", "test", "rung", "hyper"):
        jax.tree.map(
            np.testing.assert_array_equal,
            others(getattr(then["broken"], name), where),
            others(getattr(then["hidden"], name), where),
        )
    for name in ("C", "beta", "attempted", "accepted"):
        np.testing.assert_array_equal(getattr(then["broken"].info, name), getattr(then["hidden"].info, name))
    weights = [
        [np.delete(leaf, where, 0) for leaf in jax.tree.leaves(ends[name].replicas[:3])]
        for name in ("broken", "hidden")
    ]
    jax.tree.map(np.testing.assert_array_equal, *weights)
    rung = np.asarray(then["broken"].rung["learning_rate+dropout_rate"])
    assert (rung[:, where] == HOTTEST).all(), "it never swaps"
    assert np.asarray(then["broken"].info.accepted).any(), "the others do"
    C = {name: np.asarray(trace.info.C) for name, trace in then.items()}
    assert len(np.unique(C["broken"])) > 4, "still tuned after the harm"
    assert (C["broken"] != C["none"]).any()
    ladders = {name: len(np.unique(np.asarray(trace.info.beta)[:, 1])) for name, trace in then.items()}
    assert ladders == ({"broken": 1, "hidden": 1, "none": 2} if planted == 3 else dict.fromkeys(harms, 1))


@pytest.mark.slow
@pytest.mark.parametrize("replica", range(4))
def test_wherever_it_stands_it_gets_no_colder_and_leaves_the_others_whole(replica, data):
    engine = make_engine(small_problem(), rule=jaxpt.Tempering(2.0, "deo"))
    state, _, trace = run(engine, data, lambda state: broken(state, replica), after=12)
    rung = trace.rung["learning_rate+dropout_rate"]
    assert (np.diff(rung[:, replica]) >= 0).all()
    assert rung[-1, replica] == HOTTEST
    assert np.isfinite(others((trace.loss, trace.valid, trace.test), replica)[0]).all()
    assert all(np.isfinite(np.delete(leaf, replica, 0)).all() for leaf in jax.tree.leaves(state.replicas[:3]))


@pytest.mark.slow
def test_respawn_goes_on_with_the_nearest_healthy_one(data):
    engine = make_engine(small_problem(), rule=jaxpt.Independent(), diverged="respawn")
    _, _, trace = run(engine, data, lambda state: broken(broken(state, 0), 2), after=3)
    parents = np.asarray(trace.info.parents)
    assert parents.tolist() == [[1, 1, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3]], "of two neighbours the colder"
    assert np.isnan(trace.valid["energy"][0, [0, 2]]).all()
    assert np.isfinite(trace.valid["energy"][1:]).all()
    path = jaxpt.lineage(trace, 2)
    assert path.replica.tolist() == [1, 2, 2]

    # One period after the harm: weights are the neighbour's, hyperparameters and keys their own.
    state, _, _ = run(engine, data, lambda state: broken(broken(state, 0), 2), after=1)
    whole, _, _ = run(engine, data, lambda state: state, after=1)
    for mine, theirs in zip(*(jax.tree.leaves(s.replicas[:3]) for s in (state, whole)), strict=True):
        np.testing.assert_array_equal(np.asarray(mine)[[0, 1, 2, 3]], np.asarray(theirs)[[1, 1, 1, 3]])
    jax.tree.map(np.testing.assert_array_equal, state.replicas.hyper, whole.replicas.hyper)


@pytest.mark.slow
def test_respawn_beside_a_rule_that_copies(data):
    """What PBT has replaced already stays as PBT wants it, and nobody goes on with a broken one."""
    engine = make_engine(small_problem(), rule=jaxpt.PBT(), diverged="respawn")
    _, _, trace = run(engine, data, lambda state: broken(broken(state, 0), 2), after=3)
    parents = np.asarray(trace.info.parents)
    assert not {0, 2} & set(parents[0].tolist())
    assert np.isfinite(trace.valid["energy"][1:]).all()


@pytest.mark.slow
def test_with_all_broken_there_is_nobody_to_go_on_with(data):
    engine = make_engine(small_problem(), rule=jaxpt.Independent(), diverged="respawn")
    harm = lambda state: broken(broken(broken(broken(state, 0), 1), 2), 3)
    _, _, trace = run(engine, data, harm, after=2)
    assert np.asarray(trace.info.parents).tolist() == [[0, 1, 2, 3]] * 2


def diverging(policy, **settings):
    """The replica on the hottest rung blows up: its learning rate is far too large for a quadratic."""
    problem = jaxpt.energy_problem(lambda w: jnp.sum(w**4), lambda key: 1 + jax.random.uniform(key, (2,)))
    return jaxpt.Engine(
        problem,
        lambda h: optax.sgd(h["learning_rate"]),
        jaxpt.Ladder(learning_rate=[0.01, 0.02, 5.0]),
        every=5,
        diverged=policy,
        **settings,
    )


@pytest.mark.parametrize(
    ("policy", "then"),
    [("keep", "it goes on, and counts nowhere"), ("respawn", "weights of the nearest healthy replica")],
)
def test_it_is_reported_at_once(policy, then):
    with pytest.warns(UserWarning, match=rf"replica 2 on rung 2 of learning_rate by step 5 .*{then}"):
        result = jaxpt.fit(diverging(policy), steps=20, progress=False)
    assert result.best().replica != 2
    lost = np.isnan(result.trace.valid["energy"]).sum(0).tolist()
    assert lost[:2] == [0, 0]
    assert lost[2] == 4 if policy == "keep" else 1 <= lost[2] < 4


@pytest.mark.slow
def test_stop_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    seeds = {"seeds": [0, 1], "progress": False, "directory": tmp_path}
    with pytest.raises(
        jaxpt.Diverged, match=r"replica 2 of seed 0 on rung 2 .*replica 2 of seed 1.*the run stops.*stop"
    ):
        jaxpt.fit(diverging("stop"), steps=20, **seeds)
    with pytest.warns(UserWarning, match="energy is not finite"):
        jaxpt.fit(diverging("keep"), steps=20, **seeds)


def test_policies_are_checked():
    with pytest.raises(ValueError, match="diverged must be one of keep, stop, respawn, but it is 'ignore'"):
        make_engine(diverged="ignore")


def test_an_energy_that_is_infinite_at_first_may_become_finite():
    """w = 12 (1 - 2 rate)^200 from an energy exp(w^2) beyond float32."""

    def loss(w, rest, batch, hyper, key):
        return w**2 + jnp.zeros(1), rest

    energy = lambda w, rest, batch: {"energy": jnp.exp(w**2) + jnp.zeros(1)}
    problem = jaxpt.Problem(lambda key: (jnp.array(12.0), ()), loss, energy)
    ladder = jaxpt.Ladder(learning_rate=[0.01, 0.02])
    engine = jaxpt.Engine(problem, lambda h: optax.sgd(h["learning_rate"]), ladder, jaxpt.Independent(), every=5)
    with pytest.warns(UserWarning, match="energy is not finite: replica 0 on rung 0"):
        result = jaxpt.fit(engine, steps=200, progress=False)
    w = 12 * (1 - 2 * np.array([0.01, 0.02])) ** 200
    np.testing.assert_allclose(result.valid["energy"], np.exp(w**2), rtol=1e-4)
