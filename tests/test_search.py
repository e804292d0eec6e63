import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.core.ladder import as_arrays, contracted
from jaxpt.core.search import best_place
from jaxpt.results.summary import plain
from tests import conftest
from tests.conftest import assert_same, make_engine, small_problem

STEPS, END = 60, 15
FACTOR = 10 ** (1 / 6)
"""Half a rung on each side: the ladder has four rungs over a factor of ten."""
NAME = "learning_rate+dropout_rate"


def engine(**settings):
    settings = {"search": jaxpt.Search(steps=END, factor=FACTOR), **settings}
    return make_engine(small_problem(), **settings)


def fit(searched, data, **options):
    return jaxpt.fit(searched, data.train, data.valid, steps=STEPS, progress=False, **options)


@pytest.fixture(scope="module")
def run(data):
    """Twelve periods, of which three are a search, and a cooldown of two."""
    return fit(engine(cooldown=jaxpt.Cooldown(start=50, steps=10)), data)


def test_rates_fall_to_zero_and_come_back():
    search = jaxpt.Search(steps=8)
    expected = [*(1 + np.cos(np.pi * np.arange(8) / 8)) / 2, 1, 1]
    np.testing.assert_allclose(search.fall(np.arange(10)), expected, atol=1e-7)


@pytest.mark.parametrize("energy", [[0.5, 0.2, 0.3, 0.9], [1.0, np.nan, 0.1, np.inf], [2.0, 2.0, 2.0, 2.0]])
def test_the_best_place_is_a_weighted_mean(energy):
    energy = np.array(energy)
    known = np.isfinite(energy)
    spread = 0.2
    weight = np.where(known, np.exp(-(np.where(known, energy, 0) - energy[known].min()) / spread), 0)
    rung = np.array([2, 0, 1, 3])
    found = best_place(jnp.asarray(energy, jnp.float32), jnp.asarray(rung), jnp.float32(spread))
    np.testing.assert_allclose(found, (weight * rung).sum() / weight.sum(), rtol=1e-5)


def test_without_a_healthy_replica_the_place_is_a_number():
    assert float(best_place(jnp.full(4, jnp.nan), jnp.arange(4), jnp.float32(1))) == 0


def test_a_ladder_contracts_around_a_place():
    ladder = as_arrays(jaxpt.Ladder(learning_rate=np.geomspace(0.01, 0.16, 5)))
    for place, factor in ((2.0, 4.0), (0.3, 5.0), (4.0, 100.0)):
        same = contracted(ladder, jnp.float32(place), factor)
        np.testing.assert_allclose(same.values["learning_rate"], ladder.values["learning_rate"], rtol=1e-6)
    for place, middle in ((2.0, 0.04), (1.5, 0.04 / np.sqrt(2)), (0.1, 0.02), (4.0, 0.08)):  # not beyond the ends
        new = contracted(ladder, jnp.float32(place), 2.0)
        np.testing.assert_allclose(new.values["learning_rate"], middle * np.geomspace(0.5, 2, 5), rtol=1e-5)
        np.testing.assert_allclose(new.beta, 1 / new.values["learning_rate"], rtol=1e-6)
    alike = contracted(ladder, jnp.float32(3.0), 1.0)
    np.testing.assert_allclose(alike.values["learning_rate"], [0.08] * 5, rtol=1e-6)


def test_old_rungs_and_ends_stay_exact():
    """Through logarithms 0.1 would become 0.09999999, which is below the ladder."""
    for values in (np.geomspace(0.02, 0.1, 4), [0.1, 0.1, 0.3, 0.3], [0.3]):
        ladder = as_arrays(jaxpt.Ladder(learning_rate=values))
        same = contracted(ladder, jnp.float32(0.7), 1000.0)
        np.testing.assert_array_equal(same.values["learning_rate"][jnp.array([0, -1])], np.float32(values)[[0, -1]])
        np.testing.assert_array_equal(
            contracted(ladder, jnp.float32(0), 1.0).values["learning_rate"], ladder.values["learning_rate"][0]
        )
    near = contracted(ladder, jnp.float32(0.0), 1.0)
    assert near.values["learning_rate"].tolist() == ladder.values["learning_rate"].tolist()


