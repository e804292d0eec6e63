"""The static geometry of a two-dimensional convolution: sizes, strides, padding."""

from collections.abc import Sequence
from typing import NamedTuple

from jax import lax

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """Sizes, strides and padding; each a pair (rows, columns)."""

    image: Pair
    """(H, W) of the images."""
    kernel: Pair
    """(h, w) of the kernel."""
    strides: Pair
    """Steps between windows."""
    padding: tuple[Pair, Pair]
    """((top, bottom), (left, right)); negative numbers crop."""

    @property
    def output(self) -> Pair:
        """(rows, columns) of the output."""
        # A kernel larger than the padded image has no output.
        rows, columns = (
            max(0, (n + sum(p) - k) // s + 1)
            for n, k, s, p in zip(self.image, self.kernel, self.strides, self.padding, strict=True)
        )
        return rows, columns


def geometry(
    image: Sequence[int], kernel: Sequence[int], strides: Sequence[int], padding: str | Sequence[Sequence[int]]
) -> Geometry:
    """Returns a convolution's geometry; padding is "SAME", "VALID", "SAME_LOWER" or (low, high) per axis."""
    if isinstance(padding, str):
        # lax's own function, so that names mean the same here.
        padding = lax.padtype_to_pads(image, kernel, strides, padding)
    (top, bottom), (left, right) = ((int(low), int(high)) for low, high in padding)
    return Geometry(_pair(image), _pair(kernel), _pair(strides), ((top, bottom), (left, right)))


# Python integers, so that geometries can be compared and hashed.
def _pair(numbers: Sequence[int]) -> Pair:
    rows, columns = (int(n) for n in numbers)
    return rows, columns
