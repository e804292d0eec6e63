"""What the README shows works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_example_of_ones_own_model_is_short():
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 25


@pytest.mark.slow
def test_the_blocks_run_in_order_and_learn(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("\n".join(BLOCKS) + "\nprint('wrong:', float(wrong))")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    energy = float(re.search(r"'energy': ([\d.]+)", done.stdout)[1])
    wrong = float(re.search(r"wrong: ([\d.]+)", done.stdout)[1])
    assert energy < 0.2, "it learns which quadrant a point is in"
    assert wrong < 0.1
    assert (tmp_path / "exchanges.png").stat().st_size > 10_000


def test_every_file_it_points_to_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        if not target.startswith("http"):
            assert (README.parent / target).exists(), target
