"""Pairings: they choose the adjacent pairs of rungs that are offered a swap; pair i is rungs i and i + 1."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree

Pairing = Callable[[Key[Array, ""], Int[Array, ""], int], Bool[Array, " P"]]
"""(key, turn of this ladder, M) -> booleans [M - 1], true for adjacent pairs that are offered a swap.

No two offered pairs may share a rung. The function is traced: branches on the key or the turn need `jnp.where`."""
_TRIED = 512
"""Number of exchanges for which `check_pairing` tries a pairing."""


def random_adjacent(key: Key[Array, ""], turn: Int[Array, ""], num_rungs: int) -> Bool[Array, " P"]:
    """Offers one adjacent pair, chosen uniformly (algorithm 1 of arXiv 1909.04013)."""
    del turn
    pairs = num_rungs - 1
    return jnp.arange(pairs) == jax.random.randint(key, (), 0, pairs)


def seo(key: Key[Array, ""], turn: Int[Array, ""], num_rungs: int) -> Bool[Array, " P"]:
    """Stochastic even-odd: offers all even pairs or all odd pairs, by a fair coin (Syed et al., arXiv 1905.02939)."""
    del turn
    return _parity(jax.random.bernoulli(key).astype(jnp.int32), num_rungs)


def deo(key: Key[Array, ""], turn: Int[Array, ""], num_rungs: int) -> Bool[Array, " P"]:
    """Deterministic even-odd: offers all even pairs, then all odd pairs, in turn (Okabe et al. 2001; arXiv 1905.02939).

    A replica that has just moved up is next offered the rung above, so replicas travel steadily instead of diffusing.
    As rungs are added, round trips keep their frequency, while under the reversible pairings they die out. Two rungs
    have one pair, which every exchange offers a swap.
    """
    del key
    return _parity(turn % 2 if num_rungs > 2 else 0, num_rungs)


PAIRINGS: dict[str, Pairing] = {"random_adjacent": random_adjacent, "seo": seo, "deo": deo}
"""{name: pairing}."""


def named(pairing: Pairing | str) -> Pairing:
    """Returns the pairing with that name; returns a function unchanged.

    Raises:
        ValueError: no pairing has that name.
    """
    if callable(pairing):
        return pairing
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing must be one of {', '.join(PAIRINGS)}, or a function, but it is {pairing!r}")
    return PAIRINGS[pairing]


def offered(pairing: Pairing, key: Key[Array, ""], turn: Int[Array, ""], num_rungs: int) -> Bool[Array, " P"]:
    """Returns the pairs that a pairing offers, without those that share a rung with a pair already kept.

    Pairs are considered in ascending order: in a row of adjacent pairs the first is kept, the second left out, and so
    on. The choice does not depend on energies, so each exchange leaves the joint law of the rungs invariant.

    Raises:
        ValueError: the pairing does not return num_rungs - 1 booleans.
    """
    pairs = pairing(key, turn, num_rungs)
    if any(pairing is known for known in PAIRINGS.values()):
        return pairs
    _check_pairs(pairs, num_rungs)
    place = jnp.arange(num_rungs - 1)
    # The last pair at or before each pair that is not offered; the distance to it is a pair's place in its row.
    closed = jax.lax.cummax(jnp.where(pairs, -1, place))
    return pairs & ((place - closed) % 2 == 1)


def check_pairing(pairing: Pairing, num_rungs: int) -> None:
    """Raises ValueError if a pairing's result is not booleans [M - 1], or pairs overlap; tries `_TRIED` turns."""
    if any(pairing is known for known in PAIRINGS.values()):
        return
    turns = jnp.arange(_TRIED)
    keys = jax.random.split(jax.random.key(0), _TRIED)
    try:
        pairs = jax.jit(jax.vmap(lambda key, turn: _check_pairs(pairing(key, turn, num_rungs), num_rungs)))(keys, turns)
    except (TypeError, jax.errors.ConcretizationTypeError) as error:
        raise ValueError(
            f"pairing is called as pairing(key, turn, num_rungs) with a traced key and turn, and num_rungs={num_rungs},"
            f" but it fails with {type(error).__name__}: {error}"
        ) from error
    overlap = np.asarray(pairs[:, :-1] & pairs[:, 1:])
    if overlap.any():
        turn, pair = np.argwhere(overlap)[0].tolist()
        raise ValueError(
            f"pairing must offer pairs that do not share a rung, but for turn={turn} and num_rungs={num_rungs} it "
            f"offers rungs ({pair}, {pair + 1}) and ({pair + 1}, {pair + 2}) together: "
            f"{np.asarray(pairs[turn]).tolist()}; offer every other pair, as jaxpt.deo does"
        )


def _check_pairs(pairs: PyTree, num_rungs: int) -> Bool[Array, " P"]:
    """Returns a pairing's result unchanged.

    Raises:
        ValueError: it is not one boolean per adjacent pair.
    """
    if getattr(pairs, "shape", None) != (num_rungs - 1,) or pairs.dtype != jnp.bool_:
        given = f"{pairs.dtype}{list(pairs.shape)}" if hasattr(pairs, "dtype") else repr(pairs)
        raise ValueError(
            f"pairing must return an array with one boolean per adjacent pair, bool[{num_rungs - 1}] for {num_rungs} "
            f"rungs, but it returns {given}"
        )
    return jnp.asarray(pairs)


def _parity(parity: Int[Array, ""] | int, num_rungs: int) -> Bool[Array, " P"]:
    return jnp.arange(num_rungs - 1) % 2 == parity
