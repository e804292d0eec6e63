import json
import struct
import sys

import jax
import numpy as np
import pytest

import jaxpt
from tests.test_checkpoint import bowl
from tests.test_checkpoint import go_on as fit_on

ENGINE = bowl()  # one for all, so that it is compiled once


def go_on(directory, **options):
    return fit_on(directory, engine=ENGINE, **options)


def lines(path):
    """Strict JSON: NaN and Infinity are refused."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def assert_are(written, trace):
    """Every line says what its row does, to the bit."""
    assert [line["step"] for line in written] == trace.step.tolist()
    assert [line["period"] for line in written] == list(range(len(written)))
    for row, line in enumerate(written):
        for name in ("loss", "valid", "test", "rung", "hyper"):
            expected = jax.tree.map(lambda leaf, row=row: leaf[row].tolist(), getattr(trace, name))
            assert line[name] == expected
        for name in ("attempted", "accepted", "C"):
            assert line[name] == getattr(trace.info, name)[row].tolist()
        assert line["ladder"] == "temperature"


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [None, [3, 5]])
def test_a_line_per_period_says_what_the_trace_does(seeds, tmp_path):
    result = go_on(tmp_path, steps=21, seeds=seeds)
    written = lines(tmp_path / "periods.jsonl")
    assert_are(written, result.trace)
    seconds = [line["seconds"] for line in written]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)
    assert seconds[-1] <= result.seconds
    # The period of one step is not in the checkpoint: another one takes its place.
    assert_are(lines(tmp_path / "periods.jsonl"), go_on(tmp_path, steps=21, seeds=seeds).trace)


@pytest.mark.parametrize("harm", ["later ones and half a line", "lines lost", "no file", "noise"])
def test_a_resumed_run_has_the_lines_of_its_trace(harm, tmp_path):
    go_on(tmp_path, steps=12)
    file = tmp_path / "periods.jsonl"
    text = file.read_text()
    first = text.splitlines(keepends=True)
    harmed = {
        "later ones and half a line": text + first[-1].replace('"period": 5', '"period": 6') + first[-1][:20],
        "lines lost": "".join(first[:2]) + first[2][:-9],
        "noise": "".join(first[:3]) + "\0\0\0\n" + "".join(first[3:]),
    }
    file.unlink() if harm == "no file" else file.write_text(harmed[harm])
    result = go_on(tmp_path, steps=16)
    written = lines(file)
    assert_are(written, result.trace)
    known = {"lines lost": 2, "no file": 0, "noise": 3}.get(harm, 6)
    assert [line["seconds"] is None for line in written] == [False] * known + [True] * (6 - known) + [False] * 2
    assert file.read_text().startswith("".join(first[:known]))


def begun(recorder, engine):
    recorder.open(jaxpt.Run(engine, 4, None, None))
    return recorder


def test_what_is_no_number_is_null(tmp_path):
    trace = jaxpt.fit(ENGINE, steps=4, progress=False).trace
    trace.valid["energy"][1] = [1.5, np.nan, np.inf]
    recorder = begun(jaxpt.JsonLines(tmp_path / "periods.jsonl"), ENGINE)
    recorder.add(trace, (0.0, 1.0), 0)
    recorder.close()
    assert lines(tmp_path / "periods.jsonl")[1]["valid"]["energy"] == [1.5, None, None]


def test_a_file_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / "periods.jsonl").mkdir()
    with pytest.warns(UserWarning, match=r"periods.jsonl cannot be written, and the run goes on without: Is a dir"):
        assert go_on(tmp_path, steps=8).state.step == 8
    (tmp_path / "periods.jsonl").rmdir()
    later = go_on(tmp_path, steps=12)
    assert_are(lines(tmp_path / "periods.jsonl"), later.trace)


class Told(jaxpt.Recorder):
    """Notes how a run ends."""

    def open(self, run):
        self.run, self.notes = run, []

    def add(self, trace, seconds, images):
        pass

    def fail(self, error):
        self.notes.append(type(error))

    def close(self):
        self.notes.append("closed")


@pytest.mark.slow
def test_a_recorder_is_told_the_seeds_and_the_error_that_ends_a_run():
    recorder = Told()
    jaxpt.fit(ENGINE, steps=4, recorders=[recorder], seed=7, progress=False)
    assert (recorder.run.seed, recorder.run.seeds, recorder.notes) == (7, None, ["closed"])

    def end(status):
        raise KeyError("ended")

    with pytest.raises(KeyError, match="ended"):
        jaxpt.fit(ENGINE, steps=4, recorders=[recorder], seeds=range(3, 5), callbacks=[end], progress=False)
    assert (recorder.run.seeds, recorder.notes) == ((3, 4), [KeyError, "closed"])


def events(directory):
    """{tag: {step: value}} as TensorBoard shows them: a session that starts takes back what lies behind its start."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found = {}
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                found = {tag: {s: v for s, v in points.items() if s < event.step} for tag, points in found.items()}
            for value in event.summary.value:
                assert event.step not in found.setdefault(value.tag, {}), "a step is written once"
                found[value.tag][event.step] = value.simple_value
    return found


