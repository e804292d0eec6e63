"""Runs on eight CPU devices, on some of them and on one, and prints how they differ; see `tests/test_placement.py`."""

import dataclasses
import json
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxpt
from benchmarks.devices import collectives
from jaxpt.devices.fitting import automatic
from jaxpt.devices.placement import pmap, shard_map, single
from tests import conftest, hlo

jaxpt.use_all_cores(8)

RUNGS = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.02, 0.2, 8))
DEVICES = jax.devices()
WAYS = {
    "one device": single(),
    "shard_map": shard_map(DEVICES),
    "pmap": pmap(),
    "pmap on four": pmap(DEVICES[:4]),
    "two groups for the seeds": shard_map(DEVICES[:4], seeds=2),
}


class Net(nnx.Module):
    """BatchNorm, dropout, dense; a convolution before them if wanted."""

    def __init__(self, features=conftest.FEATURES, conv=False, *, rngs):
        self.conv = nnx.Conv(1, 4, (2,), rngs=rngs) if conv else None
        self.norm, self.dropout = nnx.BatchNorm(features, rngs=rngs), jaxpt.Dropout("dropout_rate", rngs=rngs)
        self.out = nnx.Linear(features, conftest.CLASSES, rngs=rngs)

    def __call__(self, x):
        x = x if self.conv is None else jnp.tanh(self.conv(x[..., None])).reshape(len(x), -1)
        return self.out(self.dropout(self.norm(x)))


@jaxpt.core.tree.register(data=("inner",))
@dataclasses.dataclass(frozen=True)
class Copying(jaxpt.Rule):
    """Exchanges, and then everyone goes on with the weights of one on another device."""

    inner: jaxpt.Tempering

    def propose(self, key, seen):
        move, inner, info = self.inner.propose(key, seen)
        parents = jnp.roll(jnp.arange(8), 3)
        return move._replace(parents=parents), Copying(inner), info._replace(parents=parents)


def make(placement, **settings):
    settings = {"rule": jaxpt.Tempering(5.0), "every": 4, "batch_size": 16, "replica_axis": "map", **settings}
    problem = settings.pop("problem", PROBLEM)
    return jaxpt.Engine(
        problem, conftest.sgd, RUNGS, fixed={"dropout_rate": 0.2}, placement=placement, **settings
    )  # fmt: skip


def differences(one, other):
    """The largest ones of the rungs, of what was accepted, and of all the rest: weights, losses, energies, ..."""
    (state, trace), (others, other_trace) = one, other
    most = lambda a, b: max(map(_apart, jax.tree.leaves(a), jax.tree.leaves(b)), default=0.0)
    rung = most((state.replicas.rung, trace.rung), (others.replicas.rung, other_trace.rung))
    accepted = most(trace.info.accepted, other_trace.info.accepted)
    parts = lambda state: (*state.replicas[:3], state.replicas.hyper, state.ladders, state.rule)
    return {
        "rung": rung,
        "accepted": accepted,
        "rest": most((parts(state), trace), (parts(others), other_trace)),
    }


def _apart(a, b):
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(initial=0))


PROBLEM = jaxpt.nnx_problem(Net, conftest.loss, predict=lambda model, batch: model(batch["x"]))
CONVOLUTION = jaxpt.nnx_problem(partial(Net, 24, conv=True), conftest.loss)
DATA = conftest.examples()
KEY = jax.random.key(0)
out = {"equal": {}, "accepted": {}}


def compare(case, key, ways, periods=4, **settings):
    """Runs on one device and in other ways, and notes the differences."""
    runs = {}
    for way in ("one device", *ways):
        engine = make(WAYS[way], **settings)
        state = engine.init(key)
        runs[way] = engine.run(state, engine.placed.put(DATA), periods=periods, donate=True)
    one = runs.pop("one device")
    out["equal"] |= {f"{case}: {way}": differences(one, run) for way, run in runs.items()}
    out["accepted"][case] = int(np.sum(one[1].info.accepted))


# What compares bits of several programs compiles as users' programs do, once with weights and once in the long run.
copied = {"rule": Copying(jaxpt.Tempering(5.0)), "rescale_momentum": "learning_rate"}
compare("copied weights", KEY, ("shard_map", "pmap"), **copied)
ways = "pmap on four", "two groups for the seeds"
compare("seeds", jax.random.split(KEY, 2), ways, own_batches=True, probe=20)
conftest.compile_quickly(True)
tuned = jaxpt.Tempering("auto", "deo", adapt_ladder=True, noise_corrected=True, window=2)
compare("tuned", KEY, ("shard_map",), rule=tuned, burn_in=8, probe=20)

conftest.compile_quickly(False)
# A bowl with noise instead of a network: cheap enough for a long run.
bowl = jaxpt.energy_problem(lambda w: jnp.sum(w**2) - jnp.sum(w), lambda key: jax.random.normal(key, (3,)))
long = {}
for way in ("one device", "shard_map", "pmap"):
    sampler = jaxpt.Engine(
        bowl,
        lambda h: jaxpt.langevin(0.05, h["temperature"]),
        jaxpt.Ladder(temperature=jaxpt.geometric(0.1, 1.0, 8)),
        jaxpt.Tempering(1.0, "deo"),
        every=5,
        replica_axis="map",
        placement=WAYS[way],
    )
    long[way] = sampler.run(sampler.init(KEY), periods=200)
