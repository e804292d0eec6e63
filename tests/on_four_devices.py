"""Runs on four CPU devices and on one of them, and prints how the two differ; see `tests/test_placement.py`."""

import dataclasses
import json
import sys
import warnings

import jax
import numpy as np
from flax import nnx

import jaxpt
from jaxpt.placement import automatic, shard_map, single
from tests import conftest, hlo

jaxpt.use_all_cores(4)

RUNGS = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.02, 0.2, 8))
WAYS = (single(), "auto")


class ConvNet(nnx.Module):
    """Convolution, BatchNorm, tanh, dropout, dense."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(1, 4, (2,), rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(4, rngs=rngs), jaxpt.Dropout("dropout_rate", rngs=rngs)
        self.out = nnx.Linear(24, 3, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(jax.numpy.tanh(self.norm(self.conv(x[..., None]))))
        return self.out(x.reshape(len(x), -1))


@jaxpt.tree.register(data=("inner",))
@dataclasses.dataclass(frozen=True)
class Copying:
    """Exchanges, and then everyone goes on with the weights of one on another device."""

    inner: jaxpt.Tempering
    exchanges = True

    def propose(self, *args):
        move, inner, info = self.inner.propose(*args)
        return move._replace(parents=jax.numpy.roll(jax.numpy.arange(8), 3)), Copying(inner), info


def make(placement, **settings):
    settings = {"rule": jaxpt.Tempering(5.0), "every": 4, "batch_size": 16, "replica_axis": "map", **settings}
    problem = settings.pop("problem", PROBLEM)
    return jaxpt.Engine(
        problem, conftest.sgd, RUNGS, fixed={"dropout_rate": 0.2}, placement=placement, **settings
    )  # fmt: skip


def split(a, b):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(190, conftest.FEATURES)).astype(np.float32)
    return {"x": x[a:b], "y": ((x[:, 0] * x[:, 1] > 0).astype(np.int32) + (x[:, 2] > 0)).astype(np.int32)[a:b]}


def differences(one, other):
    """The largest ones of the rungs, of what was accepted, and of all the rest: weights, losses, energies, ..."""
    (state, trace), (others, other_trace) = one, other
    most = lambda a, b: max(map(_apart, jax.tree.leaves(a), jax.tree.leaves(b)), default=0.0)
    rung = most((state.replicas.rung, trace.rung), (others.replicas.rung, other_trace.rung))
    accepted = most(trace.info.accepted, other_trace.info.accepted)
    return {
        "rung": rung,
        "accepted": accepted,
        "rest": most((state.replicas[:3], trace), (others.replicas[:3], other_trace)),
    }


def _apart(a, b):
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(initial=0))


PROBLEM = jaxpt.nnx_problem(
    ConvNet, conftest.loss, metrics={"error": conftest.error}, predict=lambda model, batch: model(batch["x"])
)
DATA = jaxpt.Data(split(0, 100), split(100, 150), split(150, 190))
KEY = jax.random.key(0)
out = {"equal": {}, "accepted": {}}

cases = {
    "seeds, own minibatches": (jax.random.split(KEY, 2), {"own_batches": True, "probe": 20}),
    "tuned": (
        KEY,
        {
            "rule": jaxpt.Tempering("auto", "deo", adapt_ladder=True, noise_corrected=True, window=2),
            "burn_in": 8,
            "probe": 20,
        },
    ),
    "copied weights": (KEY, {"rule": Copying(jaxpt.Tempering(5.0)), "rescale_momentum": "learning_rate"}),
}
for case, (key, settings) in cases.items():
    engines = [make(way, **settings) for way in WAYS]
    one, other = (engine.run(engine.init(key), DATA, periods=4) for engine in engines)
    out["equal"][case] = differences(one, other)
    out["accepted"][case] = int(one[1].info.accepted.sum())

stream = lambda: ({name: leaf[i : i + 16] for name, leaf in DATA.train.items()} for i in (0, 16, 32, 48) * 3)
fits = [jaxpt.fit(make(way), stream(), DATA.valid, steps=12, progress=False) for way in WAYS]
out["equal"]["stream"] = differences(*((result.state, result.trace) for result in fits))
out["accepted"]["stream"] = int(fits[0].trace.info.accepted.sum())

autos = [make(way, replica_axis="auto") for way in WAYS]
out["auto"] = differences(*(engine.run(engine.init(KEY), DATA, periods=3) for engine in autos))
out["auto"]["execution"] = str(autos[1].execution(DATA))

sharded = make("auto")
state, data = sharded.init(KEY), sharded.placed.put(DATA)
out["loops"] = hlo.loops(sharded.lower(state, data, periods=3, donate=True).compile().as_text())
with jax.transfer_guard_device_to_device("disallow"):
    state, _ = sharded.run(state, data, periods=3, donate=True)
    before = jaxpt.engine._run_donated._cache_size()
    state, _ = sharded.run(state, data, periods=3, donate=True)
out["compiled again"] = jaxpt.engine._run_donated._cache_size() - before


def waiting(*args):
    """The loss, and it looks at what the other devices' losses are."""
    per_example, rest = PROBLEM.loss(*args)
    return per_example + jax.lax.stop_gradient(jax.lax.pmean(per_example.sum(), jaxpt.placement.AXIS)), rest


nosy = dataclasses.replace(sharded, problem=PROBLEM._replace(loss=waiting))
out["waiting"] = hlo.loops(nosy.lower(sharded.init(KEY), DATA, periods=3).compile().as_text())

best = fits[1].best()
out["best"] = abs(float(np.mean(conftest.loss(best.model, DATA.valid))) - best.valid["energy"])
metrics = {"nll": lambda p, batch: jaxpt.negative_log_likelihood(p, batch["y"])}
mixed = [jaxpt.mixture(result.engine, result.state, DATA.test, metrics, coldest=3)["nll"] for result in fits]
out["mixture"] = abs(float(mixed[0] - mixed[1]))

out["shards"] = {str(m): automatic(m).num_shards for m in (1, 2, 3, 4, 5, 6, 8)}
try:
    six = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.02, 0.2, 6))
    dataclasses.replace(sharded, ladder=six, placement=shard_map(jax.devices()))
except ValueError as error:
    out["six"] = str(error)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert jaxpt.use_all_cores(2) == 4
out["late"] = str(caught[0].message)

json.dump(out, sys.stdout)
