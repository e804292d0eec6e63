"""Random bits and keys in a form that XLA:CPU turns into a few vector instructions; the bits are those of JAX."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn
from jaxtyping import Array, Key, UInt32

from jaxpt.lowering.elementwise import LEAST, PARTS

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def applies(eqn: JaxprEqn) -> bool:
    """Returns whether `apply` makes an equation of a traced program faster."""
    name = eqn.primitive.name
    # Without this option JAX draws other bits and splits keys otherwise, from pairs of counters.
    if name not in _MADE or not jax.config.jax_threefry_partitionable:  # type: ignore[attr-defined]
        return False
    if name != "random_bits":
        return True
    given, shape = (tuple(getattr(atom.aval, "shape", ())) for atom in (eqn.invars[0], eqn.outvars[0]))
    # Many bits for each of several keys keep JAX's loop: in one piece they would be hashed again for each use.
    return eqn.params["bit_width"] == 32 and math.prod(shape) < (2**32 if given == () else LEAST)


def apply(eqn: JaxprEqn, read: Callable[[Any], Any], made_by: Mapping[Any, JaxprEqn]) -> Array:
    """Returns the output of an equation for which `applies` is true; arguments as in `elementwise.apply`."""
    del made_by
    key, *more = map(read, eqn.invars)
    # Keys of other generators keep JAX's own equation.
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return eqn.primitive.bind(key, *more, **eqn.params)
    return _MADE[eqn.primitive.name](key, *more, *(eqn.params[name] for name in ("shape",) if name in eqn.params))


def random_bits(key: Key[Array, "*K"], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Returns `jax.random.bits(key, shape)` for keys of the default kind: Threefry-2x32 with 20 rounds.

    (Salmon et al. 2011, doi:10.1145/2063384.2063405.) On CPUs, JAX loops over groups of rounds and stores both words
    after each group, some eighty small operations; here they stay in registers, in one operation.
    """
    size = math.prod(shape)
    if size < LEAST or key.shape:
        first, second = _threefry(*_words(key, shape), *_counters(shape))
        return first ^ second
    words = _words(key, ())
    # Equal parts of the counters 0 .. size - 1; surplus bits of the last part are cut off.
    each = -(-size // PARTS)
    count = lax.iota(np.uint32, each)

    def part(number: UInt32[Array, ""]) -> UInt32[Array, " n"]:
        first, second = _threefry(*words, np.uint32(0), number * np.uint32(each) + count)
        return first ^ second

    return lax.map(part, lax.iota(np.uint32, PARTS)).reshape(-1)[:size].reshape(shape)


def fold_in(key: Key[Array, "*K"], number: UInt32[Array, "*K"]) -> Key[Array, "*K"]:
    """Returns `jax.random.fold_in(key, number)` for keys of the default kind."""
    return _key(_threefry(*_words(key, ()), np.uint32(0), number))


def split(key: Key[Array, "*K"], shape: tuple[int, ...]) -> Key[Array, "..."]:
    """Returns `jax.random.split(key, shape)` for keys of the default kind."""
    return _key(_threefry(*_words(key, shape), *_counters(shape)))


def _words(key: Key[Array, "*K"], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Returns a key's two words [*K, 1, ...], to be combined with an array of a shape."""
    words = jax.random.key_data(key)
    words = words.reshape(*key.shape, *(1 for _ in shape), 2)
    return words[..., 0], words[..., 1]


def _key(words: tuple[Array, Array]) -> Key[Array, "..."]:
    return jax.random.wrap_key_data(jnp.stack(words, -1), impl="threefry2x32")


def _counters(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Returns the two words of the numbers 0, 1, ... in an array's order; below 2**32, so the first is 0."""
    count = lax.iota(np.uint32, math.prod(shape)).reshape(shape)
    return jnp.zeros_like(count), count


_MADE: dict[str, Callable[..., Array]] = {"random_bits": random_bits, "random_fold_in": fold_in, "random_split": split}


@jax.jit  # traced once for each shape
def _threefry(
    one: UInt32[Array, "*n"], other: UInt32[Array, "*n"], first: UInt32[Array, "*n"], second: UInt32[Array, "*n"]
) -> tuple[UInt32[Array, "*n"], UInt32[Array, "*n"]]:
    """Returns the two words of the block (first, second) under the key (one, other); shapes broadcast."""
    # The constant is the parity of Threefry's key schedule; five groups of four rounds.
    keys = one, other, one ^ other ^ np.uint32(0x1BD11BDA)
    a, b = first + keys[0], second + keys[1]
    for turn in range(5):
        for rotation in _ROTATIONS[turn % 2]:
            a = a + b
            b = a ^ (b << np.uint32(rotation) | b >> np.uint32(32 - rotation))
        a, b = a + keys[(turn + 1) % 3], b + keys[(turn + 2) % 3] + np.uint32(turn + 1)
    return a, b
