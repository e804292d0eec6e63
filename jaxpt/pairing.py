"""Which adjacent pairs of rungs are offered a swap; pair i is rungs i and i + 1."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

Pairing = Callable[[Key[Array, ""], Int[Array, ""], int], Bool[Array, " P"]]
"""(key, turn of this ladder, M) -> which of the M - 1 adjacent pairs are offered a swap; no two may share a rung."""


def random_adjacent(key: Key[Array, ""], turn: Int[Array, ""], num_rungs: int) -> Bool[Array, " P"]:
    """One adjacent pair, each with the same probability (algorithm 1 of arXiv 1909.04013)."""
    del turn
    pairs = num_rungs - 1
    return jnp.arange(pairs) == jax.random.randint(key, (), 0, pairs)
