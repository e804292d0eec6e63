"""Engines on the same seeds: the numbers are those of separate runs, and mistakes are found before any step."""

import dataclasses
import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image

import jaxpt
from jaxpt.diagnostics import interval
from jaxpt.studies import comparison
from tests import conftest
from tests.conftest import SmallNet, error, examples, loss, make_engine, sgd

SPLITS = examples()
SEEDS, STEPS = (3, 4, 11), 20
ENSEMBLE = {
    "error": lambda p, batch: jaxpt.zero_one_loss(p, batch["y"]),
    "rms": jaxpt.Metric(lambda p, batch: p[:, 0] ** 2, finish=jnp.sqrt, higher_is_better=False),
}


@functools.cache
def problem(*metrics):
    scores = dict.fromkeys(metrics or ("error",), error)
    return jaxpt.nnx_problem(SmallNet, loss, metrics=scores, predict=lambda model, batch: model(batch["x"]))


@functools.cache
def engines():
    tempering = make_engine(problem(), conftest.ladder(3), rule=jaxpt.Tempering(30.0), evaluation_batch=20)
    return {"tempering": tempering, "grid/1": dataclasses.replace(tempering, rule=jaxpt.Independent())}


def compared(arms=None, **options):
    options = {"steps": STEPS, "seeds": SEEDS, "test": SPLITS.test, **options}
    return jaxpt.compare(engines() if arms is None else arms, SPLITS.train, SPLITS.valid, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def found(folder):
    return compared(on="error", ensemble=ENSEMBLE, directory=folder)


@pytest.fixture(scope="module")
def by_hand():
    """The same runs, one call of fit for each arm."""
    options = {"steps": STEPS, "seeds": SEEDS, "test": SPLITS.test}
    return {name: jaxpt.fit(engine, SPLITS.train, SPLITS.valid, **options) for name, engine in engines().items()}


def without_data(**rungs):
    """Two wells in one dimension; an arm for each number of rungs."""
    wells = jaxpt.energy_problem(lambda w: (w**2 - 1) ** 2, jax.random.normal)
    return {
        name: jaxpt.Engine(wells, sgd, jaxpt.Ladder(learning_rate=jaxpt.geometric(0.01, 0.1, count)), every=2)
        for name, count in rungs.items()
    }


@pytest.mark.slow
def test_the_best_replicas_are_those_of_separate_runs_to_the_bit(found, by_hand):
    assert list(found.arms) == ["tempering", "grid/1"]
    assert (found.seeds, found.steps, found.on, found.baseline) == (SEEDS, STEPS, "error", "tempering")
    for name, result in by_hand.items():
        arm = found.arms[name]
        best = [result.best("error", seed=seed) for seed in range(len(SEEDS))]
        assert arm.replica.tolist() == [b.replica for b in best]
        for split in ("valid", "test"):
            for score in ("energy", "error"):
                expected = [getattr(b, split)[score] for b in best]
                assert getattr(arm, split)[score].tolist() == expected
                assert found.values(name, score, split=split).tolist() == expected
        assert arm.examples == result.replica_images / len(SEEDS) > 0
        assert arm.replicas == 3
        jax.tree.map(np.testing.assert_array_equal, arm.trace, result.trace)


def test_the_ensembles_are_the_mean_of_what_all_replicas_predict(found, by_hand):
    for name, result in by_hand.items():
        for split, scores in (("valid", found.arms[name].ensemble_valid), ("test", found.arms[name].ensemble_test)):
            batch, wrong, rms = getattr(SPLITS, split), [], []
            for seed in range(len(SEEDS)):
                models = [
                    result.engine.problem.model(
                        *jax.tree.map(
                            lambda leaf, at=(seed, slot): leaf[at],
                            (result.state.replicas.params, result.state.replicas.model_state),
                        )
                    )
                    for slot in range(3)
                ]
                mean = np.mean([np.asarray(jax.nn.softmax(model(batch["x"])), np.float64) for model in models], 0)
                wrong.append((mean.argmax(-1) != batch["y"]).mean())
                rms.append(np.sqrt((mean[:, 0] ** 2).mean()))
            np.testing.assert_allclose(scores["error"], wrong, rtol=1e-5)
            np.testing.assert_allclose(scores["rms"], rms, rtol=1e-5)


def test_differences_are_paired_by_seed_with_an_interval(found):
    for what in ("best replica", "ensemble"):
        mine, other = (found.values(name, what=what) for name in ("grid/1", "tempering"))
        np.testing.assert_array_equal(found.differences("grid/1", what=what), mine - other)
        assert not found.differences("tempering", what=what).any()
    # By hand: mean plus or minus 4.3027 (97.5 % of Student's t with two degrees of freedom) standard errors.
    each = found.differences("grid/1", "energy")
    mean, low, high = interval(each)
    half = 4.302653 * each.std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose([mean, low, high], [each.mean(), each.mean() - half, each.mean() + half], rtol=1e-6)
    numbers = found.as_dict()["arms"]["grid/1"]["differences"]["best replica"]["test"]["energy"]
    assert numbers == {"per_seed": each.tolist(), "mean": float(mean), "ci95": [float(low), float(high)]}
    rows = [line for line in str(found).splitlines() if line.startswith("grid/1")]  # one for each score
    assert sum(f"{mean:+.3g} [{low:+.3g}, {high:+.3g}]" in row for row in rows) == 1


def test_the_text_has_a_table_for_each_score_and_the_compute_last(found):
    lines = str(found).splitlines()
    titles = ["error on test, lower is better", "energy on test, lower is better", "rms on test, lower is better"]
    assert [line for line in lines if " on test" in line] == titles
    heads = [line.split() for line in lines if line.startswith("arm ")]
    plain, minus = "arm best replica minus tempering", "minus tempering"
    assert heads[1] == f"{plain} examples per seed".split()
    assert heads[0] == f"{plain} ensemble {minus} examples per seed".split(), "the metrics of one name side by side"
    assert heads[2] == f"arm ensemble {minus} examples per seed".split()
    assert sum(line.startswith("grid/1") for line in lines) == 3
    assert lines[-1] == f"equal compute: {found.arms['tempering'].examples:,.0f} examples per seed in each arm"
    assert repr(found) == str(found)
    assert found.equal_compute


def test_a_mean_of_zero_shows_no_rounding(found):
    arm = found.arms["tempering"]
    rates = {"tempering": (2, 5, 9), "grid/1": (3, 4, 9)}  # wrong ones of 360: the same number in all
    scores = {name: np.array(wrong, np.float32) / np.float32(360) for name, wrong in rates.items()}
    arms = {name: dataclasses.replace(arm, test={**arm.test, "error": score}) for name, score in scores.items()}
    same = dataclasses.replace(found, arms=arms)
    assert 0 < abs(same.differences("grid/1", "error").mean()) < 1e-8
    row = next(line for line in str(same).splitlines() if line.startswith("grid/1"))
    assert re.search(r" \+0 \[-0\.0069, \+0\.0069\]", row), row


def test_the_score_that_chose_comes_first_and_equal_replicas_are_named(found):
    titles = [line.split()[0] for line in str(found).splitlines() if " on test" in line]
    assert (titles[0], sorted(titles)) == ("error", ["energy", "error", "rms"])
    by_energy = str(dataclasses.replace(found, on="energy")).splitlines()
    assert next(line for line in by_energy if " on test" in line).startswith("energy")
    assert "differences of exactly 0" not in str(found)
    twice = dataclasses.replace(found, arms={**found.arms, "again": found.arms["grid/1"]}, baseline="grid/1")
    assert "differences of exactly 0: the best replicas of again trained exactly as those of grid/1" in str(twice)


def test_unequal_compute_is_named_and_not_refused(found):
    more = dataclasses.replace(found.arms["grid/1"], examples=12345.0)
    other = dataclasses.replace(found, arms={**found.arms, "grid/1": more})
    assert not other.equal_compute
    used = found.arms["tempering"].examples
    assert str(other).splitlines()[-1] == f"unequal compute: tempering {used:,.0f}, grid/1 12,345 examples per seed"


def test_a_frame_has_a_row_for_each_number(found):
    frame = found.frame()
    assert list(frame.columns) == ["arm", "seed", "what", "split", "score", "value"]
    assert len(frame) == 2 * 3 * (2 * 2 + 2 * 2)
    for (arm, what, split, score), rows in frame.groupby(["arm", "what", "split", "score"]):
        assert rows.seed.tolist() == list(SEEDS)
        assert rows.value.tolist() == found.values(arm, score, what=what, split=split).tolist()


def test_json_holds_the_exact_numbers(found):
    again = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert again == found.as_dict()
    assert (again["seeds"], again["baseline"], again["equal_compute"]) == (list(SEEDS), "tempering", True)
    assert again["arms"]["tempering"]["differences"] is None
    for name, arm in found.arms.items():
        assert again["arms"][name]["replica"] == arm.replica.tolist()
        for what in ("best replica", "ensemble"):
            for split in ("valid", "test"):
                scores = again["arms"][name]["scores"][what][split]
                assert {key: value["per_seed"] for key, value in scores.items()} == {
                    key: values.tolist() for key, values in arm.scores(what, split).items()
                }


def test_the_picture_draws_scores_and_differences(found, tmp_path):
    left, right = found.picture().axes
    assert left.get_xlabel() == "error on test, lower is better"
    assert right.get_xlabel() == "minus tempering,\npaired by seed"
    means = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "D"]
    expected = [found.values(arm, what=w).mean() for w in ("best replica", "ensemble") for arm in found.arms]
    np.testing.assert_allclose(means, expected)
    assert len(found.picture("energy", split="valid").axes[0].get_yticks()) == 2
    found.picture("rms").savefig(tmp_path / "rms.png")
    assert image.imread(tmp_path / "rms.png")[..., :3].std() > 0.02