def test_values_keep_their_type_in_float64_mode():
    ladder = as_arrays(jaxpt.Ladder(learning_rate=[0.1, 0.2, 0.4]))
    with jax.enable_x64(True):
        new = contracted(ladder, jnp.float64(1.0), 1.4)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(new)} == {"float32"}


def test_a_ladder_without_temperatures_stays_without():
    """A dropout rate of 0 has none; a grid search takes it all the same."""
    ladder = as_arrays(jaxpt.Ladder(dropout_rate=[0.0, 0.1, 0.2, 0.4]))
    new = contracted(ladder, jnp.float32(0.0), 4 ** (1 / 3))
    np.testing.assert_allclose(new.values["dropout_rate"], [0, 0.2 / 3, 0.4 / 3, 0.2], rtol=1e-5)
    assert new.beta[::3].tolist() == [4, 2], "they number the old rungs"
    assert (np.diff(new.beta) < 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [14, 15])
def test_a_run_that_ends_in_its_search_is_noticed(steps, data):
    """Its short last period is no end of the search: the ladder does not move after it."""
    with pytest.warns(UserWarning, match=f"the search ends at step 15, but the run has steps={steps} only"):
        result = jaxpt.fit(engine(rule=jaxpt.Independent()), data.train, data.valid, steps=steps, progress=False)
    assert ("have not contracted yet" in str(result.summary())) == (steps == 14)
    moved = np.asarray(result.state.replicas.hyper["learning_rate"]) != result.trace.hyper["learning_rate"][-1]
    assert moved.any() == (steps == 15)
    factor = np.asarray(jaxpt.Search(steps=15).fall(np.arange(steps)))
    path = result.lineage(0)
    np.testing.assert_allclose(path.scheduled["learning_rate"], factor * path.hyper["learning_rate"][0], rtol=1e-6)


@pytest.mark.slow
def test_the_short_last_period_lowers_rates_as_the_others_do(data):
    """A run of 14 steps in a search of 15 ends with the weights of a schedule that does the same."""
    fall = lambda h, step: {**h, "learning_rate": h["learning_rate"] * jaxpt.Search(steps=15).fall(step)}
    grid = {"rule": jaxpt.Independent(), "every": 5}
    with pytest.warns(UserWarning, match="the search ends"):
        one = jaxpt.fit(engine(**grid), data.train, data.valid, steps=14, progress=False)
    other = jaxpt.fit(engine(**grid, search=None, schedule=fall), data.train, data.valid, steps=14, progress=False)
    np.testing.assert_allclose(one.trace.loss, other.trace.loss, rtol=1e-5)


def test_shares_that_fit_the_run_fit_it_rounded():
    """Half of 60 steps is one and a half periods of 20; two of them would reach into the cooldown."""
    timed = engine(search=0.5, cooldown=0.5, every=20).over(60)
    assert (timed.beginning.end, timed.ending.begin) == (20, 30)
    assert engine(search=0.5, cooldown=0.5, every=20).over(80).beginning.end == 40


def test_coupled_and_unnamed_values_follow():
    ladder = as_arrays(jaxpt.Ladder(rate=[1.0, 2.0, 4.0], shift=[-1.0, 0.0, 2.0], beta=[4.0, 2.0, 1.0]))
    new = contracted(ladder, jnp.float32(1.0), 2**0.5)
    np.testing.assert_allclose(new.values["rate"], [np.sqrt(2), 2, np.sqrt(8)], rtol=1e-6)
    np.testing.assert_allclose(new.values["shift"], [-0.5, 0, 1], atol=1e-6)
    np.testing.assert_allclose(new.beta, [np.sqrt(8), 2, np.sqrt(2)], rtol=1e-6)
    batches = contracted(as_arrays(jaxpt.Ladder(batch_size=[64, 32, 16])), jnp.float32(1.0), 1.25)
    assert batches.values["batch_size"].tolist() == np.round(batches.values["batch_size"]).tolist()
    np.testing.assert_array_equal(batches.beta, batches.values["batch_size"])
    for beta in ([2.0, 1.0, 0.0], [1.0, 1.0, 1.0]):  # no ratio of betas: the ladder stays
        ladder = as_arrays(jaxpt.Ladder(x=[1.0, 2.0, 4.0], beta=beta))
        np.testing.assert_allclose(contracted(ladder, jnp.float32(0.0), 1.5).values["x"], [1, 2, 4], rtol=1e-6)


