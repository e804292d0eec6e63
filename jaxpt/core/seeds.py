"""Turns seeds into keys; different seeds give different keys or an error."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

GENERATORS = ("threefry2x32", "rbg", "unsafe_rbg")


def keys(seed: int, seeds: Sequence[int] | None, prng: str | None) -> jax.Array:
    """Returns the key of one seed, or an array of keys for several.

    Args:
        seed: one seed, used if `seeds` is None.
        seeds: several different seeds.
        prng: one of `GENERATORS`, or None for JAX's default.

    Raises:
        ValueError: no such generator; seeds are not integers, not different, or have more bits than JAX's keys hold.
    """
    if prng not in (None, *GENERATORS):
        raise ValueError(f"prng must be one of {', '.join(GENERATORS)}, or None for JAX's own, but it is {prng!r}")
    wanted = [seed] if seeds is None else list(seeds) if isinstance(seeds, Sequence | np.ndarray) else None
    if not wanted or not all(isinstance(s, int | np.integer) for s in wanted) or len(set(wanted)) < len(wanted):
        raise ValueError(
            "seed must be an integer, and seeds a sequence of one or more different integers, e.g. range(5), but they "
            f"are seed={seed!r}, seeds={seeds!r}"
        )
    if seeds is not None and seed != 0:
        raise ValueError(f"give seed={seed!r} or seeds={seeds!r}, not both")
    made = jax.vmap(partial(jax.random.key, impl=prng))(_bits([int(s) for s in wanted]))
    return made[0] if seeds is None else made


def _bits(wanted: list[int]) -> np.ndarray:
    """Returns seeds as integers that JAX does not truncate."""
    wide: bool = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    low, high = (-(2**63), 2**63 - 1) if wide else (-(2**31), 2**32 - 1)
    if outside := [s for s in wanted if not low <= s <= high]:
        raise ValueError(
            f"a seed must lie in {low} .. {high}, but it is {outside[0]}: JAX's keys take {64 if wide else 32} bits of "
            "it, and seeds that agree in these would be one run; take a smaller number"
        )
    if wide:
        return np.array(wanted, np.int64)
    cut = [s % 2**32 for s in wanted]
    if len(set(cut)) < len(cut):
        pair = next((a, b) for i, b in enumerate(wanted) for a in wanted[:i] if (a - b) % 2**32 == 0)
        raise ValueError(
            f"the seeds {pair[0]} and {pair[1]} are the same 32 bits, and so the same run; take one of them"
        )
    return np.array(cut, np.uint32)
