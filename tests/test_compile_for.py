"""What a run would need on devices that are not there; from programs for CPUs, for others in `test_accelerators`."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt.studies import programs, targets
from jaxpt.studies.compilation import _compiled, compile_for
from tests.conftest import examples, make_engine, small_problem

SPLITS = examples()


@pytest.fixture(scope="module")
def plan():
    return compile_for(make_engine(small_problem()), SPLITS, device="cpu")


@pytest.mark.slow
def test_the_parts_of_the_memory_are_those_of_the_arrays_and_of_the_compiler(plan):
    engine = make_engine(small_problem(), placement=jaxpt.placement.single(jax.devices()[0]))
    form = engine.abstract(jax.random.key(0))
    needs = engine.lower(form, SPLITS, periods=64, donate=True).compile().memory_analysis()
    size = lambda arrays: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))
    assert 0 <= plan.data - size(SPLITS) <= 64, "and the engine's numbers"
    assert 0.8 * size(form.replicas.params) < plan.state < 10 * size(form.replicas.params)
    everything = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    assert plan.total == everything + needs.temp_size_in_bytes + plan.program
    assert plan.program == needs.generated_code_size_in_bytes
    assert plan.fits
    assert plan.advice is None


def test_one_device_exchanges_nothing_and_the_host_is_left_alone(plan):
    assert (plan.collectives_in_steps, plan.collectives_in_period, plan.host_transfers) == (0, 0, 0)
    assert plan.kernels > 10
    assert str(plan.execution) == "vmap over 4 replicas on cpu device"


def test_the_table_and_the_dictionary_hold_the_same(plan):
    shown = str(plan)
    assert shown.splitlines()[0] == "cpu                  vmap over 4 replicas on cpu device"
    assert f"instructions a step  {plan.kernels}\n" in shown
    assert "collectives          none in the steps, none a period\nhost transfers       none\n" in shown
    found = json.loads(json.dumps(plan.as_dict()))
    assert set(found) == {field.name for field in dataclasses.fields(plan)} | {"total", "fits"}
    assert found["execution"] == str(plan.execution)
    on_gpu = dataclasses.replace(plan, execution=plan.execution._replace(platform="gpu"))
    assert "kernels a step" in str(on_gpu)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [None, 2])
def test_shapes_are_enough(seeds):
    engine = make_engine(small_problem())
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), SPLITS)
    found = [compile_for(engine, data, device="cpu", seeds=seeds, periods=2) for data in (SPLITS, shapes)]
    one, other = ({**each.as_dict(), "compile_seconds": 0} for each in found)
    assert one == other
    assert one["seeds"] == (seeds or 1)


def test_a_run_that_does_not_fit_says_what_would(plan):
    most = plan.data + plan.state + plan.working // 2
    found = compile_for(make_engine(small_problem()), SPLITS, device="cpu", memory=most)
    assert found.fits is False
    assert found.memory == most
    assert "replicas would fit" in found.advice
    assert str(found).endswith(found.advice)


def test_a_program_that_the_compiler_refuses_is_one_that_does_not_fit(monkeypatch):
    def refuse(lowered):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM.\nMore.")

    monkeypatch.setattr("jaxpt.studies.compilation.compiled", refuse)
    found = compile_for(make_engine(small_problem()), SPLITS, device="cpu")
    assert found.fits is False
    assert (found.working, found.kernels) == (None, None)
    assert found.data > 4000
    assert found.advice.startswith("the compiler refuses the program: Ran out of memory on HBM. Fewer replicas")
    assert "working memory       unknown" in str(found)


def test_other_errors_of_the_compiler_are_raised(monkeypatch):
    def fail(lowered):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr("jaxpt.studies.compilation.compiled", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        _compiled(None)


@pytest.mark.slow
def test_minibatches_of_a_stream():
    engine = make_engine(small_problem())
    examples = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, 5, 16, *leaf.shape[1:]), leaf.dtype), SPLITS.train)
    batches = jaxpt.Batches(examples, jax.ShapeDtypeStruct((1, 5, 16), jnp.bool_))
    found = compile_for(engine, jaxpt.Data(None, SPLITS.valid), device="cpu", batches=batches)
    assert 80 * 29 <= found.data - 50 * 28 <= 80 * 29 + 64
    with pytest.raises(ValueError, match=r"batches must have the leading axes \(periods, every, batch_size\) = \(2, "):
        compile_for(engine, jaxpt.Data(None, SPLITS.valid), device="cpu", batches=batches, periods=2)


REFUSED = {
    'device must be a name such as "v5e:2x2" or "h100"': {"device": 4},
    'unknown device \'h1000\'; give a TPU with its topology, such as "v4:2x2x1", "v5e:2x2"': {"device": "h1000"},
    "after the colon comes the number of devices": {"device": "cpu:2x2"},
    "this process has 1 CPU device(s); call jaxpt.use_all_cores(64)": {"device": "cpu:64"},
    "seeds must be an integer of at least 1": {"device": "cpu", "seeds": 0},
    "seeds must be an integer of at least 1, or None, but it is True": {"device": "cpu", "seeds": True},
    "periods must be an integer of at least 1": {"device": "cpu", "periods": 1.5},
    "memory must be an integer of at least 1": {"device": "cpu", "memory": -1},
}


@pytest.mark.parametrize("said", REFUSED)
def test_mistakes_are_explained(said):
    with pytest.raises(ValueError) as refused:  # noqa: PT011  looked at below
        compile_for(make_engine(small_problem()), SPLITS, **REFUSED[said])
    assert said in str(refused.value)


@pytest.mark.parametrize("call", [partial(compile_for, device="cpu"), jaxpt.tune])
def test_splits_that_are_missing_or_apart_are_explained(call):
    engine = make_engine(small_problem())
    with pytest.raises(ValueError, match=r"fails without data: .*; if it needs data, give jaxpt.Data\(train, valid\)"):
        call(engine)
    with pytest.raises(ValueError, match=r"write (compile_for|tune)\(engine, jaxpt.Data\(train, valid\), ...\)"):
        call(engine, SPLITS.train, SPLITS.valid)
    with pytest.raises(ValueError, match=r"engine must be a jaxpt.Engine, but it is of <class '.*Problem'>; call"):
        call(engine.problem, SPLITS)


@pytest.mark.slow
def test_numbers_may_be_those_of_numpy():
    found = compile_for(make_engine(small_problem()), SPLITS, device="cpu", seeds=np.int64(2), periods=np.int32(3),
                        memory=np.int64(10**9))  # fmt: skip
    assert json.loads(json.dumps(found.as_dict()))["seeds"] == 2
    assert found.memory == 10**9


@pytest.mark.parametrize(("device", "said"), [("v5e:2x2", "jaxpt[tpu]"), ("h100", "jaxpt[cuda]")])
def test_a_compiler_that_is_missing_is_named_with_how_to_get_it(device, said, monkeypatch):
    monkeypatch.setattr(targets, "_installed", lambda package: False)
    with pytest.raises(ModuleNotFoundError) as refused:
        compile_for(make_engine(small_problem()), SPLITS, device=device)
    assert f'pip install "{said}"' in str(refused.value)


def test_a_plugin_that_is_not_registered_says_what_to_set(monkeypatch):
    def refuse(**kwargs):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(targets, "_installed", lambda package: True)
    monkeypatch.setattr(targets.topologies, "get_topology_desc", refuse)
    with pytest.raises(RuntimeError, match="set JAX_PLATFORMS=cpu in the environment"):
        targets.target("h100:4")
    with pytest.raises(ValueError, match="more than 8 GPUs come on hosts of 8; give a multiple of that, not 12"):
        targets.target("h100:12")


def test_topologies_are_asked_for_by_shape_and_a_chip_has_its_memory(monkeypatch):
    """With libtpu's answers put in; its environment is set for the call and then as before."""
    asked = []

    class Found:
        devices = tuple(jax.devices() * 8)

    def describe(name, platform):
        asked.append((name, platform, os.environ["TPU_SKIP_MDS_QUERY"], os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"]))
        if "3" in name:
            raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: not divisible")
        return Found

    monkeypatch.setattr(targets, "_installed", lambda package: True)
    monkeypatch.setattr(targets.topologies, "get_topology_desc", describe)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "mine")
    monkeypatch.delenv("ALLOW_MULTIPLE_LIBTPU_LOAD", raising=False)
    assert targets.target("v4:2x2x1") == (list(Found.devices), 16 * 2**30), "two devices on a chip"
    assert len(targets.target("V5E").devices) == 1
    assert asked == [("v4:2x2x1", "tpu", "mine", "1"), ("v5e:2x2", "tpu", "mine", "1")]
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "mine"
    assert "ALLOW_MULTIPLE_LIBTPU_LOAD" not in os.environ
    with pytest.raises(ValueError, match=r"there is no topology 'v5e:3x3' \(INVALID_ARGUMENT: not divisible\); the sm"):
        targets.target("v5e:3x3")


def test_a_gpu_is_described_by_its_figures():
    text = targets.gpu_text("h100")
    for field in ("core_count: 132", "shared_memory_per_block_optin: 232448", "memory_bandwidth: 3350000000000"):
        assert f"  {field}\n" in text
    assert "cuda_compute_capability { major: 9 minor: 0 }" in text


TEXT = """HloModule jit__periods

%inner (p: s32[]) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0:T(8,128)(2,1)S(1)}) parameter(0)
  %turn = s32[] get-tuple-element(%p), index=0
  %next = s32[] add(%turn, %turn)
  ROOT %work = (s32[], f32[4]) fusion(%p), kind=kLoop, calls=%fused
}

%until (p: s32[]) -> pred[] {
  %p.1 = (s32[], f32[4]) parameter(0)
  %turn.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %most = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[]{:T(512)} compare(%turn.1, %most), direction=LT
}

%steps (q: s32[]) -> (s32[], f32[4]) {
  %q = (s32[], f32[4]) parameter(0)
  %loop = (s32[], f32[4]) while(%q), condition=%until, body=%inner, metadata={op_name="jit(_periods)/while"}
  %begun = f32[4] all-reduce-start(%q), to_apply=%sum
  %ended = f32[4] all-reduce-done(%begun)
  %to = f32[4]{0:S(5)} copy(%ended)
  ROOT %out = (s32[], f32[4]) tuple(%q, %to)
}

%mapped (q: s32[]) -> (s32[], f32[4]) {
  %m = (s32[], f32[4]) parameter(0)
  ROOT %w = (s32[], f32[4]) while(%m), condition=%c, body=%steps, metadata={op_name="jit(f)/vmap(training_steps)/while"}
}

ENTRY %main (a: s32[]) -> (s32[], f32[4]) {
  %a = (s32[], f32[4]) parameter(0)
  %call = f32[2] custom-call(%a), custom_call_target="xla_ffi_python_gpu_callback"
  %gathered = f32[8] all-gather(%a), dimensions={0}
  ROOT %all = (s32[], f32[4]) while(%a), condition=%d, body=%mapped, backend_config={"known_trip_count":{"n":"2"}}
}
"""


def test_what_is_counted_in_a_program():
    """Three turns of one fusion, a reduction and a copy: in a loop over two replicas."""
    across = {"collectives_in_steps": 1, "collectives_in_period": 0, "collectives_in_dispatch": 1}
    found = programs.count(TEXT)
    assert found == programs.Counts(kernels=2 * (3 + 1 + 1), host_transfers=2, **across)


def test_a_callback_in_the_steps_is_seen():
    def schedule(hyper, step):
        zero = jax.pure_callback(np.zeros_like, jax.ShapeDtypeStruct((), jnp.float32), step, vmap_method="sequential")
        return {"temperature": hyper["temperature"] + zero}

    problem = jaxpt.energy_problem(lambda w: jnp.sum(w**2), lambda key: jnp.zeros(3))
    langevin = lambda h: jaxpt.langevin(0.1, h["temperature"])
    engine = jaxpt.Engine(problem, langevin, jaxpt.Ladder(temperature=[1.0, 2.0]), every=2, schedule=schedule)
    assert compile_for(engine, device="cpu").host_transfers > 0


ON_FOUR = """
import json
import jax
import jaxpt
from tests.conftest import examples, make_engine, small_problem

jaxpt.use_all_cores(4)
data = examples()
plans = [
    jaxpt.compile_for(make_engine(small_problem(), replica_axis=way, **rule), data, device=device)
    for way, device, rule in (
        ("vmap", "cpu:4", {}), ("unroll", "cpu:2", {}), ("map", "cpu:2", {}), ("map", "cpu:4", {"rule": jaxpt.PBT()})
    )
]

def loss(*args):
    loss, state = small_problem().loss(*args)
    try:
        return loss + jax.lax.psum(loss, "replica"), state
    except NameError:  # checks trace it outside of the shards
        return loss, state

waits = make_engine(small_problem()._replace(loss=loss), replica_axis="vmap")
plans.append(jaxpt.compile_for(waits, data, device="cpu:4"))
try:
    jaxpt.compile_for(make_engine(small_problem()), data, device="cpu:3")
except ValueError as error:
    refused = str(error)
print(json.dumps([[plan.as_dict() for plan in plans], refused]))
"""


@pytest.mark.slow
def test_several_devices():
    done = subprocess.run([sys.executable, "-c", ON_FOUR], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (vmap, unroll, loop, copies, waits), refused = json.loads(done.stdout.splitlines()[-1])
    assert vmap["execution"] == "vmap over 1 replica on each of 4 cpu devices"
    for plan in (vmap, unroll, loop, copies):
        assert plan["collectives_in_steps"] == plan["host_transfers"] == 0
        assert plan["fits"]
    passed = [plan["collectives_in_period"] for plan in (vmap, copies)]
    assert 0 < passed[0] <= 2 < passed[1], "energies and rungs; and each leaf of the weights"
    assert vmap["collectives_in_dispatch"] == 0
    assert waits["collectives_in_steps"] > 0, "the counter is not blind"
    assert loop["kernels"] == unroll["kernels"] == pytest.approx(2 * vmap["kernels"], rel=0.05)
    assert vmap["state"] < 0.6 * loop["state"] + 200
    assert refused.startswith("4 replicas do not split evenly over 3 devices")