def test_seeds_that_have_diverged_are_nan_and_named(found, by_hand):
    result = by_hand["grid/1"]
    energy = np.array(result.valid["energy"])
    energy[1] = np.nan
    lost = dataclasses.replace(result, valid={**result.valid, "energy": energy})
    plan = comparison._Plan(SPLITS, STEPS, [list(SEEDS)], "error", ENSEMBLE, keep=False)
    with pytest.warns(UserWarning, match="all 3 replicas have diverged"):
        numbers = comparison._numbers(plan, lost)
    for scores in numbers.scores:
        assert all(np.isnan(values).tolist() == [False, True, False] for values in scores.values())
    valid, test, mixed, mixed_test = numbers.scores
    grid = dataclasses.replace(
        found.arms["grid/1"], valid=valid, test=test, ensemble_valid=mixed, ensemble_test=mixed_test
    )
    other = dataclasses.replace(found, arms={**found.arms, "grid/1": grid})
    text = str(other)
    assert "grid/1     not finite for 1 of 3 seeds  not finite for 1 of 3 seeds" in text
    assert "all replicas of grid/1 have diverged with seed 4" in text
    numbers = json.loads(json.dumps(other.as_dict(), allow_nan=False))["arms"]["grid/1"]
    assert numbers["differences"]["best replica"]["test"]["error"]["per_seed"][1] is None
    assert numbers["scores"]["ensemble"]["test"]["rms"]["ci95"] == [None, None]
    assert len(other.picture().axes) == 2


