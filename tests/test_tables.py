"""The README's tables say what the benchmarks' files say."""

import json
import re

import pytest

from benchmarks import tables


def test_the_readme_has_its_tables_from_the_files():
    readme = (tables.HOME / "README.md").read_text()
    assert set(re.findall(r"<!-- table (\w+) -->", readme)) == set(tables.TABLES)
    assert tables.renewed(readme) == readme, "run benchmarks/tables.py"


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


def test_every_result_says_how_it_was_made():
    for file in tables.RESULTS.rglob("*.json"):
        missing = {"command", "seeds", "date", "device", "versions"} - set(json.loads(file.read_text()))
        assert not missing, (file, missing)
