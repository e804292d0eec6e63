"""The Markdown pages of this repository, taken apart: blocks of code, commands, links and their targets."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDE = sorted((ROOT / "jaxpt" / "guide").glob("*.md"))
PAGES = [README, *GUIDE, ROOT / "experiments/README.md", ROOT / "benchmarks/README.md", ROOT / "CONTRIBUTING.md"]

RUN = """
import json, pathlib, sys
first = None
for page, line, goes_on, code, check in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    scope = {"__name__": "mine"} | ((first or {}) if goes_on else {})
    exec(compile("\\n" * line + code, page, "exec"), scope)
    exec(check, {"Path": pathlib.Path, **scope})
    first = scope if first is None else first
"""


class Block(NamedTuple):
    """A block of Python on a page."""

    page: str
    line: int
    """Of its fence, from 0."""
    goes_on: bool
    """Whether it sees the names of the README's first script; otherwise it sees none."""
    code: str
    needs: tuple[str, ...] = ()
    """Modules without which it is left out: those of extras that the tests' environment need not have."""


def name(page: Path) -> str:
    """Returns a page's path from the root of the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Returns the blocks of Python on a page."""
    text = page.read_text()
    found = re.finditer(r"(<!-- goes on -->\n)?(?:<!-- needs ([\w ]+) -->\n)?```python\n(.*?)```", text, re.DOTALL)
    return [
        Block(name(page), text[: block.start(3)].count("\n"), bool(block[1]), block[3], tuple((block[2] or "").split()))
        for block in found
    ]


def languages(page: Path) -> list[str]:
    """Returns the language that each fenced block declares."""
    return re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)[::2]


def run(steps: list[tuple[Block, str]], folder: Path) -> subprocess.CompletedProcess:
    """Runs blocks in order in one new process, each with a check after it; the first is the README's script."""
    (folder / "blocks.json").write_text(json.dumps([(*block[:4], check) for block, check in steps]))
    command = [sys.executable, "-c", RUN, folder / "blocks.json"]
    clone = os.environ | {"PYTHONPATH": str(ROOT)}  # the experiments are in it
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder, env=clone)


def commands(page: Path) -> Iterator[tuple[str, ...]]:
    """Yields (module or script, option, option, ...) of each command on a page that runs a file of this repository."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).replace("\\\n", "")
    options = r"((?:(?! {3}uv run)[^\n`#\"])*)"  # a line may show two commands
    for found in re.finditer(r"(?:uv run|python) (?:-m )?((?:experiments|benchmarks|\.ci)[\w./]*)" + options, text):
        yield found[1], *re.findall(r"--experiment \w+|--[\w-]+", found[2])


def links(page: Path) -> list[str]:
    """Returns the targets of a page's links and pictures, those on the web left out."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    return [target for target in found if not target.startswith("http")]


def places(page: Path) -> set[str]:
    """Returns the anchors of a page's titles."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
