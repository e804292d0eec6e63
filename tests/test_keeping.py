"""The best replica of all periods, and directories that are read again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.results.directory import look
from jaxpt.saving import keeping
from tests import conftest

RATES = [0.02, 0.3, 1.1]


def swinging(w, b):
    """A bowl in which the highest rate runs away, so that its replica is best early or never; [B] equal numbers."""
    return (w - b["x"].mean()) ** 2 + 0 * b["x"]


PROBLEM = jaxpt.energy_problem(swinging, lambda key: 1 + jnp.abs(jnp.asarray(2.0)))


def drift(h, t):
    """Downhill for twelve steps, then uphill."""
    return {**h, "learning_rate": jnp.where(t < 12, h["learning_rate"], -h["learning_rate"])}


def sgd(h):
    return optax.sgd(h["learning_rate"])


def adam(h):
    return optax.adam(h["learning_rate"])


def make(rule=None, optimizer=sgd, rates=RATES, **options):
    options = {"schedule": drift, "every": 2, "batch_size": 4, **options}
    return jaxpt.Engine(PROBLEM, optimizer, jaxpt.Ladder(learning_rate=rates), rule or jaxpt.Independent(), **options)


DATA = {"x": np.full(4, 0.5, np.float32)}


def fit(engine=None, steps=24, **options):
    return jaxpt.fit(engine or make(), DATA, DATA, steps=steps, progress=False, **options)


def loop(rate, steps):
    """The weight of one replica by a plain loop, in float64."""
    w = 3.0
    for t in range(steps):
        w -= (rate if t < 12 else -rate) * 2 * (w - 0.5)
    return w


def test_patience_returns_the_weights_of_the_best_period():
    found = fit(patience=3)
    assert found.stopped == "patience"
    assert found.state.step == 18
    best = found.best(ever=True)
    energies = {(step, k): (loop(rate, step) - 0.5) ** 2 for step in range(2, 20, 2) for k, rate in enumerate(RATES)}
    assert (best.step, best.replica) == min(energies, key=energies.get) == (12, 1)
    np.testing.assert_allclose(best.model, loop(0.3, 12), rtol=1e-5)
    np.testing.assert_allclose(best.valid["energy"], found.trace.valid["energy"].min(), rtol=1e-6)
    assert best.hyper == {"learning_rate": 0.3}
    assert found.best().valid["energy"] > best.valid["energy"], "the last step's best is worse"


@pytest.mark.parametrize(
    "rule", [jaxpt.Tempering(1.0, "deo"), jaxpt.PBT(), jaxpt.CopyBest()], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize("seeds", [None, [3, 4]])
def test_the_weights_kept_have_the_energy_recorded(rule, seeds):
    """Whatever the rule moves or copies, evaluated again by hand."""
    found = fit(make(rule), keep_best=True, seeds=seeds)
    for seed in [None] if seeds is None else range(2):
        best = found.best(ever=True, seed=seed)
        column = found.trace.valid["energy"] if seed is None else found.trace.valid["energy"][:, seed]
        np.testing.assert_allclose((best.model - 0.5) ** 2, column.min(), rtol=1e-5)
        np.testing.assert_allclose(best.valid["energy"], column.min(), rtol=1e-6)


def test_a_resumed_run_keeps_the_best_of_its_first_part(tmp_path):
    fit(steps=14, keep_best=True, directory=tmp_path / "run")
    found, whole = fit(keep_best=True, directory=tmp_path / "run"), fit(keep_best=True)
    assert found.best(ever=True).step == whole.best(ever=True).step == 12
    assert found.best(ever=True).model == whole.best(ever=True).model
    found.save_model(tmp_path / "best", ever=True)
    assert jaxpt.load_model(tmp_path / "best") == found.best(ever=True).model
    read = jaxpt.load_run(make(), tmp_path / "run")
    assert read.best(ever=True).model == found.best(ever=True).model


def test_what_was_not_kept_is_said(tmp_path):
    found = fit(steps=14, directory=tmp_path / "run")
    with pytest.raises(ValueError, match="has not kept its best replica; give fit"):
        found.best(ever=True)
    with pytest.raises(ValueError, match="ever=True goes by the energy"):
        found.best("error", ever=True)
    late = fit(keep_best=True, directory=tmp_path / "run")
    with pytest.warns(UserWarning, match="was reached before the run began to keep"):
        assert late.best(ever=True).step > 12


def test_any_checkpoint_of_a_directory_can_be_read(tmp_path):
    """The latest two and the best are kept; each has the weights that the plain loop has then."""
    fit(directory=tmp_path / "run", save_every=1)
    for step, expected in (("latest", 24), ("best", 12), (22, 22)):
        read = jaxpt.load_run(make(), tmp_path / "run", step=step)
        assert int(read.state.step) == expected == read.trace.step[-1]
        np.testing.assert_allclose(read.state.replicas.params, [loop(rate, expected) for rate in RATES], rtol=1e-4)
        assert read.best().valid["energy"] == pytest.approx(read.trace.valid["energy"][-1].min())
    with pytest.raises(ValueError, match=r"keeps no checkpoint of step 4; it keeps \[12, 22, 24\]"):
        jaxpt.load_run(make(), tmp_path / "run", step=4)
    with pytest.raises(ValueError, match="holds no run"):
        jaxpt.load_run(make(), tmp_path)


def test_seeds_and_generators_of_a_directory_are_read(tmp_path):
    fit(directory=tmp_path / "run", steps=4, seeds=[5, 7], prng="rbg")
    read = jaxpt.load_run(make(), tmp_path / "run")
    assert read.trace.valid["energy"].shape == (2, 2, 3)
    assert read.best(seed=1).seed == 1


@pytest.mark.filterwarnings("ignore:energy is not finite")
def test_a_run_resumes_although_a_seed_never_had_a_finite_energy(tmp_path):
    """It has no best replica to keep, and does not count among the energies of checkpoints."""
    problem = jaxpt.energy_problem(lambda w, b: swinging(w[0], b), or_nan)
    engine = dataclasses.replace(make(schedule=None, rates=RATES[:2]), problem=problem)
    starts = [np.asarray(engine.init(jax.random.key(seed)).replicas.params) for seed in range(20)]
    lost = [bool(np.isnan(start).all()) for start in starts]
    run = {"seeds": [lost.index(False), lost.index(True)], "directory": tmp_path / "run", "keep_best": True}
    fit(engine, steps=4, **run)
    resumed, whole = fit(engine, steps=8, **run), fit(engine, steps=8, **run | {"directory": None})
    np.testing.assert_array_equal(resumed.trace.valid["energy"], whole.trace.valid["energy"])
    for read in (resumed, jaxpt.load_run(engine, tmp_path / "run", step="best")):
        assert read.best(seed=0, ever=True).valid == whole.best(seed=0, ever=True).valid
        with pytest.raises(ValueError, match="no period of the run had a finite energy"):
            read.best(seed=1, ever=True)
    last = look(tmp_path / "run").checkpoints[-1]
    assert last["lost_seeds"] == 1
    assert last["energy"] == pytest.approx(np.nanmin(whole.trace.valid["energy"][-1, 0]))


def or_nan(key):
    """A weight, or NaN."""
    return jnp.where(jax.random.uniform(key) < 0.5, jnp.nan, jnp.ones(1))


def test_the_best_checkpoint_has_the_fewest_lost_seeds():
    nan, inf = np.nan, np.inf
    rows = [np.array(row) for row in ([[1.0, nan], [3.0, 2.0]], [[nan, nan], [0.5, 0.1]], [[nan, inf], [nan, nan]])]
    assert [keeping.lowest_energy(row) for row in rows] == [(0, 1.5), (1, 0.1), (2, inf)]
    assert keeping.lowest_energy(rows[0][0]) == (0, 1.0)
    told = [{"lost_seeds": 0, "energy": 1.5}, {"energy": 1.6}, {"lost_seeds": 1, "energy": 0.1}, {"lost_seeds": 2}]
    assert sorted([told[i] for i in (2, 0, 3, 1)], key=keeping.rank) == told


def test_a_run_of_one_replica_is_read(tmp_path):
    """Its arrays of pairs are empty."""
    ran = fit(make(rates=[0.3]), steps=4, directory=tmp_path)
    read = jaxpt.load_run(make(rates=[0.3]), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, read.trace, ran.trace)
    assert [leaf.dtype for leaf in jax.tree.leaves(read.trace)] == [leaf.dtype for leaf in jax.tree.leaves(ran.trace)]


def test_a_run_is_read_with_the_engine_that_made_it(tmp_path):
    fit(directory=tmp_path / "run")
    for other, place in (
        (make(optimizer=adam), "opt_state"),
        (make(rates=RATES[:2]), r"params: float32\[3\] -> float32\[2\]"),
        (make(jaxpt.PBT()), "rule: Independent -> PBT"),
    ):
        with pytest.raises(ValueError, match=rf"the engine is not the one of the run in .*{place}"):
            jaxpt.load_run(other, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("rule", [jaxpt.CopyBest(), jaxpt.PBT()], ids=["CopyBest", "PBT"])
def test_scores_of_a_run_that_is_read_belong_to_its_weights(rule, tmp_path, data):
    """The last period's move copied weights after they had been scored."""
    engine = conftest.make_engine(conftest.small_problem(), rule=rule)
    made = jaxpt.fit(engine, data.train, data.valid, steps=15, directory=tmp_path / "run", progress=False)
    assert (made.trace.info.parents[-1] != np.arange(4)).any(), "weights were copied"
    read = jaxpt.load_run(engine, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, read.valid, made.valid)
    now = jax.tree.map(np.asarray, engine.evaluate(read.state, data.valid))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), read.valid, now)
