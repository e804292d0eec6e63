"""Elementwise functions and random bits in loops that XLA:CPU turns into vector instructions.

XLA:CPU vectorises the innermost axis, but unrolls one of up to 32 numbers first, which leaves a call for each number: a
tanh of [128, 10, 10, 16] takes four times as long as one of [204800]. A reshape alone is merged with what comes before
and after; a loop over a few parts is not.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn
from jaxtyping import Array, Key, UInt32

_FUNCTIONS = frozenset(("exp", "expm1", "log", "log1p", "logistic", "tanh", "erf"))
_PARTS = 4  # of a loop: few, and each large; 2 to 8 are as fast
_LEAST = 16384  # numbers that are worth a loop
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def applies(eqn: JaxprEqn) -> bool:
    """Whether an equation of a traced program is faster by `apply`."""
    name = eqn.primitive.name
    if name not in _FUNCTIONS and name != "random_bits":
        return False
    given, shape = (tuple(getattr(atom.aval, "shape", ())) for atom in (eqn.invars[0], eqn.outvars[0]))
    if not _LEAST <= math.prod(shape) < 2**32:
        return False
    if name == "random_bits":
        partitionable: bool = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
        return given == () and eqn.params["bit_width"] == 32 and partitionable
    return len(shape) > 1 and shape[-1] <= 32 and math.prod(shape) % _PARTS == 0


def apply(eqn: JaxprEqn, x: Any) -> Array:
    """Returns the output of an equation that `applies`; x is its argument. Bits are those of JAX."""
    bind = partial(eqn.primitive.bind, **eqn.params)
    if eqn.primitive.name != "random_bits":
        return lax.map(bind, x.reshape(_PARTS, -1)).reshape(x.shape)
    return random_bits(x, eqn.params["shape"]) if str(jax.random.key_impl(x)) == "threefry2x32" else bind(x)


def random_bits(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Returns `jax.random.bits(key, shape)` for a key of the default kind: Threefry-2x32 with 20 rounds.

    (Salmon et al. 2011, doi:10.1145/2063384.2063405.) On CPUs, JAX loops over groups of rounds and stores both words
    after each; here they stay in registers.
    """
    words, size = jax.random.key_data(key), math.prod(shape)
    each = -(-size // _PARTS)
    count = lax.iota(np.uint32, each)
    bits = lax.map(lambda part: _threefry(words, part * np.uint32(each) + count), lax.iota(np.uint32, _PARTS))
    return bits.reshape(-1)[:size].reshape(shape)


def _threefry(words: UInt32[Array, "2"], count: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    """Returns the two words of each block (0, count), combined as in `jax.random.bits`."""
    keys = words[0], words[1], words[0] ^ words[1] ^ np.uint32(0x1BD11BDA)
    a, b = jnp.zeros_like(count) + keys[0], count + keys[1]
    for turn in range(5):
        for rotation in _ROTATIONS[turn % 2]:
            a = a + b
            b = a ^ (b << np.uint32(rotation) | b >> np.uint32(32 - rotation))
        a, b = a + keys[(turn + 1) % 3], b + keys[(turn + 2) % 3] + np.uint32(turn + 1)
    return a ^ b
