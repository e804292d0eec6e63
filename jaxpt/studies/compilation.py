"""Compiles a run for accelerators that are not there, and reports what it would need on them."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxpt.core import tree
from jaxpt.core.arguments import is_count
from jaxpt.core.data import Batches, Data, refuse_splits
from jaxpt.core.seeds import keys
from jaxpt.core.state import RunState
from jaxpt.core.types import with_frozen
from jaxpt.devices import memory as device_memory
from jaxpt.devices.execution import Execution
from jaxpt.devices.fitting import check_fits
from jaxpt.devices.placement import shard_map, single
from jaxpt.engine.engine import Engine
from jaxpt.studies.programs import count
from jaxpt.studies.targets import target
from jaxpt.training.prepare import compiled

_PERIODS = 64  # the rows of `fit`'s trace in a run of up to so many periods
_LESS = "Fewer replicas a device, a smaller batch_size or evaluation_batch, or less data need less memory"


@dataclasses.dataclass(frozen=True)
class CompiledFor:
    """What a run needs on given devices, by their compiler; `print` it, or take `as_dict`.

    Bytes are those of each device. They are the compiler's, with the gaps of its layouts. Where it refuses the program
    they are those of the arrays themselves, and what only the compiler knows is None.

    Attributes:
        device: the devices' name.
        execution: how the replicas are executed, and on how many devices.
        seeds: number of ladders.
        data: bytes of the splits, of which each device has the whole.
        state: bytes of a device's share of the state.
        working: bytes of what a step or an evaluation holds meanwhile, and of the trace.
        program: bytes of the program itself; 0 on devices that hold it elsewhere.
        memory: bytes that a program may use on a device; None: unknown.
        kernels: instructions that run on a device in one training step of all its replicas; on a GPU each launches a
            kernel, a few launch more. None: the compiler refused, or a period is one step, which has no loop.
        collectives_in_steps: exchanges between devices in the loop over the steps; there should be none.
        collectives_in_period: other exchanges between devices in the loop over the periods.
        collectives_in_dispatch: those outside of it: with several hosts the trace is gathered at the end of a dispatch.
        host_transfers: copies to or from the host in the program; there should be none.
        compile_seconds: the compiler's time on this machine.
        advice: why the run does not fit, and what would; None if it fits.
    """

    device: str
    execution: Execution
    seeds: int
    data: int
    state: int
    working: int | None
    program: int | None
    memory: int | None
    kernels: int | None
    collectives_in_steps: int | None
    collectives_in_period: int | None
    collectives_in_dispatch: int | None
    host_transfers: int | None
    compile_seconds: float
    advice: str | None

    @property
    def total(self) -> int | None:
        """Bytes of data, state, working memory and program."""
        if self.working is None or self.program is None:
            return None
        return self.data + self.state + self.working + self.program

    @property
    def fits(self) -> bool | None:
        """Whether all of it is at most the memory; None: unknown."""
        if self.advice is not None:
            return False
        return None if self.total is None or self.memory is None else True

    def as_dict(self) -> dict[str, Any]:
        """Returns the attributes, `total` and `fits` as plain numbers and text, which JSON can hold."""
        return dataclasses.asdict(self) | {"execution": str(self.execution), "total": self.total, "fits": self.fits}

    def __str__(self) -> str:
        parts = {"data": self.data, "state": self.state, "working memory": self.working, "program": self.program}
        sizes = {**parts, "together": self.total, "a device has": self.memory}
        crossing = f"{_number(self.collectives_in_steps)} in the steps, {_number(self.collectives_in_period)} a period"
        if self.collectives_in_dispatch:
            crossing += f", {self.collectives_in_dispatch} a dispatch"
        rows = {
            self.device: str(self.execution) + (f", {self.seeds} seeds" if self.seeds > 1 else ""),
            "fits": {True: "yes", False: "no", None: "unknown"}[self.fits],
            **{name: "unknown" if size is None else device_memory.shown(size) for name, size in sizes.items()},
            ("kernels" if self.execution.platform == "gpu" else "instructions") + " a step": _number(self.kernels),
            "collectives": crossing,
            "host transfers": _number(self.host_transfers),
            "compiled in": f"{self.compile_seconds:.0f} s",
        }
        wide = max(map(len, rows))
        lines = [f"{name:{wide}}  {value}" for name, value in rows.items()]
        return "\n".join(lines if self.advice is None else [*lines, self.advice])


def compile_for(
    engine: Engine,
    data: Data | None = None,
    *more: Any,
    device: str,
    seeds: int | None = None,
    periods: int | None = None,
    batches: Batches | None = None,
    memory: int | None = None,
) -> CompiledFor:
    """Compiles a run for a TPU or GPU that need not be there; reports whether it fits, and what it does in a step.

        >>> plan = jaxpt.compile_for(engine, jaxpt.Data(train, valid), device="cpu")
        >>> plan.fits, plan.collectives_in_steps, plan.host_transfers
        (True, 0, 0)

    The engine comes first, as in `fit`, and the device by name, because it is what one varies. The program is the one
    that `fit` runs, with the replicas in equal shards over all the devices. Nothing is computed, no array is made: the
    data may be `jax.ShapeDtypeStruct`s. Needs the device's compiler: `pip install "jaxpt[tpu]"` for TPUs,
    `"jaxpt[cuda]"` for GPUs. On a machine without a GPU JAX's platforms must be set before JAX starts:
    `JAX_PLATFORMS=cpu`.

    The compiler promises no times. GPUs are described to it by their published figures, so it chooses no kernels by
    timing them.

    Args:
        engine: the engine; its placement does not matter.
        data: the splits, as arrays or shapes; None for a problem without data.
        *more: nothing; splits given one by one, as `fit` takes them, are refused.
        device: "v5e:2x2", "v5p:2x2x1", "v6e:2x2" or another topology of TPUs, without the colon one chip; "h100",
            "a100" or "h200", with a count if there are several, "h100:4"; "cpu" or "cpu:4", to try it out. See
            `jaxpt.studies.targets.target`.
        seeds: number of ladders; by default one, without an axis of seeds.
        periods: most periods in a dispatch, the rows of the trace; by default 64, as `fit` in runs of up to 64 periods.
        batches: the minibatches of a stream, arrays or shapes [periods, every, batch_size, ...], with
            `own_batches=True` [periods, M, every, batch_size, ...], instead of `data.train`; `fit` gives those of one
            period at a time.
        memory: bytes that a program may use on a device, if it is of another size; by default the published size of a
            TPU's, and 0.75 of a GPU's, which JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.

    Raises:
        ValueError: the device is unknown, M is no multiple of the number of devices, a number is out of range, or the
            data does not fit the engine.
        ModuleNotFoundError: libtpu or the CUDA plugin is not installed.
        RuntimeError: JAX did not register the CUDA plugin.
    """
    refuse_splits("compile_for", more)
    _check(engine, {"seeds": seeds, "periods": periods, "memory": memory})
    # Plain integers: those of NumPy are neither static arguments nor ready for JSON.
    seeds, periods, memory = (None if value is None else int(value) for value in (seeds, periods, memory))
    found = target(device)
    placed = shard_map(found.devices) if len(found.devices) > 1 else single(found.devices[0])
    check_fits(placed, engine.num_replicas)
    engine = dataclasses.replace(engine.over(None), placement=placed)
    # NumPy arrays are on no device, so the program may be compiled for another one.
    problem = with_frozen(engine.problem, lambda arrays: jax.tree.map(np.asarray, arrays))
    engine = dataclasses.replace(engine, problem=problem)
    splits = engine.abstract_data(data)
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.result_type(leaf)), batches)
    if periods is None:
        periods = _PERIODS if batches is None else tree.leading(batches, "batches")
    # A minibatch of the stream stands for the split that is missing.
    seen = splits if given is None else splits._replace(train=_minibatch(given.examples, engine.batch_axes))
    engine.check(seen)
    form = engine.abstract(keys(0, None if seeds is None else range(seeds), None))
    lowered = engine.lower(form, splits, periods=periods, batches=given, donate=True)
    program, advice, seconds = _compiled(lowered)
    most = device_memory.limit(placed, found.memory) if memory is None else memory
    how = engine.execution(seen)
    counts = None if program is None else count(program.as_text() or "")
    plan = CompiledFor(
        device=device,
        execution=how,
        seeds=seeds or 1,
        **_sizes(program, form, (splits, given, engine.problem.frozen), how),
        memory=most,
        kernels=counts and counts.kernels,
        collectives_in_steps=counts and counts.collectives_in_steps,
        collectives_in_period=counts and counts.collectives_in_period,
        collectives_in_dispatch=counts and counts.collectives_in_dispatch,
        host_transfers=counts and counts.host_transfers,
        compile_seconds=seconds,
        advice=advice,
    )
    if program is None or plan.total is None or most is None or plan.total <= most:
        return plan
    return dataclasses.replace(plan, advice=_advice(program, form, (splits, given, engine.problem.frozen), how, most))


def _check(engine: Any, numbers: Mapping[str, Any]) -> None:
    """Raises ValueError if the engine is none, or a number is not an integer of at least 1 or None."""
    if not isinstance(engine, Engine):
        raise ValueError(
            f"engine must be a jaxpt.Engine, but it is of {type(engine)}; call "
            "compile_for(engine, jaxpt.Data(train, valid), device=...)"
        )
    for name, value in numbers.items():
        if value is not None and not is_count(value):
            raise ValueError(f"{name} must be an integer of at least 1, or None, but it is {value!r}")


def _compiled(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, str | None, float]:
    """Returns the program, or None and why the compiler refuses it for want of memory; and the seconds it took."""
    started = time.perf_counter()
    try:
        program, refusal = compiled(lowered), None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).strip().splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        program, refusal = None, f"the compiler refuses the program: {said} {_LESS}"
    return program, refusal, time.perf_counter() - started


def _sizes(program: jax.stages.Compiled | None, form: RunState, shared: PyTree, how: Execution) -> dict[str, Any]:
    """Returns the bytes of each part on each device."""
    needs = None if program is None else program.memory_analysis()
    if needs is None:
        rest = device_memory.bytes_of([part for name, part in form._asdict().items() if name != "replicas"])
        state = rest + device_memory.bytes_of(form.replicas) // how.devices
        return {"data": device_memory.bytes_of(shared), "state": state, "working": None, "program": None}
    # The run overwrites its state: what arguments and results share is the state, the other arguments are the data.
    state = needs.alias_size_in_bytes
    return {
        "data": needs.argument_size_in_bytes - state,
        "state": state,
        "working": needs.temp_size_in_bytes + needs.output_size_in_bytes - state,
        "program": needs.generated_code_size_in_bytes,
    }


def _advice(program: jax.stages.Compiled, form: RunState, shared: PyTree, how: Execution, most: int | None) -> str:
    """Returns why a compiled run does not fit, and what would."""
    try:
        device_memory.check(program, form.replicas, shared, how, most, how.devices)
    except MemoryError as error:
        return str(error)
    return f"the run fits but for the program itself. {_LESS}"


def _minibatch(examples: PyTree, lead: int) -> PyTree:
    """Returns the shapes of one minibatch of a stream, without the leading axes of periods, replicas and steps."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[lead:], leaf.dtype), examples)


def _number(count: int | None) -> str:
    return "unknown" if count is None else str(count or "none")
