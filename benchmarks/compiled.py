"""Compiles training steps for a TPU v5e or an H100 without having one, and reads what the compiler made of them.

uv run --with "jax[tpu]==0.10.2" benchmarks/compiled.py --device v5e --models lenet
uv run --with "jax[cuda12]==0.10.2" benchmarks/compiled.py --device h100 --source OTHER_CHECKOUT --label before
uv run --with "jax[tpu]==0.10.2" benchmarks/compiled.py --program evaluation --batch 1024 --variants stock single

Nothing is run. Cycles are XLA:TPU's own estimates, summed over the step loop; kernels and convolutions are those that
XLA:GPU calls in it. Those of an evaluation are of the whole program, and so are temporaries. Each program is compiled
in a process of its own and saved at once. Variant "single" is one replica, whose numbers are to be taken M times.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
MODELS = ("lenet", "resnet20", "block16", "block32", "block64")
VARIANTS = ("stock", "own", "single")
EVERY, PERIODS = 7, 3  # unlike any other loop's number of turns
ROW = ("model", "variant", "label", "program", "batch")  # a row's name
TOPOLOGIES = {"v5e": ("tpu", "v5e:2x2"), "h100": ("cuda", "1x1x4"), "cpu": ("cpu", "")}
READ = {
    "v5e": ("estimated_cycles", "collectives", "host_transfers"),
    "h100": ("kernels", "convolutions", "collectives", "host_transfers"),
    "cpu": ("collectives", "host_transfers"),
}
"""What each compiler's program says of the step loop (`programs.summary`); "cpu" is for tests of this script."""
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""Public figures of the device, as XLA's GpuTargetConfigProto."""


def abroad() -> dict[str, str]:
    """Returns the environment in which JAX runs on the CPU and compiles for others."""
    return {
        "JAX_PLATFORMS": "cpu",  # without it the CUDA plugin does not register
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def compilers() -> dict[str, str]:
    """Returns the versions of the installed packages that compile for devices."""
    found = {}
    for name in ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def devices(name: str) -> Any:
    """Returns devices that compile only."""
    import jax
    from jax.experimental import topologies

    platform, topology = TOPOLOGIES[name]
    if platform == "cpu":
        return jax.devices("cpu")
    more = {"topology": topology, "target_config": H100} if platform == "cuda" else {"topology_name": topology}
    return topologies.get_topology_desc(platform=platform, **more).devices


def lowered(model: str, variant: str, replicas: int, options: argparse.Namespace) -> Any:
    """Returns the lowered program of a run with EVERY steps a period, on the first of the devices."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax

    import jaxpt
    from benchmarks import networks

    engine = jaxpt.Engine(
        networks.problem(model, jaxpt.conv_general_dilated if variant == "own" else lax.conv_general_dilated),
        networks.optimizer,
        jaxpt.Ladder(learning_rate=np.linspace(0.5, 1.0, replicas) * networks.LEARNING_RATE),
        jaxpt.Independent(),
        every=EVERY,
        batch_size=options.batch,
        fixed=networks.fixed(model),
        precision=options.precision,
        replica_axis="unroll" if replicas == 1 else "vmap",
        placement=jaxpt.placement.shard_map([devices(options.device)[0]]),
    )

    def split(count: int) -> dict[str, Any]:
        shape = (count, *(networks.SHAPES | networks.BLOCKS)[model])
        return {"image": jax.ShapeDtypeStruct(shape, jnp.float32), "label": jax.ShapeDtypeStruct((count,), jnp.int32)}

    data = jaxpt.Data(split(8 * options.batch), split(options.batch))
    data = engine.placed.abstract(data, jax.sharding.PartitionSpec())
    return engine.lower(engine.abstract(jax.random.key(0)), data, periods=PERIODS)


def lowered_evaluation(model: str, variant: str, replicas: int, options: argparse.Namespace) -> Any:
    """Returns the lowered program of the energies of one batch, on the first of the devices."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    import jaxpt
    from benchmarks import networks
    from jaxpt.devices.execution import over_replicas

    problem = networks.problem(model, jaxpt.conv_general_dilated if variant == "own" else lax.conv_general_dilated)
    platform, how = TOPOLOGIES[options.device][0], "unroll" if replicas == 1 else "vmap"
    here = jax.sharding.SingleDeviceSharding(devices(options.device)[0])
    shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype, sharding=here)  # noqa: E731
    batch = {
        "image": shape(options.batch, *(networks.SHAPES | networks.BLOCKS)[model]),
        "label": shape(options.batch, dtype=jnp.int32),
    }
    stacked = lambda leaf: shape(replicas, *leaf.shape, dtype=leaf.dtype)  # noqa: E731
    weights = jax.tree.map(stacked, jax.eval_shape(problem.init, jax.random.key(0)))

    def energies(params: Any, state: Any, batch: Any) -> Any:
        one = lambda params, state: problem.evaluate(params, state, batch)["energy"].sum()  # noqa: E731
        return over_replicas(how, platform, 1, one, (0, 0))(params, state)

    with jax.default_matmul_precision(options.precision):
        return jax.jit(energies).lower(*weights, batch)


