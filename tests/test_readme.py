"""The README is short, and its examples work as shown."""

import pytest

from tests import pages

BLOCKS = pages.blocks(pages.README)
CHECKS = {
    "print(result.best())": 'assert result.best().valid["energy"] < 0.1, "it learns which quadrant a point is in"',
    "result.report": (
        'assert wrong < 0.1 and Path("report.html").stat().st_size > 100_000;'
        'assert list(Path("pictures").glob("*.png")) and set(jaxpt.load_model("best")) == {"hidden", "out"}'
    ),
    "jaxpt.PBT()": 'assert found.best().valid["energy"] < 0.1',
    "LinenNet": 'assert result.best().valid["energy"] < 0.2 and "dropout_rate" in result.trace.hyper',
}
"""{text in a block: an assertion that holds after it}."""


def test_it_is_at_most_200_lines():
    assert len(pages.README.read_text().splitlines()) <= 200


def test_the_example_of_ones_own_model_is_a_script_of_under_25_lines():
    first = BLOCKS[0]
    assert not first.goes_on
    assert "import jaxpt" in first.code
    assert len(first.code.splitlines()) < 25
    assert first.line < 25, "and it begins on the first screen"


def test_it_shows_the_line_that_sets_up_and_runs_and_the_line_that_tests():
    lines = [line.strip() for line in pages.README.read_text().splitlines()]
    assert "pip install uv && uv run -m experiments.digits" in lines
    assert "uv run pytest" in lines


@pytest.mark.parametrize("text", CHECKS)
def test_each_check_belongs_to_one_block(text):
    assert sum(text in block.code for block in BLOCKS) == 1


@pytest.mark.slow
def test_each_block_runs_after_the_first_script_alone_and_learns(tmp_path):
    steps = [(block, "\n".join(check for text, check in CHECKS.items() if text in block.code)) for block in BLOCKS]
    done = pages.run(steps, tmp_path)
    assert done.returncode == 0, done.stderr