@pytest.mark.slow
def test_the_same_call_trains_nothing_again_and_another_arm_alone(found, folder, monkeypatch):
    trained = []
    run = jaxpt.Engine.run

    def recorded(self, *args, **options):
        trained.append(type(self.rule).__name__)
        return run(self, *args, **options)

    monkeypatch.setattr(jaxpt.Engine, "run", recorded)
    assert {path.name for path in folder.iterdir()} == {"tempering", "grid-1"}
    again = compared(on="error", ensemble=ENSEMBLE, directory=folder)
    assert trained == []
    times = {"seconds": 0, "compile_seconds": 0}
    same = lambda one: {name: arm | times for name, arm in one.as_dict()["arms"].items()}
    assert same(again) == same(found)
    shutil.rmtree(folder / "grid-1")
    again = compared(on="error", ensemble=ENSEMBLE, directory=str(folder))
    assert set(trained) == {"Independent"}
    assert again.arms["grid/1"].test["energy"].tolist() == found.arms["grid/1"].test["energy"].tolist()


@pytest.mark.slow
def test_fewer_seeds_at_once_give_the_same_numbers_up_to_rounding(found, tmp_path):
    grid = {"grid/1": engines()["grid/1"]}
    apart = compared(grid, on="error", ensemble=ENSEMBLE, at_once=2, directory=tmp_path, keep=True)
    assert {path.name for path in (tmp_path / "grid-1").iterdir()} == {"seeds-3-4", "seeds-11-11"}
    one, other = apart.arms["grid/1"], found.arms["grid/1"]
    assert apart.seeds == SEEDS
    assert one.replica.tolist() == other.replica.tolist()
    assert one.examples == other.examples
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5)
    for name in ("valid", "test", "ensemble_valid", "ensemble_test", "trace"):
        jax.tree.map(close, getattr(one, name), getattr(other, name))
    assert other.results == ()
    assert [result.num_seeds for result in one.results] == [2, 1]
    assert one.results[1].best("error", seed=0).test["energy"] == one.test["energy"][2]


@pytest.mark.slow
def test_every_arm_reads_a_stream_from_its_beginning():
    class Loader:
        def __iter__(self):
            for start in range(0, 96, 16):
                yield jax.tree.map(lambda leaf, start=start: leaf[start : start + 16], SPLITS.train)

    grid = engines()["grid/1"]
    twice = jaxpt.compare({"a": grid, "b": grid}, Loader(), SPLITS.valid, steps=5, seeds=[1, 2])
    assert not twice.differences("b").any()
    assert twice.values("b").all()


@pytest.mark.slow
def test_problems_without_data_and_one_seed():
    found = jaxpt.compare(without_data(a=3, b=4), steps=4, seeds=[7], baseline="b")
    lines = str(found).splitlines()
    assert sum("[one seed]" in line for line in lines) == 2
    assert lines[-1] == "unequal compute: a 3, b 4 replicas per seed"
    assert found.as_dict()["arms"]["a"]["differences"]["best replica"]["valid"]["energy"]["ci95"] == [None, None]
    assert found.differences("a", "energy").shape == (1,)