@pytest.mark.slow
def test_the_run_contracts_once_by_the_energies_at_the_end(run):
    trace = run.trace
    rates = trace.hyper["learning_rate"]
    np.testing.assert_array_equal(trace.info.attempted.any(-1), (trace.step > END) & (trace.step <= 50))
    assert (rates[:3] == rates[0]).all()
    energy = trace.valid["energy"][2].astype(np.float64)
    spread = np.median(np.abs(energy - np.median(energy)))
    weight = np.exp(-(energy - energy.min()) / spread)
    place = np.clip((weight * np.arange(4)).sum() / weight.sum(), 0.5, 2.5)
    expected = 0.02 * 10 ** ((place + 0.5 * np.linspace(-1, 1, 4)) / 3)
    np.testing.assert_allclose(rates[3], expected, rtol=1e-4)
    for row in rates[4:]:
        np.testing.assert_allclose(np.sort(row), expected, rtol=1e-4)
    np.testing.assert_array_equal(trace.rung[NAME][3], np.arange(4), "every replica keeps the number of its rung")
    dropout = 0.05 + 0.35 / 3 * np.arange(4)
    between = np.exp(np.interp(place + 0.5 * np.linspace(-1, 1, 4), np.arange(4), np.log(dropout)))
    np.testing.assert_allclose(trace.hyper["dropout_rate"][3], between, rtol=1e-4)
    held = run.state.ladders[NAME]
    np.testing.assert_allclose(held.values["learning_rate"], expected, rtol=1e-4)
    np.testing.assert_allclose(held.beta, 1 / held.values["learning_rate"], rtol=1e-6)


@pytest.mark.slow
def test_the_path_has_the_fall_and_the_new_rates(run, data):
    path = run.lineage(1)
    step = np.arange(STEPS)
    factor = np.asarray(run.engine.beginning.fall(step)) * np.asarray(run.engine.ending.fall(step))
    rates = np.repeat(path.hyper["learning_rate"], 5) * factor
    np.testing.assert_allclose(path.scheduled["learning_rate"], rates, rtol=1e-6)
    alone = jaxpt.replay(path, run.engine, data.train, data.valid, progress=False)
    np.testing.assert_array_equal(alone.trace.hyper["learning_rate"][:, 0], path.hyper["learning_rate"])
    np.testing.assert_array_equal(alone.lineage(0).scheduled["learning_rate"], path.scheduled["learning_rate"])


@pytest.mark.slow
def test_a_share_is_whole_periods(run, data, tmp_path):
    """Of the same run, resumed after it was stopped, with the same bits."""
    shared = engine(search=jaxpt.Search(0.25, factor=FACTOR), cooldown=1 / 6)

    class Stop(Exception):
        pass

    def stop(status):
        if status.step >= 30:
            raise Stop

    with pytest.raises(Stop):
        fit(shared, data, directory=tmp_path, save_every=1, callbacks=[stop], keep_best=True)
    again = fit(shared, data, directory=tmp_path, keep_best=True)
    assert_same((run.trace, run.state), (again.trace, again.state))
    assert again.engine.beginning.end == END
    loaded = jaxpt.load_run(shared, tmp_path)
    assert (loaded.engine.beginning.end, loaded.engine.ending.begin) == (END, 50)
    assert_same(loaded.lineage(1).scheduled, run.lineage(1).scheduled)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["search"]["steps"] == "15"
    assert jaxpt.Search(0.001).over(100, 10).end == 10, "one period at least"


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule", [jaxpt.Independent(), jaxpt.PBT(), jaxpt.Tempering(30.0, "deo")], ids=["grid", "pbt", "deo"]
)
def test_any_rule_goes_on_from_it(rule, data):
    result = fit(engine(rule=rule), data)
    rates = result.trace.hyper["learning_rate"]
    assert (rates[:3] == rates[0]).all()
    low, high = rates[3].min(), rates[3].max()
    np.testing.assert_allclose(high / low, 10 ** (1 / 3), rtol=1e-4)
    assert (rates[3:] >= low * 0.999).all()
    assert (rates[3:] <= high * 1.001).all(), "PBT explores between the ends of the new ladder"


