"""The ways to execute an engine, timed on its own devices. No test checks the times themselves."""

import dataclasses
import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt.devices import memory
from jaxpt.studies import bench, kept, race, tune
from jaxpt.studies.race import Lap
from tests.conftest import SmallNet, examples, ladder, loss, make_engine, small_problem

SPLITS = examples()
PARTS = ("execution", "evaluation")
SETTINGS = {"replica_axis", "replicas_at_once", "evaluation_batch"}


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr(bench, "_TRAINING", 0.002)
    monkeypatch.setattr(bench, "_EVALUATION", 0.001)


@pytest.fixture(scope="module")
def given():
    return make_engine(small_problem(), rule=jaxpt.Tempering(3.0), evaluation_batch=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture(scope="module")
def tuned(given, folder):
    return jaxpt.tune(given, SPLITS, seconds=0.05, directory=folder)


def ways(rows):
    return [(row.replica_axis, row.replicas_at_once) for row in rows if row.part == "execution"]


def sizes(rows):
    return [row.evaluation_batch for row in rows if row.part == "evaluation"]


@pytest.mark.slow
def test_the_table_lists_every_candidate_and_one_of_each_part_is_chosen(tuned):
    assert ways(tuned.rows) == [("vmap", 1), ("unroll", 1), ("map", 1), ("map", 2)]
    assert sizes(tuned.rows) == [20, 5, 10, 40, 80]
    for part in PARTS:
        rows = [row for row in tuned.rows if row.part == part]
        assert sum(row.chosen for row in rows) == sum(row.given for row in rows) == 1
        assert all(row.rounds >= 1 and 0 < row.least <= row.period <= row.most for row in rows)
        assert all(row.compile_seconds > 0 and row.evaluation > 0 and row.refusal is None for row in rows)
        assert all((row.step is not None) == (part == "execution") for row in rows)
    assert not tuned.kept
    assert tuned.note is None
    assert tuned.gain > 0


def test_the_engine_is_the_fastest_candidate_and_else_the_given_one(tuned, given):
    execution, evaluation = (next(r for r in tuned.rows if r.part == part and r.chosen) for part in PARTS)
    found = tuned.engine
    assert (found.replica_axis, found.replicas_at_once) == (execution.replica_axis, execution.replicas_at_once)
    assert found.evaluation_batch == evaluation.evaluation_batch
    for field in dataclasses.fields(given):
        if field.name not in SETTINGS:
            assert getattr(found, field.name) is getattr(given, field.name), field.name


def test_the_text_and_the_dictionary_hold_the_same(tuned):
    lines = str(tuned).splitlines()
    assert lines[0] == f"{tuned.device}: 4 replicas, periods of 5 steps"
    assert lines[1].split()[:3] == ["replica_axis", "at", "once"]
    assert [line.split()[0] for line in lines[2:6]] == ["vmap", "unroll", "map", "map"]
    assert "given" in lines[2]
    assert sum(line.endswith("chosen") for line in lines) == 2
    assert lines[-1] == f"with the given settings a period takes {tuned.gain:.2f} times as long"
    found = json.loads(json.dumps(tuned.as_dict()))
    assert {name: found[name] for name in SETTINGS} == {name: getattr(tuned.engine, name) for name in SETTINGS}
    assert found["rows"] == [dataclasses.asdict(row) for row in tuned.rows]


@pytest.mark.slow
def test_every_candidate_gives_the_same_numbers_up_to_rounding(given):
    key = jax.random.key(0)
    executions, _ = tune._executions(given, SPLITS, key)
    found = []
    for engine in [*executions, *tune._sizes(given, SPLITS)[0][1:3]]:
        state, trace = engine.run(engine.init(key), SPLITS, periods=2)
        found.append((state.replicas.params, trace))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found[0], other)


def no_timing(monkeypatch):
    def refuse(*args):
        raise AssertionError("timed")

    monkeypatch.setattr(tune, "Bench", refuse)


def test_a_kept_choice_is_returned_without_timing(tuned, given, folder, monkeypatch):
    no_timing(monkeypatch)
    warmer = dataclasses.replace(given, ladder=jaxpt.Ladder(**_warmer(given)), rule=jaxpt.Tempering(5.0))
    other = SPLITS._replace(train=jax.tree.map(lambda leaf: leaf[::-1], SPLITS.train))
    for again in (jaxpt.tune(given, SPLITS, directory=folder), jaxpt.tune(warmer, other, directory=str(folder))):
        assert again.kept
        assert again.rows == tuned.rows
        assert [getattr(again.engine, name) for name in SETTINGS] == [getattr(tuned.engine, name) for name in SETTINGS]
        assert again.gain == tuned.gain
        assert "as kept in the directory" in str(again).splitlines()[0]


