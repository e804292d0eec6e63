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


def seo(key: Key[Array, ""], turn: Int[Array, ""], num_rungs: int) -> Bool[Array, " P"]:
    """Stochastic even-odd: all even pairs or all odd pairs, by a fair coin (Syed et al., arXiv 1905.02939)."""
    del turn
    return _parity(jax.random.bernoulli(key).astype(jnp.int32), num_rungs)


def deo(key: Key[Array, ""], turn: Int[Array, ""], num_rungs: int) -> Bool[Array, " P"]:
    """Deterministic even-odd: all even pairs, then all odd pairs, in turn (Okabe et al. 2001; arXiv 1905.02939).

    A replica that has just moved up is offered the next rung up, so replicas travel instead of diffusing: with many
    rungs round trips stay as frequent as they are, while under the reversible pairings they die out.
    """
    del key
    return _parity(turn % 2, num_rungs)


PAIRINGS: dict[str, Pairing] = {"random_adjacent": random_adjacent, "seo": seo, "deo": deo}
"""The pairings by their names."""


def named(pairing: Pairing | str) -> Pairing:
    """Returns the pairing of that name; a function as it is.

    Raises:
        ValueError: there is none of that name.
    """
    if callable(pairing):
        return pairing
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing must be one of {', '.join(PAIRINGS)}, or a function, but it is {pairing!r}")
    return PAIRINGS[pairing]


def _parity(parity: Int[Array, ""], num_rungs: int) -> Bool[Array, " P"]:
    return jnp.arange(num_rungs - 1) % 2 == parity
