import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from tests import conftest
from tests.conftest import assert_same, make_engine, small_problem

STEPS, START = 53, 32
SHARE = (STEPS - START) / STEPS
COOLED = jaxpt.Cooldown(start=START, steps=STEPS - START)


def engine(**settings):
    settings = {"rule": jaxpt.Tempering(100.0), "cooldown": COOLED, **settings}
    return make_engine(small_problem(), **settings)


def fit(cooled, data, **options):
    return jaxpt.fit(cooled, data.train, data.valid, steps=STEPS, progress=False, **options)


@pytest.fixture(scope="module")
def run(data):
    """Ten periods of five steps and one of three; the cooldown begins within a period."""
    return fit(engine(), data)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_the_factor_is_the_formula(floor):
    step = np.arange(12)
    done = np.clip((step - 3) / 5, 0, 1)
    shapes = {"cosine": (1 + np.cos(np.pi * done)) / 2, "linear": 1 - done}
    for shape, left in shapes.items():
        cooldown = jaxpt.Cooldown(start=3, steps=5, shape=shape, floor=floor)
        np.testing.assert_allclose(cooldown.fall(step), floor + (1 - floor) * left, atol=1e-7)
        assert (np.asarray(cooldown.fall(step[:4])) == 1).all(), "exactly one until it begins"
        assert float(cooldown.fall(8)) == float(cooldown.fall(1000)) == np.float32(floor)


@pytest.mark.slow
def test_it_is_a_schedule_that_anybody_could_write(run, data):
    """The same training by a schedule of our own, without exchanges in either."""

    def by_hand(h, step):
        done = jnp.clip((step - START) / (STEPS - START), 0, 1)
        return {**h, "learning_rate": h["learning_rate"] * (1 + jnp.cos(jnp.pi * done)) / 2}

    grid = {"rule": jaxpt.Independent()}
    cooled = fit(engine(**grid), data)
    scheduled = fit(engine(**grid, cooldown=None, schedule=by_hand), data)
    np.testing.assert_allclose(cooled.trace.loss, scheduled.trace.loss, rtol=1e-5)
    constant = fit(engine(**grid, cooldown=None), data)
    np.testing.assert_allclose(cooled.trace.loss[:6], constant.trace.loss[:6], rtol=1e-5)
    assert (cooled.trace.loss[7:] != constant.trace.loss[7:]).all()
    assert constant.trace.cooldown is None


@pytest.mark.slow
def test_the_exchange_at_its_first_step_is_the_last(run):
    offers = run.trace.info.attempted.any(-1)
    np.testing.assert_array_equal(offers, run.trace.step <= START)
    np.testing.assert_array_equal(run.trace.cooldown == 1, run.trace.step <= START)
    assert run.trace.cooldown[-1] == 0
    after = run.trace.rung["learning_rate+dropout_rate"][7:]
    assert (after == after[0]).all(), "each replica stays where the last exchange put it"
    begun = fit_until(START + 3)
    assert begun.trace.step[6] == START + 3
    assert begun.trace.info.attempted.any(-1)[6], "an exchange in the step before the first cooled one"
    np.testing.assert_array_equal(jaxpt.diagnostics.exchanges(run.trace).step, [5, 10, 15, 20, 25, 30])


def fit_until(start):
    """A run whose cooldown begins at the end of its seventh period."""
    data = conftest.examples()
    return jaxpt.fit(
        engine(cooldown=jaxpt.Cooldown(start=start, steps=10)), data.train, data.valid, steps=start + 1, progress=False
    )


def test_a_share_is_a_number_of_steps(run, data):
    shared = fit(engine(cooldown=SHARE), data)
    assert_same((run.trace, run.state.replicas), (shared.trace, shared.state.replicas))
    assert shared.engine.ending.begin == START
    assert jaxpt.Cooldown(1.0).over(10).begin == 0
    assert jaxpt.Cooldown(1e-9).over(10).begin == 9, "one step at least"


@pytest.mark.slow
def test_other_numbers_compile_nothing(data):
    trained = conftest.traces_of(engine(), data, "cooldown")
    first = trained(COOLED)
    again = trained(jaxpt.Cooldown(start=2, steps=70, floor=0.5))
    unchanged = trained(COOLED)
    assert again == unchanged < first, "only the checks at construction trace again"


def test_numbers_have_one_type():
    """So that NumPy's numbers find the program that was compiled for Python's."""
    made = [
        (
            jaxpt.Cooldown(start=3, steps=5, floor=kind(0.5)),
            jaxpt.Search(0.1, factor=kind(2)),
            jaxpt.Tempering(strength=kind(2)),
        )
        for kind in (float, np.float64)
    ]
    plain, given = ([type(leaf) for leaf in jax.tree.leaves(one)] for one in made)
    assert plain == given