def _warmer(engine):
    return {name: 0.9 * np.asarray(values) for name, values in ladder().values.items()} | {"beta": "learning_rate"}


@pytest.mark.parametrize("other", ["device", "version", "batch_size", "replicas", "data", "seeds", "problem", "given"])
def test_a_choice_made_otherwise_does_not_count(other, tuned, given, folder, monkeypatch):
    no_timing(monkeypatch)
    engine, data, more = given, SPLITS, {}
    if other == "device":
        monkeypatch.setattr(kept, "device", lambda first: "another")
    elif other == "version":
        describe = kept.settings.describe
        changed = lambda *args: describe(*args) | {"versions": {"jax": "0.0"}}
        monkeypatch.setattr(kept.settings, "describe", changed)
    elif other == "batch_size":
        engine = dataclasses.replace(given, batch_size=8)
    elif other == "replicas":
        engine = dataclasses.replace(given, ladder=ladder(3))
    elif other == "data":
        data = SPLITS._replace(test=None)
    elif other == "seeds":
        more = {"seeds": 1}
    elif other == "problem":
        squared = lambda model, batch: loss(model, batch) ** 2

        engine = dataclasses.replace(given, problem=jaxpt.nnx_problem(SmallNet, squared))
    else:
        engine = dataclasses.replace(given, replica_axis="map")
    with pytest.raises(AssertionError, match="timed"):
        jaxpt.tune(engine, data, directory=folder, **more)


def test_choices_of_several_devices_stay_side_by_side(tuned, given, tmp_path):
    one, other = ({"device": name} for name in ("one", "other"))
    for now in (one, other, one):
        kept.keep(tmp_path, now, {**tuned.as_dict(), "of": now["device"]})
    assert len(json.loads((tmp_path / "tuned.json").read_text())["choices"]) == 2
    assert [kept.find(tmp_path, now)["of"] for now in (one, other)] == ["one", "other"]
    assert kept.find(tmp_path, {"device": "third"}) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 9, "choices": []}', '{"format": 1, "choices": [1]}'])
def test_a_damaged_file_is_explained(text, given, tmp_path):
    (tmp_path / "tuned.json").write_text(text)
    with pytest.raises(jaxpt.CheckpointError, match=r"tuned.json .*; remove it to tune again"):
        jaxpt.tune(given, SPLITS, directory=tmp_path)


@pytest.mark.slow
def test_fit_takes_the_directory_and_a_resumed_script_gives_the_same_bits(tuned, given, folder, monkeypatch):
    no_timing(monkeypatch)
    steps = lambda count, engine, **where: (
        jaxpt.fit(engine, *SPLITS[:2], steps=count, progress=False, **where).state.replicas.params
    )
    again = lambda: jaxpt.tune(given, SPLITS, directory=folder).engine
    steps(10, again(), directory=folder)
    resumed = steps(20, again(), directory=folder)
    jax.tree.map(np.testing.assert_array_equal, resumed, steps(20, again()))
    assert (folder / "tuned.json").exists()


@pytest.mark.slow
def test_a_problem_without_data_has_no_evaluations_to_cut(monkeypatch):
    problem = jaxpt.energy_problem(lambda w: jnp.sum(w**2), lambda key: jnp.zeros(3))
    langevin = lambda h: jaxpt.langevin(0.1, h["temperature"])
    engine = jaxpt.Engine(problem, langevin, jaxpt.Ladder(temperature=[1.0, 2.0]), every=3, replica_axis="map")
    found = jaxpt.tune(engine, seconds=0.01)
    assert ways(found.rows) == [("map", 1), ("vmap", 1), ("unroll", 1)]
    assert sizes(found.rows) == [128]
    assert found.rows[0].given


@pytest.mark.slow
def test_numbers_that_depend_on_the_execution_keep_it(given):
    """Keys of other kinds than threefry: only the evaluations, which draw nothing, are tuned."""
    found = jaxpt.tune(given, SPLITS, seconds=0.01, prng="rbg")
    assert ways(found.rows) == [("auto", 1)]
    assert len(sizes(found.rows)) == 5
    assert found.engine.replica_axis == "auto"
    assert found.note == "replica_axis stays: numbers of rbg keys depend on it"
    assert str(found).endswith(found.note)


