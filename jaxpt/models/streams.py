"""Random streams of a Linen module, found while it is traced."""

import zlib
from collections.abc import Callable
from typing import TypeVar, cast

import jax
from flax.errors import InvalidRngError
from jaxtyping import Array, Key

from jaxpt.models.asked import asked

T = TypeVar("T")


def apply_with_streams(
    apply: Callable[[dict[str, Array]], T],
    key: Key[Array, ""],
    streams: set[str],
    looked: bool,
    sown: set[tuple[str, ...]],
) -> T:
    """Returns the result of `apply(rngs)`, with a key for each random stream that the module draws from.

    The streams become known only during tracing, so the module is traced again until it requests no new one.

    Args:
        apply: {stream: key} -> outputs.
        key: the key from which the streams' keys are derived.
        streams: names known so far; newly found names are added.
        looked: whether streams that the module only checks for (`has_rng`) count too; in training they do.
        sown: paths known to be sown into; newly found paths are added.

    Raises:
        ValueError: a stream is not available where the module draws from it.
    """
    while True:
        # One stream gets the key itself, each other a key derived from its name, so streams do not affect each other.
        own = {
            name: key if name == "dropout" else jax.random.fold_in(key, zlib.crc32(name.encode())) for name in streams
        }
        out: T | None = None
        missing: InvalidRngError | None = None
        with asked() as found:
            try:
                out = apply(own)
            except InvalidRngError as error:
                missing = error
        wanted = found.drawn | (found.looked - {"params"} if looked else set())
        if lost := sorted(found.lost & streams):
            raise ValueError(
                f"the module draws from the random stream {lost[0]!r} inside a lifted transformation that does not "
                f"pass it on; name it there: split_rngs={{{lost[0]!r}: True}} for other numbers at each step, False "
                "for the same at all"
            ) from missing
        if missing is None and wanted <= streams and found.sown <= sown:
            return cast(T, out)
        if wanted <= streams and found.sown <= sown:
            raise cast(InvalidRngError, missing)
        streams |= wanted
        sown |= found.sown
