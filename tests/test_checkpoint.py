import json
import shutil
import signal
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
import jaxpt.saving.checkpoint
from jaxpt.core import tree
from tests.conftest import make_engine, small_problem

RULES = {
    "tuned": {"rule": jaxpt.Tempering("auto", "deo", adapt_ladder=True, window=2), "burn_in": 20},
    "copies": {"rule": jaxpt.PBT(), "probe": 20},
}


def assert_same(one, other):
    """To the bit, types and key data included."""

    def same(a, b):
        a, b = (np.asarray(tree.plain(leaf)) for leaf in (a, b))
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)

    jax.tree.map(same, one, other)


def assert_same_result(one, other):
    assert_same((one.state, one.trace), (other.state, other.trace))
    assert one.replica_images == other.replica_images
    assert_same((one.valid, one.test), (other.valid, other.test))


BOWL = jaxpt.energy_problem(lambda w: jnp.sum(w**2), lambda key: jax.random.normal(key, (3,)))
"""One for all, as its optimiser is: what one test has traced and compiled the others of a process have, too."""


def langevin(h):
    return jaxpt.langevin(0.01, h["temperature"])


def bowl(every=2, rungs=(1.0, 2.0, 4.0), optimizer=langevin, **settings):
    """Langevin dynamics in a quadratic bowl: the least that trains, exchanges and is saved."""
    return jaxpt.Engine(BOWL, optimizer, jaxpt.Ladder(temperature=rungs), every=every, **settings)


@pytest.fixture
def saved(tmp_path):
    """A run directory with checkpoints of steps 4 (the best or not) to 12."""
    jaxpt.fit(bowl(), steps=12, directory=tmp_path / "run", save_every=2, progress=False)
    return tmp_path / "run"


