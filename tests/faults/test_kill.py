import json
import subprocess
import sys

import numpy as np
import pytest

from tests.faults.host import STEPS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What `host.py` saw, and its directory."""
    directory = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "tests.faults.host", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), directory


@pytest.mark.parametrize(("how", "times"), [("kill", 12), ("term", 5)])
def test_a_run_ended_at_random_moments_equals_one_that_was_not_to_the_bit(how, times, found):
    """Exchanges, copies, tuning of C and ladder, probes, dropout, batch statistics: state, trace, scores."""
    seen, directory = found
    with np.load(directory / "whole" / "result.npz") as whole, np.load(directory / how / "result.npz") as resumed:
        assert set(whole) == set(resumed)
        for name in whole:
            np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)
        assert whole["trace/info/accepted"].sum() > 10
        assert (whole["trace/info/parents"] != np.arange(4)).sum() > 10
        assert len(np.unique(whole["trace/info/C"])) > 10
        assert len(np.unique(whole["trace/info/beta"][:, 1])) > 5
    assert len(seen[how]["steps"]) == times
    # The run really was cut all along its way.
    assert len({step for step in seen[how]["steps"] if 0 < step < STEPS}) >= times // 2


def test_exit_codes(found):
    """Killed ones have the signal's; those that saved themselves 75, unless they were still importing or at the end."""
    seen, _ = found
    assert seen["kill"]["codes"] == [-9] * 12 + [0]
    assert set(seen["term"]["codes"][:-1]) <= {75, -15}
    assert seen["term"]["codes"].count(75) >= 3
    assert seen["term"]["codes"][-1] == 0