@pytest.mark.slow
def test_C_is_found_after_it(data):
    """The energies of the search are not among those that C="auto" goes by."""
    result = fit(engine(rule=jaxpt.Tempering("auto", "deo", window=4), burn_in=30), data)
    held = result.state.rule.tuning
    assert held.rows.tolist() == [4], "three periods of burn-in and one more, as exchanges begin"
    log_ratio, beta = np.asarray(held.log_ratio[0]), result.state.ladders[NAME].beta
    energy = result.trace.valid["energy"][3:7]  # of the periods that end at steps 20 to 35
    expected = (beta[:-1] - beta[1:]) * (energy[:, :-1] - energy[:, 1:])
    np.testing.assert_allclose(log_ratio, expected, rtol=1e-4)


@pytest.mark.slow
def test_each_seed_finds_its_own(data):
    both = fit(engine(), data, seeds=[0, 7])
    one, other = both.trace.hyper["learning_rate"][3]
    assert (one != other).all()
    alone = fit(engine(), data, seed=7)
    np.testing.assert_allclose(other, alone.trace.hyper["learning_rate"][3], rtol=1e-4)


@pytest.mark.slow
def test_the_ladder_of_each_seed_is_shown(data, tmp_path):
    both = fit(engine(rule=jaxpt.Tempering(100.0, "deo")), data, seeds=[0, 7])
    held = both.state.ladders[NAME]
    rates, found = np.asarray(held.values["learning_rate"]), both.summary()
    assert (rates[0] != rates[1]).all()
    np.testing.assert_allclose(found["ladders"][NAME]["values"]["learning_rate"], rates, rtol=1e-6)
    ends = ", ".join(f"{rates[seed, 0]:.4g} to {rates[seed, -1]:.4g} (seed {seed})" for seed in (0, 1))
    assert f"learning_rate {ends}" in str(found)
    many = {**found, "ladders": {NAME: {**found["ladders"][NAME], "values": {"learning_rate": rates[[0, 1] * 3]}}}}
    lowest = f"{rates[:, 0].min():.4g} .. {rates[:, 0].max():.4g}"
    assert f"learning_rate {lowest} to " in str(type(found)(plain(many)))
    assert str(jaxpt.diagnostics.diagnosis(both.trace)).count("by seed") == 4
    both.report(tmp_path / "report.html")
    assert "learning rate, seed 1" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_seeds_with_one_ladder_share_its_values(data):
    both = fit(engine(search=None, rule=jaxpt.Tempering(100.0, "deo")), data, seeds=[0, 7])
    ladder = both.engine.ladders[NAME]
    np.testing.assert_allclose(
        both.summary()["ladders"][NAME]["values"]["learning_rate"], ladder.values["learning_rate"], rtol=1e-6
    )
    page = str(jaxpt.diagnostics.diagnosis(both.trace))
    assert "by seed" not in page
    assert f"   0 {float(ladder.beta[0]):>10.4g} " in page


@pytest.mark.slow
def test_several_ladders_contract_together(data):
    ladders = [
        jaxpt.Ladder(learning_rate=jaxpt.geometric(0.02, 0.2, 4)),
        jaxpt.Ladder(dropout_rate=jaxpt.geometric(0.05, 0.4, 4)),
    ]
    result = fit(make_engine(small_problem(), ladders, search=jaxpt.Search(steps=END, factor=1.0)), data)
    rates, dropout = result.trace.hyper["learning_rate"][3], result.trace.hyper["dropout_rate"][3]
    assert len(set(rates.tolist())) == len(set(dropout.tolist())) == 1
    place = 3 * np.log10(rates[0] / 0.02)
    np.testing.assert_allclose(dropout[0], 0.05 * 8 ** (place / 3), rtol=1e-4)


@pytest.mark.slow
def test_other_numbers_compile_nothing(data):
    trained = conftest.traces_of(engine(), data, "search")
    first = trained(jaxpt.Search(steps=5))
    again = trained(jaxpt.Search(steps=20, factor=1.2))
    assert again < first
    assert again == trained(jaxpt.Search(steps=5)), "only the checks at construction trace again"