def go_on(directory, steps=16, engine=None, **options):
    return jaxpt.fit(engine or bowl(), steps=steps, directory=directory, progress=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize("settings", RULES.values(), ids=RULES)
def test_a_run_in_pieces_equals_one_in_one_piece(settings, data, tmp_path):
    """Steps that do not fill a period are done over when the run goes on: their end is no end of a period."""
    options = {"test": data.test, "seeds": [3, 5], "progress": False}
    engine = make_engine(small_problem(), **settings)
    whole = jaxpt.fit(engine, data.train, data.valid, steps=63, **options)
    for steps in (23, 23, 43, 63, 63):
        found = jaxpt.fit(engine, data.train, data.valid, steps=steps, directory=tmp_path, save_every=3, **options)
        assert found.state.step == steps
    assert_same_result(found, whole)


@pytest.mark.slow
def test_one_replica_goes_on(tmp_path):
    """It has no pairs, and arrays without elements."""
    alone = bowl(rungs=(1.0,), rule=jaxpt.Independent())
    go_on(tmp_path, steps=8, engine=alone)
    assert_same_result(go_on(tmp_path, engine=alone), jaxpt.fit(alone, steps=16, progress=False))


@pytest.mark.slow
def test_a_stream_goes_on_where_it_was(data, tmp_path):
    engine = make_engine(small_problem(), rule=jaxpt.Tempering(3.0))
    stream = lambda: ({name: leaf[i % 80 :][:16] for name, leaf in data.train.items()} for i in range(60))
    whole = jaxpt.fit(engine, stream(), data.valid, steps=25, progress=False)
    for steps in (10, 25):
        found = jaxpt.fit(engine, stream(), data.valid, steps=steps, directory=tmp_path, progress=False)
    assert_same_result(found, whole)


def test_the_latest_two_and_the_best_are_kept(tmp_path):
    # Gradient ascent: the first checkpoint is the best.
    climbing = bowl(optimizer=lambda h: optax.sgd(-0.01 * h["temperature"]), rule=jaxpt.Independent())
    jaxpt.fit(climbing, steps=20, directory=tmp_path, save_every=2, progress=False)
    kept = {"4", "16", "20"}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == kept
    assert {path.stem for path in (tmp_path / "checksums").iterdir()} == kept


@pytest.mark.slow
def test_what_was_not_finished_is_cleared_away(saved):
    """A process killed before the checksums were written, or while Orbax wrote."""
    (saved / "checksums" / "12.json").unlink()
    (saved / "checkpoints" / "14.orbax-checkpoint-tmp").mkdir()
    found = go_on(saved)
    assert_same_result(found, jaxpt.fit(bowl(), steps=16, progress=False))
    assert {path.name for path in (saved / "checkpoints").iterdir()} >= {"8", "16"}
    assert not list(saved.glob("checkpoints/*tmp*"))


def test_what_was_being_removed_is_cleared_away(saved):
    """A process killed while Orbax removed an earlier checkpoint."""
    earlier = min(int(path.stem) for path in (saved / "checksums").iterdir())
    next(path for path in (saved / "checkpoints" / str(earlier)).rglob("*") if path.is_file()).unlink()
    assert_same_result(go_on(saved), jaxpt.fit(bowl(), steps=16, progress=False))
    assert not (saved / "checkpoints" / str(earlier)).exists()
    assert not (saved / "checksums" / f"{earlier}.json").exists()


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_damage_is_found_and_said_and_the_earlier_checkpoint_stays(harm, saved):
    """Any file, any byte: here the middle one of each kind of file."""
    names = [file.relative_to(saved) for file in sorted(saved.glob("checkpoints/12/**/*")) if file.is_file()]
    for name in names[:: max(1, len(names) // 6)]:
        whole = (saved / name).read_bytes()
        if harm == "remove":
            (saved / name).unlink()
        elif harm == "truncate":
            (saved / name).write_bytes(whole[: len(whole) // 2] if whole else b"x")
        else:
            middle = len(whole) // 2
            (saved / name).write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :] or b"x")
        with pytest.raises(jaxpt.CheckpointError, match=r"step 12 .* is damaged: 12/.*go on from step 8"):
            go_on(saved)
        (saved / name).write_bytes(whole)
    shutil.rmtree(saved / "checkpoints" / "12")  # as the message says
    (saved / "checksums" / "12.json").unlink()
    assert_same_result(go_on(saved), jaxpt.fit(bowl(), steps=16, progress=False))


def test_other_steps_of_a_run_with_shares_are_explained(tmp_path):
    engine = bowl(cooldown=jaxpt.Cooldown(0.5, names="temperature"))
    jaxpt.fit(engine, steps=4, directory=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"cooldown / start: 2 -> 4.* is a share of the run changes with `steps`"):
        jaxpt.fit(engine, steps=8, directory=tmp_path, progress=False)


def test_settings_that_change_the_mathematics_are_refused_with_what_differs(saved):
    other = bowl(every=3, rungs=(1.0, 2.0, 5.0), rule=jaxpt.Tempering(2.0))
    with pytest.raises(ValueError, match="other settings") as refused:
        go_on(saved, engine=other, seed=1, steps=18)
    for what in (
        "engine / every: 2 -> 3",
        "ladders / temperature / temperature: [1.0, 2.0, 4.0] -> [1.0, 2.0, 5.0]",
        "rule / C: scaled -> 2.0",
        "seed: 0 -> 1",
    ):
        assert what in str(refused.value)
    assert "share of the run" not in str(refused.value)
    with pytest.raises(ValueError, match="the rule's exchange: "):
        go_on(saved, engine=bowl(rule=jaxpt.Tempering(1.0, lambda key, turn, rungs: jnp.arange(rungs - 1) == 0)))
    with pytest.raises(ValueError, match="a training step of problem, optimizer and schedule: "):
        go_on(saved, engine=bowl(optimizer=lambda h: jaxpt.langevin(0.02, h["temperature"])))
    with pytest.raises(ValueError, match="holds a run of 12 steps already"):
        go_on(saved, steps=6)
    assert_same_result(go_on(saved), jaxpt.fit(bowl(), steps=16, progress=False))


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [jax.jit, lambda f: f, lambda f: jax.jit(jax.checkpoint(f))])
def test_a_constant_of_the_loss_is_seen_wherever_it_hides(hidden, tmp_path):
    def made(centre):
        loss = hidden(lambda w: jnp.sum((w - centre) ** 2))
        problem = jaxpt.energy_problem(loss, lambda key: jax.random.normal(key, (3,)))
        langevin = lambda h: jaxpt.langevin(0.01, h["temperature"])
        return jaxpt.Engine(problem, langevin, jaxpt.Ladder(temperature=[1.0, 2.0]), every=2)

    go_on(tmp_path, steps=4, engine=made(np.zeros(3, np.float32)))
    with pytest.raises(ValueError, match="evaluation: "):
        go_on(tmp_path, steps=8, engine=made(np.arange(3, dtype=np.float32)))
    go_on(tmp_path, steps=8, engine=made(np.zeros(3, np.float32)))


def test_what_others_keep_there_is_left_alone(tmp_path, saved):
    (tmp_path / "other" / "checkpoints" / "1000").mkdir(parents=True)
    with pytest.raises(jaxpt.CheckpointError, match=r"without checksums \(1000\).*move them away"):
        go_on(tmp_path / "other")
    assert (tmp_path / "other" / "checkpoints" / "1000").exists()
    shutil.rmtree(saved / "checksums")
    with pytest.raises(jaxpt.CheckpointError, match="have lost them"):
        go_on(saved)
    assert len(list((saved / "checkpoints").iterdir())) >= 2


@pytest.mark.slow
def test_a_signal_that_comes_too_late_is_not_lost(tmp_path, monkeypatch):
    """While the last checkpoint is waited for: the run is saved, and the process must still end."""
    waited = jaxpt.saving.checkpoint.Checkpoints.wait

    def wait(self):
        waited(self)
        if self.steps == [4]:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(jaxpt.saving.checkpoint.Checkpoints, "wait", wait)
    with pytest.raises(jaxpt.Interrupted, match="SIGTERM after step 4 of 5"):
        go_on(tmp_path, steps=5)
    monkeypatch.undo()
    assert_same_result(go_on(tmp_path, steps=5), jaxpt.fit(bowl(), steps=5, progress=False))


@pytest.mark.slow
def test_other_data_are_refused(data, tmp_path):
    engine = make_engine(small_problem(), rule=jaxpt.Independent())
    jaxpt.fit(engine, data.train, data.valid, steps=5, directory=tmp_path, progress=False)
    changed = {**data.train, "x": np.where(np.arange(100)[:, None] == 7, 0, data.train["x"])}
    with pytest.raises(ValueError, match=r"data / train/x: float32\[100,6\] \w+ -> float32\[100,6\] \w+"):
        jaxpt.fit(engine, changed, data.valid, steps=10, directory=tmp_path, progress=False)


@pytest.mark.slow
def test_other_devices_and_another_execution_are_welcome(saved):
    found = go_on(saved, engine=bowl(replica_axis="map", placement=jaxpt.placement.shard_map(jax.devices()[:1])))
    assert_same_result(found, jaxpt.fit(bowl(replica_axis="map"), steps=16, progress=False))


def test_another_release_and_broken_settings(saved):
    file = saved / "settings.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({**described, "format": 1}))
    with pytest.raises(jaxpt.CheckpointError, match="a run in format 1, but this release reads and writes format 4"):
        go_on(saved)
    for text in ("", "{", "[]", "{}", '{"format": 4}'):
        file.write_text(text)
        with pytest.raises(jaxpt.CheckpointError, match=r"settings.json is damaged"):
            go_on(saved)
    file.unlink()
    with pytest.raises(jaxpt.CheckpointError, match=r"settings.json is missing"):
        go_on(saved)
    file.write_text(json.dumps({**described, "versions": {"jax": "0.1"}, "programs": {}}))
    with pytest.warns(UserWarning, match=r"began with \{'jax': '0.1'\}") as warned:
        go_on(saved)
    assert warned[0].filename == __file__
    assert json.loads(file.read_text()) == described, "from now on programs can be compared again"


def test_a_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(jaxpt.CheckpointError, match="cannot hold checkpoints; give another directory: "):
        go_on(tmp_path / "file")


@pytest.mark.parametrize("options", [{"save_every": 0}, {"save_every": 1.5}, {"save_minutes": 0}])
def test_how_often_is_checked(options, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        go_on(tmp_path, **options)


def test_nothing_is_unpickled_and_no_secret_is_kept(saved, monkeypatch):
    """What is loaded cannot run code; what is written holds nothing of the environment."""
    seen = []
    watching = True
    sys.addaudithook(lambda event, args: seen.append(args) if watching and event == "pickle.find_class" else None)
    monkeypatch.setenv("A_SECRET", "xyzzy-plugh")
    go_on(saved)
    watching = False
    assert not seen
    text = b"".join(file.read_bytes() for file in saved.rglob("*") if file.is_file())
    assert b"xyzzy-plugh" not in text


def test_warnings_of_libraries_are_not_the_users(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The tests' own cache: another worker may be writing, or a killed one have written half.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
        go_on(saved)


def test_a_resumed_run_is_compiled_once(tmp_path, caplog):
    engine = bowl(placement=jaxpt.placement.single())
    go_on(tmp_path, 4, engine)
    jax.clear_caches()
    jax.config.update("jax_log_compiles", True)
    try:
        with caplog.at_level("WARNING"):
            go_on(tmp_path, 8, engine)
    finally:
        jax.config.update("jax_log_compiles", False)
    assert sum("Finished XLA compilation of jit(_periods)" in line for line in caplog.messages) == 1
