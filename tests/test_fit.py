import numpy as np
import pytest

import jaxpt
from tests import conftest
from tests.conftest import make_engine, small_problem


def small_engine(**settings):
    return make_engine(small_problem(), **settings)


@pytest.fixture(scope="module")
def result(data):
    return jaxpt.fit(
        small_engine(rule=jaxpt.Tempering(3.0)),
        data.train,
        data.valid,
        test=data.test,
        steps=43,
        seeds=[3, 11],
        progress=False,
    )


@pytest.mark.slow
def test_it_trains_for_exactly_the_steps_asked_for(result):
    assert result.state.step == 43
    assert result.trace.step.tolist() == [5, 10, 15, 20, 25, 30, 35, 40, 43]
    assert result.trace.valid["energy"].shape == (9, 2, 4)
    assert not result.trace.info.attempted[-1].any(), "a last period that is short has no exchange"
    assert result.trace.info.attempted[:-1].any(-1).all()
    assert result.trace.loss[-1].mean() < result.trace.loss[0].mean() - 0.05


def test_images_are_counted(result):
    # 100 examples in minibatches of 16: 7 steps an epoch, 43 steps = 6 epochs and one minibatch; 2 x 4 replicas.
    assert result.replica_images == 8 * (6 * 100 + 16)


@pytest.mark.slow
def test_images_of_batch_size_rungs_are_counted_as_they_are(data):
    ladder = jaxpt.Ladder(batch_size=[16, 2])
    engine = small_engine(rungs=ladder, fixed={"learning_rate": 0.1, "dropout_rate": 0.1}, rule=jaxpt.Independent())
    # One epoch of 100 examples is 7 minibatches: 6 of 16 and one of 4.
    found = jaxpt.fit(engine, data.train, data.valid, steps=7, progress=False)
    assert found.replica_images == (6 * 16 + 4) + 7 * 2


@pytest.mark.slow
def test_images_of_batch_sizes_that_change_are_counted_as_they_were(data):
    ladder = jaxpt.Ladder(batch_size=[16, 12, 8, 2])
    fixed = {"learning_rate": 0.1, "dropout_rate": 0.1}
    engine = small_engine(rungs=ladder, fixed=fixed, rule=jaxpt.PBT(), every=3, drop_remainder=True)
    found = jaxpt.fit(engine, data.train, data.valid, steps=31, seeds=[0, 1], progress=False)
    sizes = found.trace.hyper["batch_size"]
    assert len(np.unique(sizes)) > 4, "PBT has found new ones"
    assert found.replica_images == 3 * sizes[:-1].sum() + sizes[-1].sum()


@pytest.mark.slow
def test_one_program_runs_all_dispatches(data):
    """However many periods a dispatch holds; a last period that is short needs a second one."""
    engine = small_engine(every=3, rule=jaxpt.Independent())
    before = jaxpt.engine.engine._run_donated._cache_size()
    found = jaxpt.fit(engine, data.train, data.valid, steps=3 * 1100 + 2, progress=False)
    assert len(found.trace.step) == 1101
    assert jaxpt.engine.engine._run_donated._cache_size() == before + 2


def test_best_is_the_lowest_on_validation(result, data):
    for seed in (0, 1):
        best = result.best("energy", seed=seed)
        assert best.replica == np.argmin(result.valid["energy"][seed])
        model_loss = float(np.mean(conftest.loss(best.model, data.valid)))
        np.testing.assert_allclose(model_loss, best.valid["energy"], rtol=1e-5)
        wrong = float(np.mean(conftest.error(best.model, data.test)))
        np.testing.assert_allclose(wrong, best.test["error"], rtol=1e-6)
        chosen = result.best("error", seed=seed)
        assert chosen.valid["error"] == result.valid["error"][seed].min()


def test_a_diverged_replica_is_never_the_best(result):
    energy = result.valid["energy"].copy()
    energy[0, np.argmin(energy[0])] = np.nan
    error = np.where(np.isnan(energy), 0.0, result.valid["error"])
    broken = jaxpt.Result(**{**vars(result), "valid": {"energy": energy, "error": error}})
    assert broken.best("energy", seed=0).valid["energy"] == np.nanmin(energy[0])
    assert np.isfinite(broken.best("error", seed=0).valid["energy"]), "its error of 0 counts for nothing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("energy",), "give seed=0 .. 1"), (("energy", 2), "not 2"), (("accuracy", 0), "is not a score")],
)
def test_best_says_what_it_needs(result, arguments, message):
    with pytest.raises(ValueError, match=message):
        result.best(*arguments)


