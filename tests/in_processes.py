"""One process of a run: what it comes to, and then a long one until it is killed; see `tests/test_processes.py`.

python -m tests.in_processes DIRECTORY DEVICES COORDINATOR PROCESSES PROCESS
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import jaxpt
from jaxpt.saving.checkpoint import Checkpoints
from tests import conftest

RUNGS = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.02, 0.2, 4))
STEPS = 280
"""70 periods: more than 64, so that the longer runs have the same program."""
METRICS = {"nll": lambda p, batch: jaxpt.negative_log_likelihood(p, batch["y"])}


class Net(nnx.Module):
    """Dropout and one layer: what is compiled here is compiled by seven processes."""

    def __init__(self, *, rngs):
        self.dropout = jaxpt.Dropout("dropout_rate", rngs=rngs)
        self.out = nnx.Linear(conftest.FEATURES, conftest.CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(x))


PROBLEM = jaxpt.nnx_problem(Net, conftest.loss, predict=lambda model, batch: model(batch["x"]))


def engine(rule, **settings):
    settings = {"every": 4, "batch_size": 16, "replica_axis": "map", "fixed": {"dropout_rate": 0.2}, **settings}
    return jaxpt.Engine(PROBLEM, conftest.sgd, RUNGS, rule, **settings)


def grid(steps, **options):
    """A run with two seeds, spread over all devices there are."""
    data = conftest.examples()
    devices = jaxpt.placement.shard_map(jax.devices(), seeds=min(2, jax.device_count()))
    tempered = engine(jaxpt.Tempering(5.0), placement=devices, own_batches=True)
    return jaxpt.fit(tempered, data.train, data.valid, test=data.test, steps=steps, seeds=[0, 1], **options)


def equal(directory):
    """Writes what two runs come to: on a grid of seeds and replicas, best replica and mixture too; streamed, copied."""
    data = conftest.examples()
    stream = ({name: leaf[i : i + 16] for name, leaf in data.train.items()} for i in (0, 16, 32, 48) * 2)
    each = ({name: leaf[i : i + 16] for name, leaf in data.train.items()} for i in np.arange(4 * 4) * 7 % 48)
    results = {
        "grid": grid(STEPS, progress=True),
        "stream": jaxpt.fit(engine(jaxpt.PBT()), stream, data.valid, steps=8),
        "own stream": jaxpt.fit(engine(jaxpt.PBT(), own_batches=True), each, data.valid, steps=4),
    }
    tempered = results["grid"].engine
    found = {}
    for case, result in results.items():
        state = result.engine.placed.to_host(result.state)
        parts = {"state": state, "trace": result.trace, "valid": result.valid, "test": result.test}
        found |= {
            f"{case} {name}{jax.tree_util.keystr(path)}": leaf
            for name, part in parts.items()
            for path, leaf in jax.tree.leaves_with_path(part)
        }
    best = results["grid"].best(seed=1)
    found["best"] = np.asarray(conftest.loss(best.model, data.valid))
    mixed = jaxpt.ensemble(tempered, results["grid"].state, data.test, METRICS, coldest=3)
    found["mixture"] = np.asarray(mixed["nll"])
    weights = jaxpt.ensemble_weights(tempered, results["grid"].state, data.valid)
    found["weights"] = np.asarray(weights)
    mixed = jaxpt.ensemble(tempered, results["grid"].state, data.test, METRICS, weights=weights)
    found["weighted"] = np.asarray(mixed["nll"])
    results["grid"].ensemble(weighted_on=data.valid, seed=1).save(directory / "ensemble")
    found["ensemble"] = np.asarray(jaxpt.load_ensemble(directory / "ensemble", PROBLEM)(data.test))
    results["grid"].save_model(directory / "model", seed=1)
    model = jaxpt.load_model(directory / "model")
    found |= {f"model{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(model)}
    last = jax.process_index() == jax.process_count() - 1
    found["asked"] = grid(STEPS, callbacks=[lambda status: last]).trace.step
    found["patient"] = grid(2000, patience=1).trace.step
    if jax.process_count() > 1:
        made = partial(dataclasses.replace, tempered, placement="auto")
        damaged = directory / f"damaged-{jax.process_index()}"  # what process 0 finds, the others cannot see
        damaged.mkdir()
        (damaged / "settings.json").write_text("{" if jaxpt.devices.processes.is_first() else "")
        refused = [
            said(lambda: made(ladder=conftest.ladder(5))),
            said(jaxpt.placement.pmap),
            said(lambda: Checkpoints(damaged)),
        ]
        (directory / f"refused-{jax.process_index()}").write_text("\n".join(refused))
    np.savez(directory / f"process-{jax.process_index()}.npz", **found)


def said(refused):
    try:
        refused()
    except (ValueError, jaxpt.CheckpointError) as error:
        return str(error)


if __name__ == "__main__":
    directory, devices, coordinator, processes, process = sys.argv[1:]
    jaxpt.use_all_cores(int(devices))
    jaxpt.placement.distributed(coordinator, int(processes), int(process))
    equal(Path(directory))
    grid(10**9, directory=Path(directory, "run"), save_every=50)
