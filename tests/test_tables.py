"""The tables of all pages agree with the benchmarks' files."""

import json
import re

import pytest

from benchmarks import tables


def test_the_pages_have_their_tables_from_the_files():
    pages = [page.read_text() for page in tables.PAGES]
    assert {name for page in pages for name in re.findall(r"<!-- table (\w+) -->", page)} == set(tables.TABLES)
    for page in pages:
        assert tables.renewed(page) == page, "run benchmarks/tables.py"


def test_a_table_is_put_in_its_place(monkeypatch):
    monkeypatch.setattr(tables, "TABLES", {"one": lambda: "| a |", "two": lambda: "| b |"})
    page = "x\n<!-- table two -->\nold\n<!-- end -->\ny\n<!-- table one -->\n<!-- end -->\n"
    assert (
        tables.renewed(page)
        == "x\n<!-- table two -->\n| b |\n<!-- end -->\ny\n<!-- table one -->\n| a |\n<!-- end -->\n"
    )
    with pytest.raises(ValueError, match="no table is called 'three'; there are one, two"):
        tables.renewed("<!-- table three -->\n<!-- end -->")
    with pytest.raises(ValueError, match="needs its <!-- end -->"):
        tables.renewed("<!-- table one -->\n")


def arm(*errors):
    scores = {"test_error": {"per_seed": list(errors)}}
    return {**scores, "mixture": {"all": scores}}


def test_wide_ladders_are_paired_by_seed_and_a_lost_seed_is_said(monkeypatch):
    settings = {"steps": 10, "decay": False}
    files = {
        "some-wide/summary.json": {"arms": {**dict.fromkeys(tables.RULES, arm(4.0, 6.0)), "pbt": arm(3.0, None)}},
        "some-decay/summary.json": {"arms": {"independent": arm(3.0, 4.0), "tempering": arm(2.0, 2.0)}},
    }
    for name, content in files.items():
        content |= {"seeds": [7, 8], "dataset": "some", "settings": settings | {"decay": "decay" in name}}
    monkeypatch.setattr(tables, "load", files.__getitem__)
    lines = {line.split(" | ")[0][2:].strip(): line for line in tables.wide("some").splitlines()}
    grid, pbt = lines["grid search"].split(" | "), lines["PBT"].split(" | ")
    assert grid[1].startswith("5.00 [")
    assert grid[2].strip() == "-"
    assert grid[3].startswith("+1.50 [")
    assert pbt[1].strip() == "diverged"
    assert lines["tempering, one random pair, each rate decaying"].split(" | ")[3].startswith("-1.50 [")
    for what, wrong in {"seeds": [7, 9], "dataset": "other", "settings": {"steps": 11}}.items():
        monkeypatch.setitem(files, "some-decay/summary.json", {**files["some-decay/summary.json"], what: wrong})
        with pytest.raises(ValueError, match="some-wide and some-decay"):
            tables.wide("some")


def test_the_evidence_is_paired_by_seed(monkeypatch):
    def summary(seeds, decay=False, **arms):
        settings = {"coldest": 0.1, "hottest": 0.4, "steps": 1000, "decay": decay}
        return {"seeds": seeds, "settings": settings, "arms": {rule: arm(*errors) for rule, errors in arms.items()}}

    files = {
        "mine/summary.json": summary([7, 8], tempering=(3.0, 4.0), independent=(4.0, 6.0)),
        "slow/summary.json": summary([7, 8], decay=True, independent=(2.0, 3.0)),
    }
    monkeypatch.setattr(tables, "load", files.__getitem__)
    monkeypatch.setattr(tables, "WIDE_AND_NARROW", (("task", "mine", "slow"), ("other", "mine", "")))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.evidence().splitlines()]
    assert lines[2][:2] == ["task, learning rates 0.1 to 0.4, 1,000 steps", "2"]
    assert [cell.split(" [")[0] for cell in lines[2][2:]] == ["5.00", "-1.50", "+1.00"]
    assert lines[3][-1] == "-"
    assert len(lines) == 4 + 7, "and the paper's panels"
    files["slow/summary.json"] = summary([7, 9], independent=(2.0, 3.0))
    with pytest.raises(ValueError, match="mine and slow have different seeds"):
        tables.evidence()


def test_peers_are_compared_by_the_work_asked_for(monkeypatch):
    def row(name, seconds, images, error=10.0, diverged=0):
        asked = {"steps": 10, "replicas": 2, "batch": 5, "startup_seconds": 1.0, "replica_images": images}
        return {**asked, "arm": name, "seconds": seconds, "diverged": diverged} | {
            "test_error": error,
            "mixture_test_error": error,
        }

    rows = [row("torch_grid", 10.0, 100), row("grid", 2.0, 100), row("tune_pbt", 5.0, 150, None, 2)]
    monkeypatch.setattr(tables, "load", lambda name: {"rows": rows})
    _, _, ours, torch, tune = ([cell.strip() for cell in line.split("|")[1:-1]] for line in tables.peers().splitlines())
    assert ours == ["jaxpt, grid search", "50", "5.0", "1", "0", "10.00", "10.00"]
    assert torch[2] == "1.0"
    assert tune[1:] == ["20", "2.0", "1", "2", "diverged", "diverged"], "what it repeated does not count"


def test_every_result_says_how_it_was_made():
    for file in tables.RESULTS.rglob("*.json"):
        missing = {"command", "seeds", "date", "device", "versions"} - set(json.loads(file.read_text()))
        assert not missing, (file, missing)
