"""Ensembles on two CPU devices and on one: prints their scores and weights; see `tests/test_ensemble.py`."""

import json
import sys

import jax
import numpy as np

import jaxpt
from jaxpt.devices.placement import pmap, shard_map, single
from tests import conftest
from tests.loading_ensembles import logits

jaxpt.use_all_cores(2)

WAYS = {
    "one device": single(),
    "shard_map": shard_map(jax.devices()),
    "pmap": pmap(),
    "seeds apart": shard_map(jax.devices(), seeds=2),
}
METRICS = {
    "nll": lambda p, batch: jaxpt.negative_log_likelihood(p, batch["y"]),
    "ece": jaxpt.calibration_error(lambda p, batch: (p, batch["y"])),
}
PROBLEM = jaxpt.nnx_problem(conftest.SmallNet, conftest.loss, predict=logits)
VALID = conftest.examples().valid
SHARES = np.random.default_rng(0).uniform(size=(3, 2, 4))

out = {}
for way, placement in WAYS.items():
    engine = conftest.make_engine(PROBLEM, placement=placement, evaluation_batch=16)
    state = engine.init(jax.random.split(jax.random.key(0), 2))
    weights = jaxpt.ensemble_weights(engine, state, VALID)
    out[way] = {
        "weights": weights,
        "fitted": jaxpt.ensemble(engine, state, VALID, METRICS, weights=weights),
        "given": jaxpt.ensemble(engine, state, VALID, METRICS, weights=SHARES),
        "coldest": jaxpt.ensemble(engine, state, VALID, METRICS, coldest=[4, 2]),
    }
flat = {
    way: {
        jax.tree_util.keystr(path, simple=True): np.asarray(v).tolist() for path, v in jax.tree.leaves_with_path(found)
    }
    for way, found in out.items()
}
json.dump(flat, sys.stdout)