def compile_one(model: str, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the row of one program; where the step loop is not found, of all loops together."""
    from benchmarks import programs

    replicas = 1 if variant == "single" else options.replicas
    started = time.perf_counter()
    made = {"step": lowered, "evaluation": lowered_evaluation}[options.program]
    compiled = made(model, variant, replicas, options).compile()
    seconds = time.perf_counter() - started
    text = compiled.as_text()
    if options.text:
        options.text.mkdir(parents=True, exist_ok=True)
        (options.text / f"{options.device}-{options.label}-{model}-{variant}.txt").write_text(text)
    program = programs.parse(text)
    steps = [loop.body for loop in programs.loops(program) if loop.turns == EVERY]
    # Other loops of as many turns are small.
    body = max(steps, key=lambda body: len(programs.flat(program, body)), default=program.entry)
    found, memory = programs.summary(program, body), compiled.memory_analysis()
    return {
        "model": model,
        "variant": variant,
        "label": options.label,
        "program": options.program,
        "replicas": replicas,
        "batch": options.batch,
        "precision": options.precision,
        "step_loop_found": bool(steps),
        **{name: found[name] for name in READ[options.device]},
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_seconds": round(seconds, 1),
    }


def main() -> None:
    """Compiles each program in a process of its own, and writes all rows after each of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=TOPOLOGIES, default="v5e")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["lenet"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--program", choices=("step", "evaluation"), default="step", help="a run's steps, or energies")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", default="default")
    parser.add_argument("--source", type=Path, default=HERE, help="the checkout of jaxpt that is compiled")
    parser.add_argument("--label", default="now", help="names the checkout in the rows")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds that one program may take")
    parser.add_argument("--text", type=Path, help="a folder for the compiled programs' texts")
    parser.add_argument("--out", type=Path, help="the file; rows of other labels in it stay")
    parser.add_argument("--only", nargs=2, metavar=("MODEL", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    # The folder of this script comes last: another checkout's packages win.
    sys.path[:] = [str(options.source.resolve()), str(HERE), *sys.path[1:]]
    if options.only:
        print(json.dumps(compile_one(*options.only, options)))
        return
    os.environ.update(abroad())
    from benchmarks import record

    rows: list[dict[str, Any]] = []
    if options.out and options.out.exists():
        rows = json.loads(options.out.read_text())["rows"]
    for model in options.models:
        for variant in options.variants:
            row = _in_a_process(model, variant, options)
            same = [all(r.get(name, "step") == row[name] for name in ROW) for r in rows]
            rows = [r for r, is_same in zip(rows, same, strict=True) if not is_same] + [row]
            print(json.dumps(row), flush=True)
            record.write(options.out, rows, compiled_for=options.device, executed=False, compilers=compilers())


def _in_a_process(model: str, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the row of one program, or what went wrong."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", model, variant]
    named = {"model": model, "variant": variant, **{name: getattr(options, name) for name in ROW[2:]}}
    with tempfile.TemporaryFile("w+") as errors:
        try:
            run = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=options.timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return {**named, "failed": f"not compiled in {options.timeout:.0f} s"}
        errors.seek(0)
        said = errors.read().strip().splitlines()
    return json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else {**named, "failed": said[-1:]}


if __name__ == "__main__":
    main()
