"""A description of all that a run's numbers depend on: written beside its checkpoints, compared on resumption."""

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
from jaxpt.core.types import Observation
from jaxpt.engine.engine import Engine
from jaxpt.engine.replica import reported, train_step

FORMAT = 4
"""Format version of run directories; other versions cannot be read."""
_NUMBERS = ("every", "burn_in", "batch_size", "own_batches", "drop_remainder", "probe", "rescale_momentum", "precision")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # a function's address in its repr, which differs between processes
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "jaxpt")


def describe(engine: Engine, state: RunState, key: Array, data: Data) -> dict[str, Any]:
    """Returns the settings that must not change when a run is resumed, ready for JSON.

    They do not include the number of steps, the devices, or the order of execution.

    Args:
        engine: the engine of the run.
        state: its first state, as arrays or shapes.
        key: the key of the seed, or the keys of several.
        data: the splits on the host; for a stream, `train` is a minibatch as shapes.
    """
    # Replicas lead with (seeds,) replicas; programs are traced for one of them, so their number does not matter.
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[key.ndim + 1 :], leaf.dtype), state.replicas)
    return {
        "format": FORMAT,
        "versions": {name: version for name, version in versions().items() if name in _PACKAGES},
        # Keys of any kind as plain numbers, so that JSON can hold them.
        "seeds": {"keys": np.asarray(jax.random.key_data(key)).tolist(), **_generator(engine, key)},
        "engine": {name: _words(getattr(engine, name)) for name in _NUMBERS}
        # "keep" and "stop" compute the same numbers, so a run may change from one to the other.
        | {"diverged": "respawn" if engine.diverged == "respawn" else "keep or stop"},
        **({} if engine.beginning is None else {"search": rule_in_words(engine.beginning)}),
        **({} if engine.ending is None else {"cooldown": rule_in_words(engine.ending)}),
        "fixed": {name: _words(value) for name, value in engine.fixed.items()},
        "ladders": {
            name: {"beta": _words(ladder.beta), **{key: _words(values) for key, values in ladder.values.items()}}
            for name, ladder in engine.ladders.items()
        },
        **shapes(engine, state),
        "data": _arrays(data._asdict()),
        "programs": {name: _hash(program) for name, program in _programs(engine, state, first, key.ndim, data)},
    }


def _arrays(arrays: PyTree) -> dict[str, str]:
    """Returns {name: type, shape and checksum} of arrays."""
    return {tree.name(path): _shape(leaf) + _checksum(leaf) for path, leaf in jax.tree.leaves_with_path(arrays)}


def shapes(engine: Engine, state: RunState) -> dict[str, Any]:
    """Returns the settings that a checkpoint's arrays depend on, and the given weights, ready for JSON."""
    return {
        "rule": rule_in_words(engine.rule),
        "replicas": {tree.name(path): _shape(leaf) for path, leaf in jax.tree.leaves_with_path(state.replicas)},
        **({} if engine.problem.given is None else {"given": _arrays(engine.problem.given)}),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Returns a line "what: then -> now" for each difference between two descriptions.

    Programs (of problem, optimiser, schedule and rule) are compared only if the same versions of the packages traced
    them.
    """
    # At the top level only: another version may trace the same function to another program.
    if not where and then.get("versions") != now.get("versions"):
        then, now = ({k: v for k, v in side.items() if k not in ("versions", "programs")} for side in (then, now))
    found = []
    # The names of both sides, each once, in their order.
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
    """Returns the seed or seeds from which keys were made: the second number of each key, if the first is 0."""
    rows = np.atleast_2d(np.asarray([] if keys is None else keys, np.int64))
    found = [int(row[1]) if row[0] == 0 else row.tolist() for row in rows if row.size]
    return _brief(found[0] if np.ndim(keys) == 1 and found else found)


def _brief(value: Any) -> str:
    if value is None:
        return "none"
    text = shortened(str(value))
    return text if len(text) <= 200 else text[:200] + "..."


def _words(value: Any) -> str:
    """Returns a number, an array or a name as text, exact to the bit."""
    # `tolist` gives Python numbers, whose text is exact; the text of an array is rounded.
    if isinstance(value, np.ndarray | jax.Array | np.generic):
        return str(np.asarray(value).tolist())
    return getattr(value, "__name__", None) or _ADDRESS.sub("", str(value))


def rule_in_words(rule: Any) -> dict[str, Any]:
    """Returns a rule's class name and its arguments, ready for JSON."""
    kind = {"kind": type(rule).__name__}
    if not dataclasses.is_dataclass(rule):
        return kind | {tree.name(path): _words(leaf) for path, leaf in jax.tree.leaves_with_path(rule)}
    # The arguments alone: fields with init=False hold the state, which changes during a run.
    values = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule) if field.init}
    for name in [name for name, value in values.items() if isinstance(value, Mapping)]:
        values |= {f"{name} {key}": value for key, value in values.pop(name).items()}
    return kind | {name: rule_in_words(v) if dataclasses.is_dataclass(v) else _words(v) for name, v in values.items()}