@pytest.mark.slow
def test_it_follows_a_schedule(data):
    """A warm-up comes first; the cooldown multiplies its result, and the path holds what was in force."""

    def warm(h, step):
        return {**h, "learning_rate": h["learning_rate"] * jnp.minimum(1.0, (step + 1) / 10)}

    result = fit(engine(rule=jaxpt.Independent(), schedule=warm), data)
    path = result.lineage(2)
    step = np.arange(STEPS)
    rates = path.hyper["learning_rate"][0] * np.minimum(1, (step + 1) / 10) * np.asarray(COOLED.fall(step))
    np.testing.assert_allclose(path.scheduled["learning_rate"], rates, rtol=1e-6)
    assert (path.scheduled["dropout_rate"] == path.hyper["dropout_rate"][0]).all()


@pytest.mark.slow
def test_other_names_and_shapes(data):
    cooldown = jaxpt.Cooldown(0.5, names=("learning_rate", "dropout_rate"), shape="linear", floor=0.2)
    result = fit(engine(cooldown=cooldown), data)
    path = result.lineage(0)
    np.testing.assert_allclose(path.scheduled["dropout_rate"][-1] / path.hyper["dropout_rate"][-1], 0.2 + 0.8 / 26)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [jaxpt.PBT(), jaxpt.CopyBest()], ids=["pbt", "copybest"])
def test_weights_are_not_copied_in_it(rule, data):
    result = fit(engine(rule=rule), data)
    copies = (result.trace.info.parents != np.arange(4)).any(-1)
    np.testing.assert_array_equal(copies, result.trace.step <= START)


@pytest.mark.slow
def test_swaps_while_tuning_end_too(data):
    """Burn-in is as long as the run, so there is no exchange after it; in the cooldown there is none either."""
    rule = jaxpt.Tempering("auto", "deo", adapt_ladder=True, window=2, swap_while_tuning=True)
    result = fit(engine(rule=rule, burn_in=500), data)
    offers = result.trace.info.attempted.any(-1)
    np.testing.assert_array_equal(offers, result.trace.step <= START)
    rates = result.trace.hyper["learning_rate"]
    np.testing.assert_array_equal(np.sort(rates[7]), np.sort(rates[-1]))


