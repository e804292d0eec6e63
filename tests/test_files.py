"""Paths that users give: homes are expanded, URLs refused; and files that only a file system or an editor wants."""

import os
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest

import jaxpt
from jaxpt.saving.files import is_stray, local_path
from tests.test_checkpoint import bowl

URLS = [
    "gs://bucket/run",
    "s3://bucket",
    "file:///tmp/run",
    "https://example.org/run",
    "abfss://a@b/run",
    Path("gs://bucket/run"),
    Path("gs://bucket/run").absolute(),
    "hf://run.safetensors",
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, and a working folder in which nothing may be made."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert not os.listdir(tmp_path / "work")


@pytest.mark.parametrize("url", URLS, ids=str)
def test_urls_are_refused_wherever_a_path_goes(url, home):
    found = jaxpt.fit(bowl(), steps=2, progress=False)
    calls = {
        "fit": lambda: jaxpt.fit(bowl(), steps=2, directory=url, progress=False),
        "save_model": lambda: found.save_model(url),
        "load_model": lambda: jaxpt.load_model(url),
        "report": lambda: found.report(url),
        "plot": lambda: found.plot(url),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=r"(path|directory)='.*' looks like a URL.*give a local path"):
            call()


def test_a_url_is_refused_before_the_data_are_looked_at(home):
    with pytest.raises(ValueError, match="looks like a URL"):
        jaxpt.fit(bowl(), iter(()), steps=2, directory="s3://bucket", progress=False)


@pytest.mark.parametrize("kind", [str, Path])
def test_home_is_expanded(kind, home):
    found = jaxpt.fit(bowl(), steps=2, directory=kind("~/run"), progress=False)
    assert (home / "run" / "periods.jsonl").exists()
    found.save_model(kind("~/best"))
    np.testing.assert_array_equal(jaxpt.load_model(kind("~/best")), jaxpt.load_model(home / "best"))
    found.report(kind("~/pages/report.html"))
    assert (home / "pages" / "report.html").exists()
    found.plot(kind("~/pictures"))
    assert list((home / "pictures").glob("*.png"))


def test_homes_of_others():
    import pwd

    root = pwd.getpwuid(0)
    assert local_path("path", f"~{root.pw_name}/run") == Path(root.pw_dir) / "run"
    with pytest.raises(ValueError, match=r"path='~nosuchuser1/run' begins with ~, .* give the absolute path"):
        local_path("path", "~nosuchuser1/run")


@pytest.mark.parametrize(
    "path",
    ["run", "/tmp/run", "/~run", "a~b", "a/~b", "lr=0.1:x", "12:30", "run:2", "C:/run", "C:\\run", "x/12:30/y"],
)
def test_local_paths_stay_as_they_are(path):
    assert local_path("path", path) == Path(path)
    assert local_path("path", Path(path)) == Path(path)
    assert local_path("path", PureWindowsPath("C:/run")) == Path("C:\\run")
    assert local_path("path", "./~run") == Path("~run")


@pytest.mark.parametrize("path", [b"run", 3, None, ["run"]])
def test_what_is_no_path(path):
    with pytest.raises(ValueError, match="directory must be a path"):
        local_path("directory", path)


STRAY = [".DS_Store", "Thumbs.db", "desktop.ini", ".nfs000000000001", "._8", "lost+found/x", ".x.swp", "x~", ".#x"]


@pytest.mark.parametrize("name", STRAY)
def test_stray_names(name):
    assert is_stray(name)
    assert is_stray(f"8/{name}")


@pytest.mark.parametrize(
    "name", ["8/state/d/0123abcd", "8/metrics/metrics", "4913", "8/_CHECKPOINT_METADATA", "8/.zarray"]
)
def test_names_of_checkpoints_are_not_stray(name):
    assert not is_stray(name)


def test_stray_files_are_no_damage(tmp_path):
    whole = jaxpt.fit(bowl(), steps=12, progress=False)
    go = {"directory": tmp_path / "run", "save_every": 2, "progress": False}
    jaxpt.fit(bowl(), steps=4, **go)
    folders = [tmp_path / "run", *(folder for folder in (tmp_path / "run").rglob("*") if folder.is_dir())]
    assert len(folders) > 4
    for folder in folders:
        for name in STRAY:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("not ours")
    jaxpt.fit(bowl(), steps=8, **go)
    found = jaxpt.fit(bowl(), steps=12, **go)
    np.testing.assert_array_equal(found.trace.valid["energy"], whole.trace.valid["energy"])
    ours = next(file for file in (tmp_path / "run" / "checkpoints" / "12" / "state").rglob("*") if file.is_file())
    ours.unlink()
    with pytest.raises(jaxpt.CheckpointError, match=r"step 12 .* is damaged"):
        jaxpt.fit(bowl(), steps=14, **go)


def test_a_folder_with_stray_files_only_takes_a_model(tmp_path):
    found = jaxpt.fit(bowl(), steps=2, progress=False)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / ".DS_Store").write_text("x")
    found.save_model(tmp_path / "best")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="so it stays"):
        found.save_model(tmp_path / "taken")