@pytest.mark.slow
def test_the_number_of_ladders_may_be_that_of_numpy(given):
    both = jaxpt.tune(given, SPLITS, seconds=0.01, seeds=np.int64(2), prng="rbg")
    assert json.loads(json.dumps(both.as_dict()))


def test_many_replicas_are_not_unrolled_and_seeds_count_as_replicas():
    key, keys = jax.random.key(0), jax.random.split(jax.random.key(0), 3)
    listed = lambda engine, key: [
        (one.replica_axis, one.replicas_at_once) for one in tune._executions(engine, SPLITS, key)[0]
    ]
    many = make_engine(small_problem(), ladder(12))
    assert listed(many, key) == [("vmap", 1), ("map", 1), ("map", 2), ("map", 4), ("map", 8)]
    few = make_engine(small_problem())
    assert listed(few, keys) == [("auto", 1), ("vmap", 1), ("map", 1), ("map", 2)]
    fixed = {"dropout_rate": 0.1}
    one = make_engine(small_problem(), jaxpt.Ladder(learning_rate=[0.1]), rule=jaxpt.Independent(), fixed=fixed)
    assert listed(one, key) == [("unroll", 1), ("vmap", 1)]
    looped = make_engine(small_problem(), ladder(12), replica_axis="map", replicas_at_once=3)
    assert listed(looped, key)[0] == ("map", 3)


def test_sizes_that_cut_the_splits_alike_are_one_candidate():
    listed = lambda data, **settings: [
        one.evaluation_batch for one in tune._sizes(make_engine(small_problem(), **settings), data)[0]
    ]
    assert listed(SPLITS) == [128, 32], "50 and 40 examples"
    assert listed(SPLITS, probe=8) == [128, 32], "the test split is scored whole"
    assert listed(SPLITS._replace(test=None), probe=8) == [128]
    assert listed(SPLITS, evaluation_batch=1) == [1, 2, 4]


def test_a_loss_that_compares_examples_keeps_the_size_of_its_evaluations():
    def compares(model, batch):
        found = loss(model, batch)
        return found - 2 * found.mean()

    engine = make_engine(jaxpt.nnx_problem(SmallNet, compares))
    engines, notes = tune._sizes(engine, SPLITS)
    assert [one.evaluation_batch for one in engines] == [128]
    assert notes == ["evaluation_batch stays: energy of an example depends on those beside it"]


@pytest.mark.slow
def test_what_does_not_fit_is_listed_and_not_timed(given, monkeypatch):
    check = memory.check

    def small(program, replicas, shared, execution, most, shards):
        most = 1 if execution.replica_axis != "map" else most
        check(program, replicas, shared, execution, most, shards)

    monkeypatch.setattr(memory, "check", small)
    found = jaxpt.tune(given, SPLITS, seconds=0.01)
    refused = [row for row in found.rows if row.refusal]
    assert ways(refused) == [("vmap", 1), ("unroll", 1)]
    assert all(row.rounds == 0 and row.period is None and "does not fit" in row.refusal for row in refused)
    assert found.engine.replica_axis == "map"
    assert found.gain is None
    assert "does not fit" in str(found)
    monkeypatch.setattr(memory, "limit", lambda placed: 1)
    monkeypatch.setattr(memory, "check", check)
    with pytest.raises(MemoryError, match="no way to execute the replicas fits; the run does not fit: vmap over 4"):
        jaxpt.tune(given, SPLITS)