def test_an_error_of_a_run_names_its_arm():
    with pytest.raises(ValueError, match="steps must be an integer of at least 1") as caught:
        jaxpt.compare(without_data(a=3), steps=0)
    assert caught.value.__notes__ == ["in the arm 'a' of the comparison"]


def test_numbers_that_are_not_there_are_asked_for_in_vain(found):
    for asked, message in {
        ("other",): "arm='other' is none of the comparison's; there are tempering, grid/1",
        ("tempering", "nll"): "there is no score 'nll' of the best replica on the test split; there are energy, error",
    }.items():
        with pytest.raises(ValueError, match=message):
            found.values(*asked)
    with pytest.raises(ValueError, match="but they are 'mixture' and 'test'"):
        found.values("tempering", what="mixture")
    with pytest.raises(ValueError, match="there is no score 'nll'"):
        found.picture("nll")


def other_metrics():
    return {**engines(), "third": dataclasses.replace(engines()["tempering"], problem=problem("error", "hits"))}


def unclear():
    return {"a": dataclasses.replace(engines()["tempering"], problem=problem("thing"))}


MISTAKES = {
    "engines must be a mapping {name: jaxpt.Engine}, e.g.": lambda: compared([engines()["tempering"]]),
    "engines is empty; give one or more arms": lambda: compared({}),
    "names of engines must be texts that are not empty, but one is 3": lambda: compared({3: engines()["tempering"]}),
    "engines['a'] must be a jaxpt.Engine, but it is of": lambda: compared({"a": problem()}),
    "baseline must be one of the arms, tempering, grid/1, but it is 'grid'": lambda: compared(baseline="grid"),
    "baseline must be one of the arms, tempering, grid/1, but it is ['tempering']": lambda: compared(
        baseline=["tempering"]
    ),
    "seeds must be one or more different integers, e.g. range(8), but they are 5": lambda: compared(seeds=5),
    "seeds must be one or more different integers, e.g. range(8), but they are [1, 1]": lambda: compared(seeds=[1, 1]),
    "seeds must be one or more different integers, e.g. range(8), but they are []": lambda: compared(seeds=[]),
    "at_once must be a number of seeds, at least 1, or None for all, but it is 0": lambda: compared(at_once=0),
    "of fit's options, but not patience: every arm runs all its steps": lambda: compared(patience=3),
    "ensemble must be metrics of the mean prediction, e.g.": lambda: compared(ensemble=ENSEMBLE["error"]),
    "ensemble['error'] must be a function": lambda: compared(ensemble={"error": 0.5}),
    "ensemble is given, but the problem of a has no predictions to average": lambda: compared(
        {"a": make_engine(conftest.small_problem())}, ensemble=ENSEMBLE
    ),
    "metric 'mean' must give one number per example": lambda: compared(ensemble={"mean": lambda p, batch: p.mean()}),
    "the arms 'a b' and 'A/b' would share the directory": lambda: compared(
        dict.fromkeys(("a b", "A/b"), engines()["tempering"]), directory="runs"
    ),
    "the arm '/' needs a letter or a digit in its name": lambda: compared(
        {"/": engines()["tempering"]}, directory="runs"
    ),
    "directory='gs://bucket' looks like a URL": lambda: compared(directory="gs://bucket"),
    "the engines must have the same scores, but they have tempering: energy, error; ": lambda: compared(
        other_metrics()
    ),
    "on must be one of the scores, energy, error, but it is 'accuracy'": lambda: compared(on="accuracy"),
    "is more or less of 'thing' better?": lambda: compared(unclear(), on="thing"),
    "valid is missing, but the replica of each seed is chosen on it": lambda: jaxpt.compare(
        engines(), SPLITS.train, steps=5
    ),
    "each of the 2 runs would replace what the one before it recorded in": lambda: compared(
        recorders=[jaxpt.JsonLines("periods.jsonl")]
    ),
    "train is an iterator, which only the first arm could read": lambda: jaxpt.compare(
        engines(), iter([SPLITS.train]), SPLITS.valid, steps=5
    ),
    "the arrays of data.test must share their first axis": lambda: compared(
        test={"x": SPLITS.test["x"], "y": SPLITS.test["y"][:3]}
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_said_in_words_before_any_step(message, monkeypatch):
    monkeypatch.setattr(comparison, "fit", lambda *args, **options: pytest.fail("an arm has begun"))
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared as it stands
        MISTAKES[message]()
    assert message in str(caught.value)


def test_validation_is_another_word_for_the_energy():
    assert jaxpt.compare(without_data(a=2), steps=2, seeds=[0], on="validation").on == "energy"