def _generator(engine: Engine, key: Array) -> dict[str, str]:
    """Returns the settings that random bits depend on, besides the seed."""
    kind = str(jax.random.key_impl(key))
    partitionable: bool = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    if kind == "threefry2x32":
        return {"prng": kind, "jax_threefry_partitionable": str(partitionable)}
    # Other generators draw the bits of a vmapped batch of keys from its first key, so the split of replicas matters.
    return {"prng": kind, "devices": str(engine.placed.num_devices), "replica_axis": engine.replica_axis}


def _programs(
    engine: Engine, state: RunState, replica: Replicas, seeds: int, data: Data
) -> Iterator[tuple[str, ClosedJaxpr]]:
    """Yields one replica's training step, its evaluation, and the exchange, as JAX traces them."""
    # One replica and one minibatch: the programs are the same however many replicas a device runs.
    size = engine.batch_size
    train = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), data.train)
    weight = None if data.train is None else jax.ShapeDtypeStruct((size,), jnp.bool)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    # Given weights are arguments, so that a change of them is not one of the programs.
    step = jax.make_jaxpr(lambda problem, *args: train_step(problem, engine.optimizer, engine.schedule, *args))
    yield "a training step of problem, optimizer and schedule", step(engine.problem, replica, train, weight, number)
    score = jax.make_jaxpr(lambda problem, *args: problem.evaluate(*args))
    yield "evaluation", score(engine.problem, replica.params, replica.model_state, _abstract(data.valid))
    if engine.draws is not None:
        yield "draws", jax.make_jaxpr(engine.draws)(replica.params)

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape[seeds:], leaf.dtype)

    # One seed's ladder: the leading axis of seeds is dropped.
    rule, ladders, rung, hyper = jax.tree.map(
        one, (state.rule, state.ladders, state.replicas.rung, state.replicas.hyper)
    )
    replicas = engine.num_replicas
    energy = jax.ShapeDtypeStruct((replicas,), jnp.float32)
    variance = jax.ShapeDtypeStruct((replicas, replicas), jnp.float32) if engine.rule.noise_corrected else None
    # The move is the output; the rule's next state and the record are left out.
    propose = jax.make_jaxpr(lambda rule, key, seen: rule.propose(key, seen)[0])
    key, allowed = jax.ShapeDtypeStruct((), state.key.dtype), jax.ShapeDtypeStruct((), jnp.bool)
    parts = (allowed if part is not None else None for part in (engine.ending, engine.beginning))
    make: Any = Observation
    told = jax.tree.map(lambda _: energy, jax.eval_shape(reported, replica.opt_state))
    seen = make(number, energy, rung, hyper, ladders, allowed, variance, *parts, reported=told)
    yield "the rule's exchange", propose(rule, key, seen)


def _hash(program: ClosedJaxpr) -> str:
    """Returns a digest of a traced program: of its text without addresses, and of the arrays that it closes over."""
    digest = hashlib.sha256(_ADDRESS.sub("", str(program)).encode())
    for leaf in _constants(program):
        digest.update((_shape(leaf) + _checksum(leaf)).encode())
    return digest.hexdigest()[:16]


def _constants(program: ClosedJaxpr | Jaxpr) -> Iterator[Any]:
    """Yields the arrays that a program and its nested programs close over; the program's text does not show them."""
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
    if isinstance(leaf, jax.ShapeDtypeStruct):  # a stream's minibatch: its examples are not compared
        return ""
    return f" {zlib.crc32(np.ascontiguousarray(tree.plain(leaf)).tobytes()):08x}"
