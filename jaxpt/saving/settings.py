"""What a run's mathematics depends on, in words: written beside its checkpoints, compared when it is resumed."""

import dataclasses
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, PyTree

from jaxpt.core import tree
from jaxpt.core.data import Data
from jaxpt.core.decimals import shortened
from jaxpt.core.extras import versions
from jaxpt.core.state import Replicas, RunState
from jaxpt.engine.engine import Engine
from jaxpt.engine.replica import train_step

FORMAT = 1
"""Of run directories; another number cannot be read."""
_NUMBERS = ("every", "burn_in", "batch_size", "own_batches", "drop_remainder", "probe", "rescale_momentum", "precision")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function, which no two processes share
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "jaxpt")


def describe(engine: Engine, state: RunState, key: Array, data: Data) -> dict[str, Any]:
    """Returns what must stay as it is when a run is resumed, ready for JSON.

    How many steps are wanted is not in it, nor on which devices and in which order of execution they are computed.

    Args:
        engine: what runs.
        state: its first state, or that as shapes.
        key: the seed or seeds.
        data: the splits on the host; a stream's is its first period's minibatches as shapes.
    """
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[key.ndim + 1 :], leaf.dtype), state.replicas)
    return {
        "format": FORMAT,
        "versions": {name: version for name, version in versions().items() if name in _PACKAGES},
        "seeds": {"keys": np.asarray(jax.random.key_data(key)).tolist(), **_generator(engine, key)},
        "engine": {name: _words(getattr(engine, name)) for name in _NUMBERS}
        | {"diverged": "respawn" if engine.diverged == "respawn" else "keep or stop"},
        "fixed": {name: _words(value) for name, value in engine.fixed.items()},
        "ladders": {
            name: {"beta": _words(ladder.beta), **{key: _words(values) for key, values in ladder.values.items()}}
            for name, ladder in engine.ladders.items()
        },
        **shapes(engine, state),
        "data": {
            tree.name(path): _shape(leaf) + _checksum(leaf) for path, leaf in jax.tree.leaves_with_path(data._asdict())
        },
        "programs": {name: _hash(program) for name, program in _programs(engine, state, first, key.ndim, data)},
    }


def shapes(engine: Engine, state: RunState) -> dict[str, Any]:
    """Returns those settings that a checkpoint's arrays depend on, ready for JSON."""
    return {
        "rule": rule_in_words(engine.rule),
        "replicas": {tree.name(path): _shape(leaf) for path, leaf in jax.tree.leaves_with_path(state.replicas)},
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Returns, for everything that two descriptions say otherwise, a line "what: then -> now".

    Programs (of problem, optimiser, schedule and rule) are compared only if the same versions of the packages traced
    them.
    """
    if not where and then.get("versions") != now.get("versions"):
        then, now = ({k: v for k, v in side.items() if k not in ("versions", "programs")} for side in (then, now))
    found = []
    for name in dict.fromkeys((*then, *now)):
        a, b, place = then.get(name), now.get(name), f"{where}{name}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{place} / ")
        elif a != b and name == "keys":
            several = isinstance(b, list) and np.ndim(b) > 1
            found.append(f"{'seeds' if several else 'seed'}: {_seeds(a)} -> {_seeds(b)}")
        elif a != b:
            found.append(f"{place}: {_brief(a)} -> {_brief(b)}")
    return found


def _seeds(keys: Any) -> str:
    """Returns the seed, or the seeds, that keys were made of: the second number of each, if the first one is 0."""
    rows = np.atleast_2d(np.asarray([] if keys is None else keys, np.int64))
    found = [int(row[1]) if row[0] == 0 else row.tolist() for row in rows if row.size]
    return _brief(found[0] if np.ndim(keys) == 1 and found else found)


def _brief(value: Any) -> str:
    if value is None:
        return "none"
    text = shortened(str(value))
    return text if len(text) <= 200 else text[:200] + "..."


def _words(value: Any) -> str:
    """A number, an array or a name, exact to the bit."""
    if isinstance(value, np.ndarray | jax.Array | np.generic):
        return str(np.asarray(value).tolist())
    return getattr(value, "__name__", None) or _ADDRESS.sub("", str(value))


def rule_in_words(rule: Any) -> dict[str, Any]:
    """Returns a rule's kind and what it was made with, ready for JSON."""
    kind = {"kind": type(rule).__name__}
    if not dataclasses.is_dataclass(rule):
        return kind | {tree.name(path): _words(leaf) for path, leaf in jax.tree.leaves_with_path(rule)}
    values = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule) if field.init}
    return kind | {name: rule_in_words(v) if dataclasses.is_dataclass(v) else _words(v) for name, v in values.items()}


