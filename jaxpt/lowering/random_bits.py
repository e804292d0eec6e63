"""Random bits in loops that XLA:CPU turns into vector instructions; the bits are those of JAX."""

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
    if eqn.primitive.name != "random_bits":
        return False
    given, shape = (tuple(getattr(atom.aval, "shape", ())) for atom in (eqn.invars[0], eqn.outvars[0]))
    # Without this option JAX draws other bits, from pairs of counters.
    partitionable: bool = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    return given == () and eqn.params["bit_width"] == 32 and partitionable and LEAST <= math.prod(shape) < 2**32


def apply(eqn: JaxprEqn, read: Callable[[Any], Any], made_by: Mapping[Any, JaxprEqn]) -> Array:
    """Returns the output of an equation for which `applies` is true; arguments as in `elementwise.apply`."""
    del made_by
    key = read(eqn.invars[0])
    # Keys of other generators keep JAX's own equation.
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return eqn.primitive.bind(key, **eqn.params)
    return random_bits(key, eqn.params["shape"])


def random_bits(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Returns `jax.random.bits(key, shape)` for a key of the default kind: Threefry-2x32 with 20 rounds.

    (Salmon et al. 2011, doi:10.1145/2063384.2063405.) On CPUs, JAX loops over groups of rounds and stores both words
    after each group; here they stay in registers.
    """
    words, size = jax.random.key_data(key), math.prod(shape)
    # Equal parts of the counters 0 .. size - 1; surplus bits of the last part are cut off.
    each = -(-size // PARTS)
    count = lax.iota(np.uint32, each)
    bits = lax.map(lambda part: _threefry(words, part * np.uint32(each) + count), lax.iota(np.uint32, PARTS))
    return bits.reshape(-1)[:size].reshape(shape)


def _threefry(words: UInt32[Array, "2"], count: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    """Returns the two words of each block (0, count), combined as in `jax.random.bits`."""
    # The constant is the parity of Threefry's key schedule; five groups of four rounds.
    keys = words[0], words[1], words[0] ^ words[1] ^ np.uint32(0x1BD11BDA)
    a, b = jnp.zeros_like(count) + keys[0], count + keys[1]
    for turn in range(5):
        for rotation in _ROTATIONS[turn % 2]:
            a = a + b
            b = a ^ (b << np.uint32(rotation) | b >> np.uint32(32 - rotation))
        a, b = a + keys[(turn + 1) % 3], b + keys[(turn + 2) % 3] + np.uint32(turn + 1)
    return a ^ b