one = long.pop("one device")
out["equal"] |= {f"200 periods: {way}": differences(one, run) for way, run in long.items()}
out["accepted"]["200 periods"] = int(one[1].info.accepted.sum())

stream = lambda: ({name: leaf[i : i + 16] for name, leaf in DATA.train.items()} for i in (0, 16, 32, 48) * 3)
fits = [jaxpt.fit(make(way), stream(), DATA.valid, steps=12, progress=False) for way in (single(), "auto")]
out["equal"]["stream: auto"] = differences(*((result.state, result.trace) for result in fits))
out["accepted"]["stream"] = int(fits[0].trace.info.accepted.sum())
each = lambda: ({name: leaf[i : i + 16] for name, leaf in DATA.train.items()} for i in np.arange(8 * 8) * 7 % 48)
swapping = jaxpt.Tempering(0.01)  # in a run of two periods
own = [make(way, rule=swapping, own_batches=True) for way in (single(), "auto", WAYS["pmap on four"])]
mine = [jaxpt.fit(engine, each(), DATA.valid, steps=8, progress=False) for engine in own]
for way, result in zip(("auto", "pmap on four"), mine[1:], strict=True):
    out["equal"][f"own stream: {way}"] = differences(*((run.state, run.trace) for run in (mine[0], result)))
out["accepted"]["own stream"] = int(mine[0].trace.info.accepted.sum())

autos = [make(way, problem=CONVOLUTION, replica_axis="auto") for way in (single(), shard_map(DEVICES[:4]))]
out["auto"] = differences(*(engine.run(engine.init(KEY), DATA, periods=3) for engine in autos))
conftest.compile_quickly(True)
out["auto"]["execution"] = str(autos[1].execution(DATA))
grid = make(WAYS["two groups for the seeds"])
out["grid"] = str(grid.execution(DATA))

out["loops"], out["shapes"], out["compiled again"] = {}, {}, {}
for way in ("shard_map", "pmap"):
    sharded = make(WAYS[way])
    state, data = sharded.init(KEY), sharded.placed.put(DATA)
    text = sharded.lower(state, data, periods=3, donate=True).compile().as_text()
    out["loops"][way] = hlo.loops(text)
    out["shapes"][way] = [shape for _, shape, _ in collectives(text)]
    with jax.transfer_guard_device_to_device("disallow"):
        state, _ = sharded.run(state, data, periods=3, donate=True)
        before = jaxpt.engine.engine._run_donated._cache_size()
        state, _ = sharded.run(state, data, periods=3, donate=True)
    out["compiled again"][way] = jaxpt.engine.engine._run_donated._cache_size() - before

copier = make(WAYS["shard_map"], **copied)
text = copier.lower(copier.init(KEY), copier.placed.put(DATA), periods=3).compile().as_text()
out["copies"] = [shape for _, shape, _ in collectives(text)]


def waiting(*args):
    """The loss, and it looks at what the other devices' losses are."""
    per_example, rest = bowl.loss(*args)
    return per_example + jax.lax.stop_gradient(jax.lax.pmean(per_example.sum(), jaxpt.placement.AXIS)), rest


nosy = dataclasses.replace(sampler, problem=bowl._replace(loss=waiting))
out["loops"]["waiting"] = hlo.loops(nosy.lower(nosy.init(KEY), periods=3).compile().as_text())

best = fits[1].best()
out["best"] = abs(float(np.mean(conftest.loss(best.model, DATA.valid))) - best.valid["energy"])
metrics = {"nll": lambda p, batch: jaxpt.negative_log_likelihood(p, batch["y"])}
mixed = [jaxpt.ensemble(result.engine, result.state, DATA.test, metrics, coldest=3)["nll"] for result in fits]
out["mixture"] = abs(float(mixed[0] - mixed[1]))

out["shards"] = {str(m): automatic(m).num_shards for m in (1, 2, 3, 4, 5, 6, 8)}


def refused(function):
    try:
        function()
    except ValueError as error:
        return str(error)


twelve = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.02, 0.2, 12))
out["refused"] = {
    "twelve": refused(lambda: dataclasses.replace(sharded, ladder=twelve, placement=shard_map(DEVICES))),
    "six in groups of four": refused(
        lambda: dataclasses.replace(
            sharded,
            ladder=jaxpt.Ladder(learning_rate=jaxpt.geometric(0.02, 0.2, 6)),
            placement=shard_map(DEVICES, seeds=2),
        )
    ),
    "three seeds": refused(lambda: grid.init(jax.random.split(KEY, 3))),
    "one ladder": refused(lambda: grid.init(KEY)),
    "three groups": refused(lambda: shard_map(DEVICES, seeds=3)),
    "another mesh": refused(lambda: shard_map(jax.make_mesh((4, 2), ("a", "b")), seeds=2)),
    "twice": refused(lambda: pmap([DEVICES[0]] * 2)),
}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert jaxpt.use_all_cores(2) == 8
out["late"] = str(caught[0].message)

json.dump(out, sys.stdout)
