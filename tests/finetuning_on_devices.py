"""Adapters on two CPU devices and on one, with one base on each device; see `tests/test_finetuning.py`."""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

import jaxpt
from jaxpt.devices.placement import pmap, shard_map, single
from tests.test_finetuning import DATA, X, engine, lora

place = {"shard_map": lambda: shard_map(jax.devices()), "pmap": pmap}[sys.argv[1]]()
one, two = (
    jaxpt.fit(engine(lora(), 2, placement=placed, rule=jaxpt.CopyBest()), DATA, DATA, steps=8)
    for placed in (single(), place)
)
np.testing.assert_allclose(two.trace.valid["energy"], one.trace.valid["energy"], rtol=1e-4)
for leaf in jax.tree.leaves(two.engine.problem.frozen):
    assert leaf.sharding.is_fully_replicated
    assert len(leaf.sharding.device_set) == 2
np.testing.assert_allclose(two.best().model(X), one.best().model(X), rtol=1e-3, atol=1e-5)
with tempfile.TemporaryDirectory() as folder:
    two.ensemble().save(Path(folder) / "both")
    assert (jaxpt.load_ensemble(Path(folder) / "both", lora())(DATA) == two.ensemble()(DATA)).all()
np.testing.assert_allclose(jaxpt.ensemble_weights(two.engine, two.state, DATA).sum(), 1, rtol=1e-5)
print("the same")
