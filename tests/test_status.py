"""`python -m jaxpt DIRECTORY`: it reads a run's directory, and leaves it as it is."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxpt
from jaxpt.diagnostics.diagnosis import diagnosis
from jaxpt.results.command import main
from jaxpt.results.directory import look
from jaxpt.results.status import read_trace
from jaxpt.saving import lock
from jaxpt.saving.settings import FORMAT
from tests.test_checkpoint import bowl

ENGINE = bowl()


def files(directory):
    """{path: (bytes, time of change)} of every file, and the times of the folders."""
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in [directory, *directory.rglob("*")]
    }


def shown(directory, capsys, *options, code=0):
    """What the command writes; every file is as it was."""
    before = files(directory)
    assert main([str(directory), *options]) == code
    assert files(directory) == before
    written = capsys.readouterr().out
    if "--json" in options:
        return json.loads(written)
    assert max(map(len, written.splitlines())) <= 80
    return re.sub(r"\n  ", " ", written)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "mine"
    return directory, jaxpt.fit(ENGINE, steps=12, directory=directory, save_every=3, progress=False)


def test_a_finished_run(finished, capsys):
    directory, result = finished
    found = shown(directory, capsys, "--json")
    trace, energy = result.trace, result.trace.valid["energy"]
    assert (found["state"], found["step"], found["steps"], found["periods"]) == ("finished", 12, 12, 6)
    (best,) = found["best"]
    assert best["replica"] == energy[-1].argmin()
    assert np.float32(best["valid"]["energy"]) == energy[-1].min()
    assert np.float32(best["hyper"]["temperature"]) == trace.hyper["temperature"][-1, best["replica"]]
    (lowest,) = found["lowest"]
    assert (lowest["step"], lowest["replica"]) == (trace.step[energy.min(-1).argmin()], energy.min(0).argmin())
    assert [one["step"] for one in found["checkpoints"]][-1] == 12
    assert found["settings"] == json.loads((directory / "settings.json").read_text())
    assert found["lock"] is None
    assert found["troubles"] == []
    text = shown(directory, capsys)
    assert "mine: finished\nstep 12 of 12 (100%), 6 periods, " in text
    assert "3 replicas, every 2 steps, batches of 128\nrule Tempering(C=scaled, " in text
    assert f"best now: replica {best['replica']}, on rung {best['rung']['temperature']}" in text
    assert "ladder temperature 1 to 4\n" in text
    assert "left" not in text
    assert "trouble" not in text


@pytest.mark.slow
def test_a_run_that_goes_on_as_another_process_sees_it(tmp_path):
    """The command asks for no lock that the run holds, and needs no accelerator."""
    told = []

    def ask(status):
        if status.step >= 6 and not told:
            command = [sys.executable, "-m", "jaxpt", str(tmp_path)]
            root = {"PYTHONPATH": str(Path(jaxpt.__file__).parents[1])}
            told.append(subprocess.run(command, capture_output=True, text=True, env=os.environ | root))

    jaxpt.fit(ENGINE, steps=40, directory=tmp_path, callbacks=[ask], keep_best=True, progress=False)
    assert told[0].returncode == 0, told[0].stderr
    assert f"running; locked by process {os.getpid()} on" in re.sub(r"\s+", " ", told[0].stdout)
    assert re.search(r"step 6 of 40 \(15%\), 3 periods, .* of training, about .* left", told[0].stdout)


def test_an_interrupted_run(tmp_path, capsys):
    stop = lambda status: os.kill(os.getpid(), signal.SIGTERM) if status.step == 6 else None
    with pytest.raises(jaxpt.Interrupted):
        jaxpt.fit(ENGINE, steps=12, directory=tmp_path, callbacks=[stop], keep_best=True, progress=False)
    text = shown(tmp_path, capsys)
    assert "not running; the same call resumes it at step 6\nstep 6 of 12 (50%), 3 periods" in text
    assert re.search(r"of training, about .* left", text)
    assert shown(tmp_path, capsys, "--json")["state"] == "stopped"


@pytest.mark.slow
def test_seeds_and_the_report(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    directory, page = tmp_path / "run", tmp_path / "pages" / "report.html"
    result = jaxpt.fit(bowl(cooldown=jaxpt.Cooldown(0.3, names="temperature")), seeds=[3, 5], steps=20,
                       directory=directory, progress=False)  # fmt: skip
    found = shown(directory, capsys, "--json", "--report", str(page), "--title", "mine")
    energy = result.trace.valid["energy"]
    assert [best["replica"] for best in found["best"]] == energy[-1].argmin(-1).tolist()
    assert [best["seed"] for best in found["lowest"]] == [0, 1]
    assert [best["valid"]["energy"] for best in found["lowest"]] == pytest.approx(energy.min((0, 2)).tolist())
    text = shown(directory, capsys)
    assert "3 replicas, 2 seeds, every 2 steps" in text
    assert "cooldown: start 14, steps 6" in text
    written = page.read_text()
    assert written.count("<img") >= 6
    assert "<title>mine</title>" in written
    assert "ladder temperature: 3 rungs" in written
    assert "of seed 0 came to be" in written


def test_the_periods_of_a_directory_are_its_trace(finished):
    directory, result = finished
    trace = read_trace(look(directory))
    for name in ("step", "loss", "valid", "test", "rung", "hyper"):
        np.testing.assert_equal(getattr(trace, name), getattr(result.trace, name))
    for name in ("ladder", "attempted", "accepted", "C"):
        np.testing.assert_array_equal(getattr(trace.info, name), getattr(result.trace.info, name))
    assert str(diagnosis(trace)).splitlines()[1:3] == str(diagnosis(result.trace)).splitlines()[1:3], "C, and the rungs"
    assert "strength / spread of the energies" in str(diagnosis(trace))


def test_a_report_of_pbt_follows_the_copies(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    page = tmp_path / "report.html"
    jaxpt.fit(bowl(rule=jaxpt.PBT()), steps=20, directory=tmp_path / "run", progress=False)
    shown(tmp_path / "run", capsys, "--report", str(page))
    written = page.read_text()
    assert "No swap was offered" in written
    assert "Energy against rung" not in written


def test_directories_without_a_run(tmp_path, capsys):
    assert "holds no run: it is empty" in shown(tmp_path, capsys, code=1)
    (tmp_path / "mine.txt").write_text("text")
    assert "holds no run: it has no settings.json" in shown(tmp_path, capsys, code=1)
    assert shown(tmp_path, capsys, "--json", code=1)["run"] is False
    assert main([str(tmp_path / "none")]) == 2
    assert "is not a directory; give the directory that was given to fit" in capsys.readouterr().err
    assert main(["gs://bucket/run"]) == 2
    assert "looks like a URL" in capsys.readouterr().err


def test_a_folder_of_runs_names_them(finished, tmp_path, capsys):
    directory, _ = finished
    for name in ("grid", "cosine grid", "tempering/seeds-0-1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "settings.json").write_bytes((directory / "settings.json").read_bytes())
    (tmp_path / ".vscode").mkdir()
    (tmp_path / ".vscode" / "settings.json").write_text('{"editor.tabSize": 2}')
    assert "there are runs in it: cosine grid, grid, tempering/seeds-0-1\n" in shown(tmp_path, capsys, code=1)
    assert shown(tmp_path, capsys, "--json", code=1)["runs"] == ["cosine grid", "grid", "tempering/seeds-0-1"]
    with pytest.raises(ValueError, match=r"give the directory that was given to fit, or one of .* in it: cosine grid"):
        jaxpt.load_run(ENGINE, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_closed_pipe_is_no_error(finished):
    directory, _ = finished
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from jaxpt.results.command import main; sys.exit(main(sys.argv[1:]))"
    ended = subprocess.run([sys.executable, "-c", code, directory], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_diverged_replicas_are_counted(finished, tmp_path, capsys):
    directory, _ = finished
    shutil.copytree(directory, tmp_path / "run")
    *rows, last = (tmp_path / "run" / "periods.jsonl").read_text().splitlines()
    changed = json.loads(last)
    changed["valid"]["energy"][1] = None
    (tmp_path / "run" / "periods.jsonl").write_text("\n".join([*rows, json.dumps(changed)]) + "\n")
    assert "\n1 of 3 replicas has diverged\n" in shown(tmp_path / "run", capsys)
    assert shown(tmp_path / "run", capsys, "--json")["diverged"] == 1
    assert shown(directory, capsys, "--json")["diverged"] == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('{"editor.tabSize": 2}', "holds no run: settings.json is not that of a run"),
        ('{"seeds": [0, 1, 2], "ladders": {"a": 3}}', "holds no run: settings.json is not that of a run"),
        ("[1, 2]", "holds no run: settings.json is damaged"),
        ('{"a": ', "holds no run: settings.json cannot be read"),
    ],
)
def test_settings_of_something_else(settings, says, tmp_path, capsys):
    (tmp_path / "settings.json").write_text(settings)
    assert says in shown(tmp_path, capsys, code=1)


@pytest.mark.parametrize("part", [{"seeds": [0, 1]}, {"ladders": {"a": 3}}])
def test_damaged_parts_of_settings_are_left_out(part, tmp_path, capsys):
    (tmp_path / "settings.json").write_text(json.dumps({"format": FORMAT, **part}))
    assert f"trouble: settings.json is damaged: {next(iter(part))} is no object" in shown(tmp_path, capsys)


def test_a_run_that_ended_early(tmp_path, capsys):
    """The call that goes on forgets it."""
    run = {"directory": tmp_path / "run", "progress": False}
    jaxpt.fit(ENGINE, steps=12, callbacks=[lambda status: True], **run)
    assert "ended early by a callback" in shown(tmp_path / "run", capsys)
    found = shown(tmp_path / "run", capsys, "--json")
    assert (found["state"], found["ended_by"], found["seconds_left"]) == ("ended early", "callback", None)
    jaxpt.fit(ENGINE, steps=12, **run)
    assert "run: finished" in shown(tmp_path / "run", capsys)


def test_a_lock_that_may_not_be_read_is_not_held(tmp_path, monkeypatch):
    (tmp_path / "lock").write_text("{}")

    def refused(*args, **options):
        raise PermissionError

    monkeypatch.setattr(Path, "open", refused)
    assert lock.holder(tmp_path) is None


@pytest.mark.parametrize("running", [True, False])
def test_a_checkpoint_that_a_run_is_removing_is_no_trouble(running, finished, tmp_path, monkeypatch):
    """Its checksums are listed, and gone when they are read: here a link to nothing."""
    place = copied(finished[0], tmp_path / "run")
    (place / "checksums" / "3.json").symlink_to(tmp_path / "gone")
    monkeypatch.setattr(lock, "holder", lambda path: {} if running else None)
    found = look(place)
    assert [one["step"] for one in found.checkpoints][-1] == 12
    assert found.troubles == ([] if running else ["3.json is missing"])


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"energy": 3.4028234663852886e38}, "12\n"),
        ({"lost_seeds": 1}, "12 (diverged)"),
        ({"energy": 0.25, "lost_seeds": 1}, "12 (energy 0.25; 1 of the seeds diverged)"),
        ({"energy": 0.25}, "12 (energy 0.25)"),
    ],
)
def test_energies_of_checkpoints(metrics, says, finished, tmp_path, capsys):
    """The first is what earlier releases wrote for a seed without a finite energy."""
    place = copied(finished[0], tmp_path / "run")
    (place / "checkpoints" / "12" / "metrics" / "metrics").write_text(json.dumps(metrics))
    assert says in shown(place, capsys) + "\n"


def copied(directory, to):
    import shutil

    return shutil.copytree(directory, to)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ("settings", "trouble: settings.json is missing"),
        ("noise", "trouble: settings.json cannot be read: "),
        ("format", f"trouble: settings.json is of format 2, but this release reads format {FORMAT}; use the release"),
        ("line", "trouble: periods.jsonl is damaged from line 4 on, and the rest of it is left out"),
        ("another key", "trouble: periods.jsonl is damaged from line 4 on"),
        ("another shape", "trouble: periods.jsonl is damaged from line 4 on"),
        ("time", "trouble: periods.jsonl is damaged from line 4 on"),
        ("null", "trouble: settings.json is damaged: rule is no object"),
        ("metadata", "checkpoints at step "),
        ("folder", "trouble: periods.jsonl cannot be read: Is a directory"),
        ("tail", "step 10 of 12 (83%), 5 periods"),
        ("lines", "trouble: periods.jsonl is missing"),
        ("goal", "step 12 of an unknown number, 6 periods"),
        ("checkpoint", "trouble: the checkpoint of step 12 lacks 12/"),
        ("unsealed", "trouble: the checkpoint of step 12 is incomplete; the next run removes it"),
    ],
)
def test_what_is_missing_or_damaged_is_said(harm, says, finished, tmp_path, capsys):
    place = copied(finished[0], tmp_path / "run")
    settings, periods = place / "settings.json", place / "periods.jsonl"
    held = periods.read_bytes().splitlines(keepends=True)
    match harm:
        case "settings":
            settings.unlink()
        case "noise":
            settings.write_text("{")
        case "format":
            settings.write_text(settings.read_text().replace(f'"format": {FORMAT}', '"format": 2'))
        case "line":
            periods.write_bytes(b"".join([*held[:3], b"\0\0\n", *held[4:]]))
        case "another key" | "another shape" | "time":
            old, new = {
                "another key": (b'"hyper"', b'"hypo"'),
                "another shape": (b'"rung": {"temperature": [', b'"rung": {"temperature": [7, '),
                "time": (b'"seconds": ', b'"seconds": "x", "more": '),
            }[harm]
            assert old in held[3]
            periods.write_bytes(b"".join([*held[:3], held[3].replace(old, new), *held[4:]]))
        case "null":
            settings.write_text(json.dumps({**json.loads(settings.read_text()), "rule": None}))
        case "metadata":
            about = place / "checkpoints" / "12" / "_CHECKPOINT_METADATA"
            about.write_text(json.dumps({**json.loads(about.read_text()), "custom_metadata": [1]}))
        case "folder":
            periods.unlink()
            periods.mkdir()
        case "tail":
            periods.write_bytes(b"".join([*held[:5], held[5][:40]]))
        case "lines":
            periods.unlink()
        case "goal":
            (place / "run.json").unlink()
        case "checkpoint":
            (place / "checkpoints" / "12" / "metrics" / "metrics").unlink()
        case "unsealed":
            (place / "checksums" / "12.json").unlink()
    assert says in shown(place, capsys)


def test_a_run_without_a_period_has_no_report(tmp_path, capsys):
    (tmp_path / "settings.json").write_text(json.dumps({"format": FORMAT}))
    assert "begun, but no process is running it" in shown(tmp_path, capsys)
    assert main([str(tmp_path), "--report", str(tmp_path / "page.html")]) == 2
    assert "has no period yet" in capsys.readouterr().err