def _generator(engine: Engine, key: Array) -> dict[str, str]:
    """Returns what random bits depend on besides the seed."""
    kind = str(jax.random.key_impl(key))
    partitionable: bool = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    if kind == "threefry2x32":
        return {"prng": kind, "jax_threefry_partitionable": str(partitionable)}
    return {"prng": kind, "devices": str(engine.placed.num_devices), "replica_axis": engine.replica_axis}


def _programs(
    engine: Engine, state: RunState, replica: Replicas, seeds: int, data: Data
) -> Iterator[tuple[str, ClosedJaxpr]]:
    """Yields one replica's training step, its evaluation, and the exchange, as JAX traces them."""
    size = engine.batch_size
    train = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), data.train)
    weight = None if data.train is None else jax.ShapeDtypeStruct((size,), jnp.bool)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    step = jax.make_jaxpr(lambda *args: train_step(engine.problem, engine.optimizer, engine.schedule, *args))
    yield "a training step of problem, optimizer and schedule", step(replica, train, weight, number)
    score = jax.make_jaxpr(engine.problem.evaluate)
    yield "evaluation", score(replica.params, replica.model_state, _abstract(data.valid))

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape[seeds:], leaf.dtype)

    rule, ladders, rung, hyper = jax.tree.map(
        one, (state.rule, state.ladders, state.replicas.rung, state.replicas.hyper)
    )
    replicas = engine.num_replicas
    energy = jax.ShapeDtypeStruct((replicas,), jnp.float32)
    noise = {}
    if engine.rule.noise_corrected:
        noise["variance"] = jax.ShapeDtypeStruct((replicas, replicas), jnp.float32)
    propose = jax.make_jaxpr(lambda rule, *args, **noise: rule.propose(*args, **noise)[0])
    key, allowed = jax.ShapeDtypeStruct((), state.key.dtype), jax.ShapeDtypeStruct((), jnp.bool)
    yield "the rule's exchange", propose(rule, key, number, energy, rung, hyper, ladders, allowed, **noise)


def _hash(program: ClosedJaxpr) -> str:
    """Returns a digest of a traced program: its text without addresses, and the arrays that it closes over."""
    digest = hashlib.sha256(_ADDRESS.sub("", str(program)).encode())
    for leaf in _constants(program):
        digest.update((_shape(leaf) + _checksum(leaf)).encode())
    return digest.hexdigest()[:16]


def _constants(program: ClosedJaxpr | Jaxpr) -> Iterator[Any]:
    """Yields the arrays that a program closes over, those of what it calls included: its text does not show them."""
    if isinstance(program, ClosedJaxpr):
        yield from map(jnp.asarray, program.consts)
        program = program.jaxpr
    for eqn in program.eqns:
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: isinstance(p, ClosedJaxpr | Jaxpr)):
            if isinstance(inner, ClosedJaxpr | Jaxpr):
                yield from _constants(inner)


def _abstract(examples: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), examples)


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _checksum(leaf: Any) -> str:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return ""
    return f" {zlib.crc32(np.ascontiguousarray(tree.plain(leaf)).tobytes()):08x}"
