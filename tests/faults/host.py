"""Runs one training again and again in processes of its own and ends them at random moments; see `test_kill.py`.

    python -m tests.faults.host DIRECTORY

Every process is forked from this one, which has imported everything and started nothing, so it begins as a fresh one
does but for the time that imports take. What was compiled once is kept in the directory.
"""

import dataclasses
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import xla_bridge

import jaxpt
import jaxpt.saving.checkpoint
from jaxpt.core import tree
from tests import conftest

STEPS, EVERY, REPLICAS = 300, 3, 4
SAVE_EVERY = 2


@tree.register(data=("tempering", "population"))
@dataclasses.dataclass(frozen=True)
class Everything(jaxpt.Rule):
    """Exchanges, tunes C and the ladder in burn-in, and copies weights: all that a rule can carry along."""

    tempering: jaxpt.Tempering
    population: jaxpt.PBT

    def init(self, ladders):
        return dataclasses.replace(self, tempering=self.tempering.init(ladders))

    def propose(self, key, seen):
        move, tempering, info = self.tempering.propose(key, seen)
        copied, _, _ = self.population.propose(key, seen)
        rule = dataclasses.replace(self, tempering=tempering)
        return move._replace(parents=copied.parents), rule, info._replace(parents=copied.parents)


def train(directory):
    """The run; its result goes into a file."""
    ladder = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.02, 0.2, REPLICAS))
    rule = Everything(jaxpt.Tempering("auto", "deo", adapt_ladder=True, window=4), jaxpt.PBT())
    engine = jaxpt.Engine(
        conftest.small_problem(),
        conftest.sgd,
        ladder,
        rule,
        every=EVERY,
        burn_in=STEPS // 3,
        batch_size=16,
        probe=20,
        fixed={"dropout_rate": 0.1},
    )
    data = conftest.examples()
    options = {"test": data.test, "save_every": SAVE_EVERY, "progress": False}
    result = jaxpt.fit(engine, data.train, data.valid, steps=STEPS, directory=directory, **options)
    kept = {
        "state": result.state,
        "trace": result.trace,
        "valid": result.valid,
        "images": jnp.array(result.replica_images),
    }
    leaves = {tree.name(path): np.asarray(tree.plain(leaf)) for path, leaf in jax.tree.leaves_with_path(kept)}
    np.savez(directory / "part.npz", **leaves)
    (directory / "part.npz").rename(directory / "result.npz")


def start(directory):
    """A new process that trains; returns its number."""
    assert not xla_bridge.backends_are_initialized(), "a fork of it would hang"
    if pid := os.fork():
        return pid
    code = 1
    try:
        train(directory)
        code = 0
    except jaxpt.Interrupted as end:
        code = end.code
    except BaseException as error:  # the parent must hear of it
        print(type(error).__name__, error, file=sys.stderr)
    finally:
        os._exit(code)


def latest(directory):
    return max((int(path.stem) for path in directory.glob("checksums/*.json")), default=0)


def end_at_random(directory, number, times, draw):
    """Ends the run so often, then lets it finish; returns where it was each time and the exit codes."""
    directory.mkdir()
    steps, codes = [], []
    while len(steps) < times:
        pid, before = start(directory), latest(directory)
        # One in four at any moment from the start on; the others after new progress, while it trains or saves.
        early = draw.random() < 0.25
        until = time.monotonic() + (draw.uniform(0, 5) if early else 60)
        while time.monotonic() < until and (early or latest(directory) == before):
            time.sleep(0.01)
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
        time.sleep(draw.uniform(0, 0.3))
        os.kill(pid, number)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        steps.append(latest(directory))
        assert codes[-1] in (0, 75, -number), f"{codes} at {steps}"
    codes.append(os.waitstatus_to_exitcode(os.waitpid(start(directory), 0)[1]))
    return {"steps": steps, "codes": codes}


def main(directory):
    jax.config.update("jax_compilation_cache_dir", str(directory / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    (directory / "whole").mkdir()
    assert os.waitstatus_to_exitcode(os.waitpid(start(directory / "whole"), 0)[1]) == 0
    draw = random.Random(0)
    found = {
        "kill": end_at_random(directory / "kill", signal.SIGKILL, 12, draw),
        "term": end_at_random(directory / "term", signal.SIGTERM, 5, draw),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
