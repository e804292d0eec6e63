import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt.devices import memory
from tests.conftest import ladder, make_engine, small_problem

WIDE = {"batch_size": 64, "every": 2, "rule": jaxpt.Independent(), "evaluation_batch": 50}


def needs(data, replicas, **settings):
    """What `memory.check` is given for a run, but for the limit."""
    engine = make_engine(rungs=ladder(replicas), **WIDE, **settings)
    form = engine.abstract(jax.random.key(0))
    compiled = engine.lower(form, data, periods=4, donate=True).compile()
    return compiled, form.replicas, data, engine.execution(data)


@pytest.mark.slow
def test_the_numbers_that_it_says_fit(data):
    """Both pieces of advice are tried: so many replicas, or all of them so many at a time."""
    given = needs(data, 24, replica_axis="vmap")
    usage = given[0].memory_analysis()
    most = int(0.6 * (usage.argument_size_in_bytes + usage.temp_size_in_bytes))
    with pytest.raises(MemoryError, match=r"vmap over 24 replicas on cpu device needs .* for the data") as refused:
        memory.check(*given, most)
    said = str(refused.value)
    fitting = int(re.search(r"(\d+) replicas would fit", said)[1])
    replicas_at_once = int(re.search(r"replicas_at_once=(\d+)", said)[1])
    assert 8 <= fitting < 24
    memory.check(*needs(data, fitting, replica_axis="vmap"), most)
    with pytest.raises(MemoryError):
        memory.check(*needs(data, fitting + 4, replica_axis="vmap"), most)
    memory.check(*needs(data, 24, replica_axis="map", replicas_at_once=replicas_at_once), most)


def test_a_run_that_cannot_fit_is_refused_before_anything_is_allocated(data):
    """Weights of more bytes than the machine has: with a `MemoryError` of ours, and at once."""
    problem = jaxpt.energy_problem(lambda w: jnp.sum(w**2), lambda key: jnp.zeros((2**34, 64)))
    engine = jaxpt.Engine(
        problem, lambda h: jaxpt.langevin(0.1, h["temperature"]), jaxpt.Ladder(temperature=[1.0, 2.0]), every=1
    )
    with pytest.raises(MemoryError, match=r"needs \d.* TiB on each device .* not even one replica a device would fit"):
        jaxpt.fit(engine, steps=2, progress=False)


def test_what_the_limit_is():
    most = memory.limit(jaxpt.placement.single())
    assert 2**28 < most < 2**50
    assert memory.limit(jaxpt.placement.shard_map(jax.devices()[:1])) == most


@pytest.mark.slow
@pytest.mark.parametrize("replicas_at_once", [1, 3])
def test_replicas_at_once_change_nothing(replicas_at_once, data):
    found = []
    for settings in ({"replica_axis": "vmap"}, {"replica_axis": "map", "replicas_at_once": replicas_at_once}):
        engine = make_engine(small_problem(), rule=jaxpt.Tempering(3.0), **settings)
        state, trace = engine.run(engine.init(jax.random.key(0)), data, periods=3)
        found.append((state.replicas.params, trace))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), *found)
    with pytest.raises(ValueError, match="replicas_at_once must be an integer of at least 1"):
        make_engine(replicas_at_once=0)