def test_it_is_in_everything_that_a_run_shows(run, tmp_path):
    assert "search until step 15" in str(run.summary())
    run.report(tmp_path / "report.html")
    assert '<th colspan="2">search</th>' in (tmp_path / "report.html").read_text()


UNSORTED = jaxpt.Ladder(learning_rate=[0.1, 0.001, 0.3, 0.01], dropout_rate=[0.1, 0.3, 0.2, 0.4])
MISTAKES = [
    (lambda: engine(rule=jaxpt.Tempering("auto"), burn_in=15), "give burn_in=175, say, or the default rule"),
    (lambda: jaxpt.Search(), "either a share of the run"),
    (lambda: jaxpt.Search(0.1, steps=5), "either a share of the run"),
    (lambda: jaxpt.Search(1.0), "above 0 and at most 0.9"),
    (lambda: jaxpt.Search(steps=0), "steps of a search must be an integer of at least 1"),
    (lambda: jaxpt.Search(steps=2**31), "at least 1 that 32 bits hold"),
    (lambda: jaxpt.Search(0.1, factor=0.5), "factor of a search must be a number of at least 1"),
    (lambda: jaxpt.Search(0.1, names="batch_size"), "leave batch_size out of the names of the search"),
    (lambda: engine(search="early"), "search must be a share"),
    (lambda: engine(search=jaxpt.Search(steps=17)), "steps of the search must be a multiple of every=5"),
    (lambda: engine(rungs=UNSORTED, rule=jaxpt.Independent()), "sort the values, which are learning_rate .0.1, 0.001,"),
    (lambda: engine(search=jaxpt.Search(0.1, names="lr")), "the search lowers lr, but"),
    (lambda: engine(rule=jaxpt.Tempering("auto", adapt_ladder=True), burn_in=500), "both search and adapt_ladder"),
    (lambda: engine(rule=jaxpt.Tempering("auto", swap_while_tuning=True)), "swap the rungs that the search compares"),
    (
        lambda: engine(cooldown=jaxpt.Cooldown(start=10, steps=5)),
        "begins at step 10, before the search ends at step 15",
    ),
    (lambda: engine(search=0.5, cooldown=0.6).over(100), "begins at step 40, before the search ends at step 50"),
    (
        lambda: engine(search=0.5, cooldown=jaxpt.Cooldown(start=10, steps=90)).over(100),
        "begins at step 10, before the search ends at step 50",
    ),
    (lambda: engine(search=0.1).run(engine().init(jax.random.key(0)), conftest.examples(), periods=1), "only fit"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_each_mistake_has_a_message(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake()


def diverging(**settings):
    """A quadratic, on which the two hottest of six learning rates diverge: SGD is stable below 2."""
    problem = jaxpt.energy_problem(
        lambda w: 0.5 * (w[0] ** 2 + 0.01 * w[1] ** 2) + 0.1, lambda key: 1 + 0.1 * jax.random.normal(key, (2,))
    )
    ladder = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.01, 100.0, 6))
    return jaxpt.Engine(problem, lambda h: optax.sgd(h["learning_rate"]), ladder, every=10, **settings)


def test_a_rung_that_diverges_has_no_vote_and_its_replica_goes_on_after_the_search():
    """A copy of a healthy replica on its rung would have the lowest energy, and the ladder would move there."""
    searched = diverging(search=0.2, cooldown=0.3, diverged="respawn")
    with pytest.warns(UserWarning, match="energy is not finite") as said:
        result = jaxpt.fit(searched, steps=500, progress=False)
    waits = [str(one.message) for one in said if "when the search has ended" in str(one.message)]
    assert ["".join(waits).count(f"replica {k} ") for k in range(6)] == [0, 0, 0, 0, 1, 1], "each is named once"
    (respawn,) = [str(one.message) for one in said if "it goes on with the weights" in str(one.message)]
    assert respawn.count("by step 100") == respawn.count("by step") == 2
    parents = np.asarray(result.trace.info.parents)
    copied = np.flatnonzero((parents != np.arange(6)).any(-1))
    assert copied.tolist() == [9], "the period in which the search ends"
    assert parents[9].tolist() == [0, 1, 2, 3, 3, 3]
    assert np.asarray(result.trace.hyper["learning_rate"])[10:].max() < 2.3
    assert np.isfinite(result.valid["energy"]).all()