def test_a_device_that_runs_out_of_memory_is_left_as_it_was(given, monkeypatch):
    found = bench.Bench(given, SPLITS, jax.random.key(0))

    def full(self, *args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nMore.")

    with monkeypatch.context() as patched:
        patched.setattr(jaxpt.Engine, "run", full)
        with pytest.raises(MemoryError, match=r"^Out of memory allocating 9 bytes.$"):
            found.training(given)
    assert found.training(given).turn() > 0


def test_the_periods_that_are_timed_are_short(given):
    long = dataclasses.replace(given, every=1000)
    short = bench._shortened(long, SPLITS)
    assert (short.every, short.probe) == (5, 8)
    assert bench._shortened(dataclasses.replace(given, every=2, probe=3), SPLITS).probe == 3


ON_TWO = """
import json
import jax
import jaxpt
from jaxpt.studies import bench
from tests.conftest import examples, make_engine, small_problem

jaxpt.use_all_cores(2)
bench._TRAINING = bench._EVALUATION = 0.001
cut = jaxpt.placement.shard_map
for placed, seeds in ((cut(jax.devices()), None), (jaxpt.placement.pmap(), None), (cut(jax.devices(), seeds=2), 2)):
    engine = make_engine(small_problem(), placement=placed)
    found = jaxpt.tune(engine, examples(), seconds=0.01, seeds=seeds)
    assert found.engine.placement is placed
    print(json.dumps([found.device, [[row.replica_axis, row.replicas_at_once, row.rounds] for row in found.rows]]))
"""


@pytest.mark.slow
def test_several_devices():
    done = subprocess.run([sys.executable, "-c", ON_TWO], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(device.startswith("2 x cpu") and all(row[2] for row in rows) for device, rows in found)
    two_each = [["vmap", 1], ["unroll", 1], ["map", 1]]
    assert [[row[:2] for row in rows[:3]] for _, rows in found[:2]] == [two_each, two_each]
    whole = [["auto", 1], ["vmap", 1], ["unroll", 1], ["map", 1], ["map", 2]]
    assert [row[:2] for row in found[2][1][:5]] == whole, "a ladder on each device"


REFUSED = {
    "engine must be a jaxpt.Engine": {"engine": 3},
    "seconds must be positive": {"seconds": 0},
    "seeds must be the number of ladders": {"seeds": 0},
    "prng must be one of": {"prng": "mt"},
    "data.train is a stream": {"data": jaxpt.Data(iter([SPLITS.train]), SPLITS.valid)},
    "the validation split is empty or missing": {"data": jaxpt.Data(SPLITS.train)},
    "looks like a URL": {"directory": "gs://bucket/run"},
}


@pytest.mark.parametrize("said", REFUSED)
def test_mistakes_are_explained(said, given):
    arguments = {"engine": given, "data": SPLITS, **REFUSED[said]}
    with pytest.raises(ValueError, match=said):
        jaxpt.tune(arguments.pop("engine"), arguments.pop("data"), **arguments)


def test_several_processes_and_devices_that_only_compile_are_refused(given, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(jax, "process_count", lambda: 2)
        engine = dataclasses.replace(given, placement=jaxpt.placement.single())
        with pytest.raises(ValueError, match="but there are 2, which might choose differently"):
            jaxpt.tune(engine, SPLITS)
    monkeypatch.setattr(jaxpt.placement, "_only_compiles", lambda device: True)
    engine = dataclasses.replace(given, placement=jaxpt.placement.single(jax.devices()[0]))
    with pytest.raises(ValueError, match="nothing runs on cpu"):
        jaxpt.tune(engine, SPLITS)


class Clock:
    """Time that passes only while a candidate takes its turn."""

    def __init__(self):
        self.now, self.turns = 0.0, []

    def turn(self, name, seconds):
        lengths = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def take():
            self.turns.append(name)
            took = next(lengths)
            self.now += 10 * took
            return Lap(took, 0.0)

        return take

    def race(self, seconds, **candidates):
        turns = {name: self.turn(name, times) for name, times in candidates.items()}
        return race.race(turns, 1, seconds, lambda: self.now)


def test_slow_candidates_leave_and_the_time_is_kept():
    clock = Clock()
    laps = clock.race(160.0, slow=[2.5], best=[1.0], near=[1.1], later=[1.3])
    assert [len(laps[name]) for name in ("slow", "later")] == [1, 3]
    assert len(laps["best"]) == len(laps["near"]) == 4
    assert 120 < clock.now <= 160
    assert clock.turns[:7] == ["slow", "best", "near", "later", "near", "later", "best"], "the first one changes"
    assert race.fastest(laps, 1) == "best"


def test_the_first_round_is_run_to_its_end_and_a_race_of_one_is_short():
    clock = Clock()
    laps = clock.race(0.1, a=[1.0], b=[1.2])
    assert [len(found) for found in laps.values()] == [1, 1]
    assert len(clock.race(1e6, a=[1.0], b=[9.0])["a"]) == 1, "one is left"
    assert len(clock.race(1e6, a=[1.0], b=[1.0])["a"]) == 50


def test_one_slow_turn_does_not_decide():
    laps = Clock().race(1e6, a=[1.4, 1.0], b=[1.2])
    assert race.fastest(laps, 1) == "a"
    assert race.median([Lap(1.0, 5.0), Lap(3.0, 4.0), Lap(2.0, 9.0)]) == Lap(2.0, 5.0)
    assert Lap(2.0, 5.0).period(10) == 25.0
