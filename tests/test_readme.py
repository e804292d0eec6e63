"""What the README shows works as it stands there."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = [
    (README[: block.start(2)].count("\n"), bool(block[1]), block[2])
    for block in re.finditer(r"(<!-- goes on -->\n)?```python\n(.*?)```", README, re.DOTALL)
]
"""(line of the fence, whether it goes on from the first one, code)."""
SMALLER = {"context, width, steps = 32, 48, 1000": "context, width, steps = 8, 16, 75"}
"""{what is in a block: what the test runs instead}; only what takes minutes."""

CHECKS = {
    "print(result.best())": 'assert result.best().valid["energy"] < 0.1, "it learns which quadrant a point is in"',
    "result.report": (
        'assert wrong < 0.1 and Path("report.html").stat().st_size > 100_000;'
        'assert list(Path("pictures").glob("*.png")) and set(jaxpt.load_model("best")) == {"hidden", "out"}'
    ),
    "good_enough": (
        'assert stopped.stopped == "callback" and stopped.state.step < 5000;'
        'assert Path("runs/watched/periods.jsonl").read_text().count("\\n") == len(stopped.trace.step)'
    ),
    "jaxpt.PBT()": 'assert found.best().valid["energy"] < 0.1',
    "LinenNet": 'assert result.best().valid["energy"] < 0.2 and "dropout_rate" in result.trace.hyper',
    "@jax.jit": "assert final._cache_size() == 1 and energy < 0.2 and 0 < acceptance < 1",
    "grain": 'assert result.best().valid["energy"] < 0.2',
    "Transformer(": 'assert result.best().valid["energy"] < 3.5, "it has learned which characters are frequent"',
    'found = dataclasses.replace(engine, rule=jaxpt.Tempering("auto"': (
        'assert result.best().valid["energy"] < 0.1 and result.trace.info.C[-1] > 1;'
        "assert 0.2 < result.trace.info.accepted.sum() / result.trace.info.attempted.sum() < 0.9"
    ),
    "Curve": 'assert all(result.best(seed=s).valid["energy"] ** 0.5 < 0.2 for s in range(3)), "the noise is 0.1"',
}
"""{what is in a block: what must hold after it}."""

RUN = """
import json, pathlib, sys
first = {}
for line, goes_on, code, check in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    scope = {"__name__": "mine"} | (first if goes_on else {})
    exec(compile("\\n" * line + code, "README.md", "exec"), scope)
    exec(check, {"Path": pathlib.Path, **scope})
    first = first or scope
"""


def test_the_example_of_ones_own_model_is_a_script_of_under_25_lines():
    line, goes_on, code = BLOCKS[0]
    assert not goes_on
    assert "import jaxpt" in code
    assert len(code.splitlines()) < 25
    assert line < 25, "and it begins on the first screen"


def test_every_block_says_its_language():
    """So that none is left out of the tests by mistake; shell commands are indented."""
    assert re.findall(r"^```(.*)$", README, re.MULTILINE)[::2] == ["python"] * len(BLOCKS)


@pytest.mark.parametrize("what", [*CHECKS, *SMALLER])
def test_what_is_looked_at_is_in_one_block(what):
    assert sum(what in code for *_, code in BLOCKS) == 1


@pytest.mark.slow
def test_each_block_runs_after_the_first_script_alone_and_learns(tmp_path):
    script = []
    for line, goes_on, code in BLOCKS:
        check = "\n".join(check for what, check in CHECKS.items() if what in code)
        for shown, smaller in SMALLER.items():
            code = code.replace(shown, smaller)
        script.append((line, goes_on, code, check))
    (tmp_path / "blocks.json").write_text(json.dumps(script))
    command = [sys.executable, "-c", RUN, tmp_path / "blocks.json"]
    clone = os.environ | {"PYTHONPATH": str(ROOT)}  # the experiments are in it
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path, env=clone)
    assert done.returncode == 0, done.stderr


def commands():
    """Yields (line, module or script, options) of each command of the README that runs a file of this repository."""
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    for found in re.finditer(r"(?:uv run|python) (?:-m )?((?:experiments|benchmarks|\.ci)[\w./]*)([^\n`#\"]*)", text):
        yield found[1], re.findall(r"--[\w-]+", found[2].split("   ")[0])


@pytest.mark.parametrize("name", sorted({name for name, _ in commands() if name != ".ci/pages.py"}))
def test_every_command_exists_with_the_options_that_are_shown(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, name, raising=False)
    run = runpy.run_path if "/" in name else runpy.run_module
    with pytest.raises(SystemExit) as end:
        run(str(ROOT / name) if "/" in name else name, run_name="__main__")
    assert end.value.code in (0, None)
    shown = capsys.readouterr().out
    for other, options in commands():
        for option in options if other == name else ():
            assert option in shown, f"{name} has no {option}"


def test_every_file_it_points_to_exists():
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    assert len(targets) > 10
    for target in targets:
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_every_place_it_points_to_exists():
    titles = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    places = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= places