@pytest.mark.slow
def test_one_seed_needs_no_seed_axis(data):
    engine = small_engine(rule=jaxpt.Independent())
    one = jaxpt.fit(engine, data.train, data.valid, steps=5, seed=11, progress=False)
    assert one.trace.loss.shape == (1, 4)
    assert one.best().seed is None
    assert one.test == {}
    with pytest.raises(ValueError, match="one seed only"):
        one.best(seed=0)


@pytest.mark.slow
def test_with_a_probe_the_choice_is_still_made_on_the_whole_split(data):
    engine = small_engine(probe=7, rule=jaxpt.Independent())
    probed = jaxpt.fit(engine, data.train, data.valid, steps=5, progress=False)
    np.testing.assert_array_equal(probed.valid["energy"], engine.evaluate(probed.state, data.valid)["energy"])
    assert not np.allclose(probed.valid["energy"], probed.trace.valid["energy"][-1])


@pytest.mark.parametrize(
    "seeds",
    [{"seeds": []}, {"seeds": 3}, {"seeds": [1, 1]}, {"seed": range(3)}, {"seed": 1, "seeds": [2]}, {"seeds": [0.5]}],
)
def test_seeds_must_be_distinct_integers(seeds, data):
    with pytest.raises(ValueError, match="seed"):
        jaxpt.fit(small_engine(), data.train, data.valid, steps=5, **seeds)


@pytest.mark.slow
def test_a_run_too_short_for_exchanges_says_so(data):
    with pytest.warns(UserWarning, match="no exchange will happen"):
        jaxpt.fit(small_engine(burn_in=10), data.train, data.valid, steps=10)


def test_a_ladder_that_diverged_altogether_says_so(result):
    valid = {name: np.full_like(v, np.nan, dtype=float) for name, v in result.valid.items()}
    broken = jaxpt.Result(**{**vars(result), "valid": valid})
    with pytest.warns(UserWarning, match="all 4 replicas have diverged"):
        assert np.isnan(broken.best(seed=1).valid["energy"])
    with pytest.warns(UserWarning, match="have diverged"):
        made = broken.summary()
    assert (made["diverged"], result.summary()["diverged"]) == (valid["energy"].size, 0)
    assert f"{len(valid['energy'])} x 4 replicas have diverged\n" in str(made)
    assert "diverged" not in str(result.summary())


@pytest.mark.parametrize("steps", [0, -5, 40.0])
def test_steps_must_be_positive(steps, data):
    with pytest.raises(ValueError, match="steps must be an integer of at least 1"):
        jaxpt.fit(small_engine(), data.train, data.valid, steps=steps)


@pytest.mark.slow
def test_the_bar_shows_progress_and_can_be_silenced(data, capsys):
    engine = small_engine(rule=jaxpt.Tempering(3.0))
    jaxpt.fit(engine, data.train, data.valid, steps=10, description="mine", progress=True)
    shown = capsys.readouterr().err
    assert "mine: 100%" in shown
    assert all(word in shown for word in ("compiling", "best ", "swaps "))
    for silent in (False, None):  # None: stderr is no terminal here
        jaxpt.fit(engine, data.train, data.valid, steps=10, progress=silent)
        assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_another_generator_draws_other_numbers_and_trains_as_well(result, data):
    engine = small_engine(rule=jaxpt.Tempering(3.0))
    found = jaxpt.fit(engine, data.train, data.valid, steps=40, seeds=[3, 11], prng="rbg", progress=False)
    assert "rbg" in str(found.state.key.dtype)
    assert not np.allclose(found.trace.loss[0], result.trace.loss[0])
    np.testing.assert_allclose(found.trace.loss[-1].mean(), result.trace.loss[7].mean(), atol=0.15)


def test_an_unknown_generator_is_refused(data):
    with pytest.raises(ValueError, match="prng must be one of threefry2x32, rbg, unsafe_rbg, or None"):
        jaxpt.fit(small_engine(), data.train, data.valid, steps=5, prng="mersenne")