@pytest.mark.slow
def test_scalars_say_what_the_trace_does_and_each_step_once(tmp_path):
    pytest.importorskip("tensorboardX")
    options = {"seeds": [0, 1], "recorders": [jaxpt.TensorBoard()]}
    go_on(tmp_path, steps=13, **options)  # the last step fills no period, and is taken back
    result = go_on(tmp_path, steps=21, **options)
    found, trace = events(tmp_path / "tensorboard"), result.trace
    energy = trace.valid["energy"]
    rows = dict(zip(trace.step.tolist(), range(len(trace.step)), strict=True))

    def assert_shows(tag, expected):
        assert list(found[tag]) == [step for step, row in rows.items() if np.isfinite(expected[row])]
        for step, value in found[tag].items():
            np.testing.assert_allclose(value, expected[rows[step]], rtol=1e-6)

    assert_shows("validation/energy, best", energy.min(-1).mean(-1))
    assert_shows("validation/energy, mean", energy.mean((1, 2)))
    assert_shows("training/loss, mean", trace.loss.mean((1, 2)))
    assert_shows("temperature/replica 01", trace.hyper["temperature"][:, 0, 1])
    offered = trace.info.attempted.sum((1, 2))
    with np.errstate(invalid="ignore"):
        assert_shows("exchange/temperature, accepted", trace.info.accepted.sum((1, 2)) / offered)
    best = np.take_along_axis(trace.hyper["temperature"], energy.argmin(-1)[..., None], -1)[..., 0]
    assert_shows("temperature/best", best.mean(-1))
    assert len(found) < 12


def test_scalars_leave_out_what_is_no_number_and_many_replicas(tmp_path):
    pytest.importorskip("tensorboardX")
    engine = bowl(rungs=np.geomspace(1, 4, 20))
    trace = jaxpt.fit(engine, steps=4, progress=False).trace
    trace.valid["energy"][0] = np.nan
    trace.valid["energy"][1, 3] = np.inf
    recorder = begun(jaxpt.TensorBoard(tmp_path), engine)
    recorder.add(trace, (0.0, 1.0), 7)
    recorder.close()
    found = events(tmp_path)
    assert list(found["validation/energy, best"]) == [4]
    finite = np.delete(trace.valid["energy"][1], 3)
    np.testing.assert_allclose(found["validation/energy, mean"][4], finite.mean(), rtol=1e-6)
    assert found["speed/replica images per second"] == {4: 7.0}
    assert sum(tag.startswith("temperature/replica") for tag in found) == 16


def test_a_dispatch_of_many_periods_has_few_points(tmp_path):
    pytest.importorskip("tensorboardX")
    trace = jaxpt.fit(ENGINE, steps=300, progress=False).trace
    recorder = begun(jaxpt.TensorBoard(tmp_path), ENGINE)
    recorder.add(trace, (0.0, 1.0), 0)
    recorder.close()
    found = events(tmp_path)["training/loss, mean"]
    assert list(found) == list(range(6, 301, 6))
    np.testing.assert_allclose(found[300], trace.loss[-1].mean(), rtol=1e-6)


def test_a_missing_package_is_reported_before_the_first_step(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboardX"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ModuleNotFoundError, match=r'TensorBoard\(\) needs tensorboardX.*"jaxpt\[tensorboard\]"'):
        jaxpt.TensorBoard()
