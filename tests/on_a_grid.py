"""Runs on a grid of eight CPU devices and on one, and prints how they differ; see `tests/test_data_axis.py`."""

import json
import re

import jax
import numpy as np
import optax
from flax import nnx

import jaxpt
from jaxpt.devices.placement import grid, single
from tests import conftest, hlo

jaxpt.use_all_cores(8)

DATA = conftest.examples()  # 100 / 50 / 40: an epoch ends with a short minibatch of 4
GRID = grid(replicas=4, data=2)
KEY = jax.random.key(0)


class Dense(nnx.Module):
    """Nothing random, and nothing that mixes examples."""

    def __init__(self, *, rngs):
        self.hidden = nnx.Linear(conftest.FEATURES, 8, rngs=rngs)
        self.out = nnx.Linear(8, conftest.CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))


class Normed(nnx.Module):
    """BatchNorm and dropout."""

    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(conftest.FEATURES, rngs=rngs)
        self.dropout = jaxpt.Dropout("dropout_rate", rngs=rngs)
        self.out = nnx.Linear(conftest.FEATURES, conftest.CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(self.norm(x)))


def make(module, placement, ladder=None, optimizer=conftest.sgd, **settings):
    settings = {"every": 4, "batch_size": 16, "rule": jaxpt.Tempering(5.0, "deo"), **settings}
    rungs = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.02, 0.2, 8)) if ladder is None else ladder
    problem = jaxpt.nnx_problem(module, conftest.loss)
    return jaxpt.Engine(problem, optimizer, rungs, placement=placement, **settings)


def by_functions(h):
    """SGD on half of each gradient that the functions give, and of what the value tells."""

    def update(grads, state, params, *, value_fn, grad_fn, value, **others):
        away = value_fn(params) - value  # zero, if the function gives the loss of the whole minibatch
        step = lambda a, b: -h["learning_rate"] * (0.5 * (a + b) + away)
        return jax.tree.map(step, jax.grad(value_fn)(params), grad_fn(params)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def run(engine, periods):
    return engine.run(engine.init(KEY), engine.placed.put(DATA), periods=periods)


def apart(one, other):
    """The largest difference of two trees."""
    parts = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return max(float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()) for a, b in parts)


def compared(**settings):
    """The differences of weights and of the trace after 24 steps, and how many swaps there were."""
    (state, trace), (other, others) = (run(make(Dense, where, **settings), 6) for where in (GRID, single()))
    parts = [(s.replicas.params, s.replicas.opt_state, t.loss, t.valid) for s, t in ((state, trace), (other, others))]
    same = bool((np.asarray(trace.info.accepted) == np.asarray(others.info.accepted)).all())
    return {"apart": apart(*parts), "same swaps": same, "swaps": int(np.sum(others.info.accepted))}


conftest.compile_quickly(True)
sizes = jaxpt.Ladder(
    learning_rate=jaxpt.geometric(0.02, 0.2, 8), batch_size=[16, 16, 12, 9, 8, 5, 3, 1], beta="learning_rate"
)
out = {
    "shared minibatches": compared(),
    "own minibatches": compared(own_batches=True),
    "batch sizes on the ladder": compared(ladder=sizes),
    "the loss as a function": compared(optimizer=by_functions),
}

stream = lambda: ({name: leaf[i : i + 16] for name, leaf in DATA.train.items()} for i in (0, 16, 32, 90) * 2)
fits = [jaxpt.fit(make(Dense, where), stream(), DATA.valid, steps=8, progress=False) for where in (GRID, single())]
out["stream"] = apart(*(result.state.replicas.params for result in fits))

# BatchNorm's running mean after one step is the mean over all examples; its variance is within the parts.
normed = {"every": 1, "fixed": {"dropout_rate": 0.0}, "rule": jaxpt.Independent()}
states = [run(make(Normed, where, **normed), 1)[0].replicas.model_state for where in (GRID, single())]
out["running mean"] = apart(*(state["norm"]["mean"] for state in states))
out["running variance"] = apart(*(state["norm"]["var"] for state in states))

engine = make(Normed, GRID, fixed={"dropout_rate": 0.3})
state, trace = run(engine, 2)
out["shards alike"] = all(
    len({np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards if str(shard.index) == index}) == 1
    for leaf in jax.tree.leaves((state.replicas.params, state.replicas.model_state, state.replicas.opt_state))
    for index in {str(shard.index) for shard in leaf.addressable_shards}
)
out["finite"] = bool(np.isfinite(trace.valid["energy"]).all())

text = engine.lower(engine.abstract(KEY), engine.abstract_data(DATA), periods=2).compile().as_text()
out["a step"] = [kinds for depth, kinds in hlo.loops(text) if depth and kinds]
groups = [
    re.search(r"replica_groups=(\{\{.*?\}\}|mesh\[.*?\] \{.*?\}|\S+)", line)[1]
    for line in text.splitlines()
    if " all-reduce(" in line
]
out["groups"] = sorted(set(groups))


def refused(act):
    try:
        act()
    except ValueError as error:
        return str(error)
    return None


bowl = jaxpt.energy_problem(lambda w: w**2, lambda key: jax.random.normal(key))
alone = jaxpt.Engine(bowl, conftest.sgd, jaxpt.Ladder(learning_rate=np.geomspace(0.1, 0.2, 8)), every=2, placement=GRID)
acts = lambda: make(Dense, GRID, batch_size=15), lambda: alone.run(alone.init(KEY), periods=1)
out["refused"] = [refused(act) for act in acts]
print(json.dumps(out))
