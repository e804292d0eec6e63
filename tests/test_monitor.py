import itertools
import sys
import time

import jax
import numpy as np
import pytest

import jaxpt
from jaxpt.training.monitor import BestEnergy
from tests.test_checkpoint import assert_same, assert_same_result, bowl

ENGINE = bowl()  # one for all, so that it is compiled once


@pytest.mark.slow
def test_callbacks_see_every_period_once_and_the_state_itself():
    seen, kept, live = [], [], []

    def look(status):
        seen.append(status)
        live.append(status.state.replicas.params)
        kept.append(status.copied_state())

    both = [look, lambda status: None]
    result = jaxpt.fit(ENGINE, steps=41, seeds=[0, 1], callbacks=both, progress=False)
    assert len(seen) > 2
    assert np.concatenate([s.trace.step for s in seen]).tolist() == result.trace.step.tolist()
    assert [s.step for s in seen] == [s.trace.step[-1] for s in seen]
    assert {s.steps for s in seen} == {41}
    assert all(a.seconds < b.seconds for a, b in itertools.pairwise(seen))
    np.testing.assert_array_equal(seen[-1].lowest, result.trace.valid["energy"].min((0, 2)))
    assert live[0].is_deleted(), "it was no copy: the next dispatch wrote over it"
    for status, copy in zip(seen, kept, strict=True):
        energy = (np.asarray(copy.replicas.params) ** 2).sum(-1)
        np.testing.assert_allclose(energy, status.trace.valid["energy"][-1], rtol=1e-5)
    assert result.stopped is None


@pytest.mark.slow
def test_before_a_callback_raises_the_work_is_saved(tmp_path):
    def careless(status):
        if status.step >= 20:
            raise KeyError("typo")

    options = {"steps": 40, "progress": False}
    with pytest.raises(KeyError, match="typo"):
        jaxpt.fit(ENGINE, **options, directory=tmp_path, callbacks=[careless])
    saved = max(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir())
    assert saved >= 20
    resumed, whole = jaxpt.fit(ENGINE, **options, directory=tmp_path), jaxpt.fit(ENGINE, **options)
    np.testing.assert_array_equal(resumed.trace.valid["energy"], whole.trace.valid["energy"])


@pytest.mark.slow
def test_a_callback_ends_the_run_and_the_same_call_goes_on(tmp_path):
    options = {"steps": 41, "progress": False}
    whole = jaxpt.fit(ENGINE, **options)
    cut = jaxpt.fit(ENGINE, **options, directory=tmp_path, callbacks=[lambda s: s.step >= 10, lambda s: False])
    assert cut.stopped == "callback"
    assert 10 <= cut.state.step < 41
    assert cut.best().valid["energy"] == cut.trace.valid["energy"][-1].min()
    assert_same_result(jaxpt.fit(ENGINE, **options, directory=tmp_path), whole)


def patient_end(trace, patience):
    """The period at which patience has come to its end, found one period after the other."""
    ends = []
    for energy in np.moveaxis(np.atleast_3d(trace.valid["energy"]), 1, 0):
        lowest, stale = np.inf, 0
        staleness = []
        for row in energy.min(-1):
            lowest, stale = (row, 0) if row < lowest else (lowest, stale + 1)
            staleness.append(stale)
        ends.append(staleness)
    return int(np.argmax(np.min(ends, 0) >= patience)) + 1


@pytest.mark.slow
def test_patience_ends_every_run_at_the_same_period(tmp_path):
    options = {"steps": 801, "seeds": [0, 1], "progress": False}
    whole = jaxpt.fit(ENGINE, **options)
    end = patient_end(whole.trace, 30)
    assert 30 < end < 200
    once = jaxpt.fit(ENGINE, **options, patience=30)
    # Cut off just before its end by another callback's wish; resumed; and once more when it has ended already.
    again = {**options, "directory": tmp_path, "save_every": 25}
    jaxpt.fit(ENGINE, **again, patience=30, callbacks=[lambda s: s.step >= 2 * end - 10])
    runs = {"once": once, **{how: jaxpt.fit(ENGINE, **again, patience=30) for how in ("resumed", "at its end")}}
    for how, run in runs.items():
        assert run.stopped == "patience", how
        assert len(run.trace.step) == end, how
        assert_same(run.trace, jax.tree.map(lambda leaf: leaf[:end], whole.trace))
        assert_same(run.state, once.state)
    longer = jaxpt.fit(ENGINE, **again, patience=60)
    assert len(longer.trace.step) == patient_end(whole.trace, 60) > end, "more patience goes on"


def test_what_is_not_finite_is_no_improvement():
    lowest = BestEnergy()
    nothing = np.array([[np.nan, np.inf], [3.0, np.nan], [4.0, 2.0], [np.nan, np.nan], [2.0, 2.0]])
    rows = [jaxpt.Trace(None, None, {"energy": row[None]}, {}, {}, {}, None) for row in nothing]
    stale = []
    for row in rows:
        lowest.look(row)
        stale.append(lowest.stale)
    assert stale == [1, 0, 0, 1, 2]
    at_once = BestEnergy()
    at_once.look(jaxpt.Trace(None, None, {"energy": nothing}, {}, {}, {}, None))
    assert at_once.stale == 2
    lowest.look(rows[0], counts=False)
    assert lowest.stale == 2
    assert lowest.energy == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience must be a number of periods"),
        ({"patience": 2.5}, "patience must be a number of periods"),
        ({"callbacks": [3]}, "callbacks must be a list of functions"),
        ({"callbacks": print}, "callbacks must be a list of functions"),
        ({"recorders": [jaxpt.JsonLines()]}, "give fit\\(directory="),
    ],
)
def test_wrong_arguments_are_said(options, message):
    with pytest.raises(ValueError, match=message):
        jaxpt.fit(ENGINE, steps=4, **options)


def test_a_wish_to_end_at_the_last_step_ends_nothing(tmp_path):
    done = jaxpt.fit(bowl(), steps=8, callbacks=[lambda status: status.step >= 8], progress=False)
    assert int(done.trace.step[-1]) == 8
    assert done.stopped is None


def test_short_periods_share_dispatches():
    looks = []
    jaxpt.fit(
        ENGINE,
        steps=2000 * ENGINE.every,
        callbacks=[lambda status: looks.append(len(status.trace.step))],
        progress=False,
    )
    assert sum(looks) == 2000
    assert 64 < max(looks) <= 1024


def test_what_callbacks_take_makes_no_dispatch_longer(monkeypatch):
    trained = []
    monkeypatch.setattr(sys.modules["jaxpt.training.loop"], "_seconds", lambda seconds: trained.append(seconds) or 0.0)
    jaxpt.fit(ENGINE, steps=5 * ENGINE.every, callbacks=[lambda status: time.sleep(0.5)], progress=False)
    assert len(trained) == 5
    assert 0 < trained[0] < trained[-1] < 1.5