def test_a_resumed_run_has_the_same_bits(run, data, tmp_path):
    class Stop(Exception):
        pass

    def stop(status):
        if status.step >= 40:
            raise Stop

    shared = engine(cooldown=SHARE)
    with pytest.raises(Stop):
        fit(shared, data, directory=tmp_path, save_every=1, callbacks=[stop], keep_best=True)
    again = fit(shared, data, directory=tmp_path, keep_best=True)
    assert_same((run.trace, run.state.replicas), (again.trace, again.state.replicas))
    lines = [json.loads(line) for line in (tmp_path / "periods.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(np.float32([line["cooldown"] for line in lines]), run.trace.cooldown)
    loaded = jaxpt.load_run(shared, tmp_path)
    assert loaded.engine.ending.begin == START
    whole = {
        name: values[:50] for name, values in run.lineage(1).scheduled.items()
    }  # the last checkpoint has whole periods
    assert_same(loaded.lineage(1).scheduled, whole)
    with pytest.raises(ValueError, match=r"cooldown / start: 32 -> \d+"):
        jaxpt.fit(shared, data.train, data.valid, steps=2 * STEPS, directory=tmp_path, progress=False)


@pytest.mark.slow
def test_seeds_and_devices(run, data):
    several = fit(engine(placement=jaxpt.placement.shard_map(jax.devices()[:1])), data, seeds=[0, 5])
    np.testing.assert_array_equal(several.trace.cooldown, run.trace.cooldown)
    np.testing.assert_allclose(several.trace.loss[:, 0], run.trace.loss, rtol=1e-4)


@pytest.mark.slow
def test_one_model_trains_along_its_path(run, data):
    alone = jaxpt.replay(run.lineage(1), engine(cooldown=SHARE), data.train, data.valid, progress=False)
    np.testing.assert_array_equal(alone.trace.hyper["learning_rate"][:, 0], run.lineage(1).hyper["learning_rate"])
    np.testing.assert_array_equal(
        alone.lineage(0).scheduled["learning_rate"], run.lineage(1).scheduled["learning_rate"]
    )


@pytest.mark.slow
def test_a_path_that_ended_early_is_not_cooled_anew(run, data):
    """A share of the shorter run would lower rates where the path's run had not begun to."""
    early = dataclasses.replace(run, trace=jax.tree.map(lambda leaf: leaf[:4], run.trace)).lineage(1)
    with pytest.raises(ValueError, match="over 20 steps they are not those of the path's run"):
        jaxpt.replay(early, engine(cooldown=SHARE), data.train, data.valid, progress=False)
    with pytest.warns(UserWarning, match="the cooldown begins at step 32, but the run has steps=20 only"):
        alone = jaxpt.replay(early, run.engine, data.train, data.valid, progress=False)
    np.testing.assert_array_equal(alone.lineage(0).scheduled["learning_rate"], early.scheduled["learning_rate"])


def test_it_is_in_everything_that_a_run_shows(run, tmp_path):
    assert "cooldown from step 32: learning rate falls to zero" in str(run.summary())
    assert json.loads(json.dumps(run.summary()))["cooldown"]["start"] == START
    frame = run.frame()
    np.testing.assert_array_equal(frame["cooldown"].to_numpy().reshape(11, 4)[:, 0], run.trace.cooldown)
    run.report(tmp_path / "report.html")
    assert '<th colspan="2">cooldown</th>' in (tmp_path / "report.html").read_text()
    labels = [text.get_text() for text in run.plot()["paths"].legends[0].get_texts()]
    assert "cooldown" in labels


MISTAKES = [
    (lambda: jaxpt.Cooldown(), "either a share of the run"),
    (lambda: jaxpt.Cooldown(0.3, start=5, steps=5), "either a share of the run"),
    (lambda: jaxpt.Cooldown(start=5), "either a share of the run"),
    (lambda: jaxpt.Cooldown(0.0), "above 0 and at most 1"),
    (lambda: jaxpt.Cooldown(float("nan")), "above 0 and at most 1"),
    (lambda: jaxpt.Cooldown(start=-1, steps=5), "start of a cooldown must be an integer of at least 0"),
    (lambda: jaxpt.Cooldown(start=1, steps=0), "steps of a cooldown must be an integer of at least 1"),
    (lambda: jaxpt.Cooldown(0.3, shape="exp"), "cosine or linear"),
    (lambda: jaxpt.Cooldown(0.3, floor=1.0), "below 1"),
    (lambda: jaxpt.Cooldown(0.3, names=()), "names must be"),
    (lambda: jaxpt.Cooldown(start=2**31, steps=5), "at least 0 that 32 bits hold"),
    (lambda: jaxpt.Cooldown(0.3, names="batch_size"), "cannot fall to zero"),
    (lambda: engine(cooldown=1.5), "above 0 and at most 1"),
    (lambda: engine(cooldown="late"), "cooldown must be a share"),
    (lambda: engine(cooldown=True), "cooldown must be a share"),
    (lambda: engine(cooldown=jaxpt.Cooldown(0.3, names="lr")), "the cooldown lowers lr, but"),
    (lambda: engine(cooldown=0.3).run(engine().init(jax.random.key(0)), conftest.examples(), periods=1), "only fit"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_each_mistake_has_a_message(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake()


def test_a_cooldown_that_leaves_no_exchange_is_noticed(data):
    with pytest.warns(UserWarning, match="no exchange will happen.*and the cooldown begins at step 32"):
        fit(engine(burn_in=30), data)
    with pytest.warns(UserWarning, match="the cooldown begins at step 100, but the run has steps=53 only"):
        fit(engine(cooldown=jaxpt.Cooldown(start=100, steps=5)), data)


@pytest.mark.parametrize("settings", [{"cooldown": 0.3}, {"cooldown": None, "search": 0.1}], ids=str)
def test_an_optimiser_that_keeps_its_first_rate_is_refused(settings):
    engine(rule=jaxpt.Independent(), cooldown=None)
    with pytest.raises(ValueError, match="the optimizer reads learning_rate when it begins and never again"):
        dataclasses.replace(
            engine(rule=jaxpt.Independent(), cooldown=None),
            optimizer=lambda h: optax.rprop(h["learning_rate"]),
            **settings,
        )


def test_momentum_is_finite_where_a_schedule_has_brought_rates_to_zero():
    """The velocity cannot be kept at a rate of 0, where nothing moves; 0 / 0 would make every replica NaN."""
    unit = optax.cosine_decay_schedule(1.0, 50)
    falling = jaxpt.Engine(
        jaxpt.energy_problem(lambda w: 0.5 * w**2, lambda key: 1 + 0.1 * jax.random.normal(key, ())),
        lambda h: optax.sgd(h["learning_rate"], momentum=0.9),
        jaxpt.Ladder(learning_rate=[0.01, 0.02, 0.04]),
        every=10,
        rescale_momentum="learning_rate",
        schedule=lambda h, step: {**h, "learning_rate": h["learning_rate"] * unit(step)},
    )
    result = jaxpt.fit(falling, steps=70, progress=False)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state.replicas[:3]))
    np.testing.assert_array_equal(result.trace.valid["energy"][4], result.trace.valid["energy"][6])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Asks(jaxpt.Rule):
    """A rule that reads in which part of the run it is."""

    def propose(self, key, seen):
        go = seen.allowed & ~seen.cooldown & ~seen.search
        rung = {name: jnp.where(go, place[::-1], place) for name, place in seen.rung.items()}
        moved = {k: v[rung[name]] for name, ladder in seen.ladders.items() for k, v in ladder.values.items()}
        return jaxpt.Move(rung, {**seen.hyper, **moved}), self, jaxpt.Info.none(len(seen.energy))


@pytest.mark.slow
def test_a_rule_that_asks_for_the_part_of_the_run_can_be_saved(tmp_path, data):
    asking = engine(rule=Asks(), search=jaxpt.Search(steps=10))
    whole = fit(asking, data)
    kept = fit(asking, data, directory=tmp_path)
    assert_same(kept.state, whole.state)
    assert (np.diff(whole.trace.rung[next(iter(whole.trace.rung))], axis=0) != 0).any()
