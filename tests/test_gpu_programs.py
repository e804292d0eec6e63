"""Programs for a GPU, compiled without one; skipped where the CUDA plugin is not installed.

JAX_PLATFORMS=cpu uv run --extra cuda pytest -n0 -m accelerator tests/test_gpu_programs.py
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests import pages
from tests.conftest import QUICK

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax_cuda12_plugin") is None, reason="no CUDA plugin is installed"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """{variant: row} of LeNet, whose windows are all 5x5, for eight replicas on an H100."""
    out = tmp_path_factory.mktemp("compiled") / "rows.json"
    script = pages.ROOT / "benchmarks" / "compiled.py"
    options = ("--device", "h100", "--models", "lenet", "--variants", "stock", "own", "--batch", "32", "--out", out)
    others = {name: value for name, value in os.environ.items() if name not in QUICK}
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, env=others, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {row["variant"]: row for row in json.loads(out.read_text())["rows"]}


@pytest.mark.parametrize("variant", ["stock", "own"])
def test_gradients_of_kernels_have_the_windows_of_their_layers(variant, rows):
    """And a group for each replica, but for the first layer, whose images all replicas share."""
    row = rows[variant]
    assert row["step_loop_found"], row
    gradients = {name: count for name, count in row["convolutions"].items() if "BackwardFilter" in name}
    assert sum(gradients.values()) == 2
    assert all(" 5x5 " in name for name in gradients), gradients
    # A window over the whole picture is a product, "1x1".
    assert all(name.split()[1] in ("5x5", "1x1") for name in row["convolutions"]), row["convolutions"]
    assert any(name.endswith("groups 8") for name in gradients)


@pytest.mark.parametrize("variant", ["stock", "own"])
def test_nothing_waits_in_a_step(variant, rows):
    row = rows[variant]
    assert (row["collectives"], row["host_transfers"]) == (0, 0)
    assert row["kernels"] < 100, "a launch takes microseconds: 68 and 63 when this was written"
