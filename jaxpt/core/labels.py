"""Whether a loss refuses the labels of a data set: shown to it as they are, before the first step and in a stream."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


def extremes(split: PyTree) -> PyTree | None:
    """Returns the examples with the two least and the two greatest values of each array of integers, as they are.

    A loss that checks the range of its labels needs no others: of two, one may be a label that it ignores. Arrays of
    other types become abstract.

    Args:
        split: leaves [N, ...], on the host or a device.

    Returns:
        Leaves [n, ...], n at most four for each array of integers; None if none has more than one axis, or if the
        numbers cannot be read.
    """
    leaves, treedef = jax.tree.flatten(split)
    integer = [_readable(leaf) and np.issubdtype(leaf.dtype, np.integer) for leaf in leaves]
    if not any(known and leaf.ndim > 1 for known, leaf in zip(integer, leaves, strict=True)):
        return None
    rows = np.unique([row for known, leaf in zip(integer, leaves, strict=True) if known for row in _ends(leaf)])
    return jax.tree.unflatten(
        treedef,
        [
            np.asarray(leaf)[rows] if known else jax.ShapeDtypeStruct((len(rows), *leaf.shape[1:]), leaf.dtype)
            for known, leaf in zip(integer, leaves, strict=True)
        ],
    )


def _readable(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
        return leaf.size > 0 and leaf.is_fully_addressable
    return isinstance(leaf, np.ndarray) and leaf.size > 0


def _ends(leaf: Any) -> list[int]:
    """Returns where, on the first axis, an array has its two least and its two greatest values."""
    numbers = np.asarray(leaf)
    each = numbers.size // len(numbers)
    return [int((numbers == value).argmax()) // each for value in _outermost(numbers)]


def _outermost(numbers: np.ndarray) -> tuple[int, int, int, int]:
    """Returns the least value, the next one, the last but one and the greatest; equal where there are fewer."""
    least, greatest = numbers.min(), numbers.max()
    low = numbers.min(where=numbers > least, initial=greatest)
    high = numbers.max(where=numbers < greatest, initial=least)
    return int(least), int(low), int(high), int(greatest)


class StreamLabels:
    """Looks at the integers of a stream's minibatches; a value beyond those seen so far is shown to the loss.

    Between the outermost value and the next one there may be any number of others: a label that the loss ignores lies
    apart from the classes. A value that falls into this gap is shown to the loss as well.

    Args:
        check: raises ValueError if the loss refuses a minibatch, given with its integers as they are.
    """

    def __init__(self, check: Callable[[PyTree], None]):
        self._check = check
        self._seen: list[tuple[int, int, int, int] | None] = []
        """The two least and the two greatest values of each array of integers; None if the loss takes any value."""

    def __call__(self, batch: PyTree, what: str) -> None:
        """Looks at one minibatch.

        Args:
            batch: leaves [B, ...], NumPy arrays.
            what: how an error names it.

        Raises:
            ValueError: the loss refuses its labels.
        """
        integers = [leaf for leaf in jax.tree.leaves(batch) if np.issubdtype(leaf.dtype, np.integer)]
        ranges = [_outermost(leaf) for leaf in integers]
        if not integers:
            return
        first = not self._seen
        if not first and all(
            known is None or _within(new, known) for new, known in zip(ranges, self._seen, strict=True)
        ):
            return
        try:
            self._check(batch)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
        if first:
            self._seen = [None if self._takes_any(batch, i) else ends for i, ends in enumerate(ranges)]
        else:
            self._seen = [
                known and _outermost(np.array([*known, *new])) for new, known in zip(ranges, self._seen, strict=True)
            ]

    def _takes_any(self, batch: PyTree, place: int) -> bool:
        """Whether the loss takes an array of integers with any values, as it does where they are no labels."""
        leaves, treedef = jax.tree.flatten(batch)
        which = [i for i, leaf in enumerate(leaves) if np.issubdtype(leaf.dtype, np.integer)][place]
        limits = np.iinfo(jax.dtypes.canonicalize_dtype(leaves[which].dtype))
        for value in (limits.min, limits.max):
            probe = [np.full_like(leaf, value) if i == which else leaf for i, leaf in enumerate(leaves)]
            try:
                self._check(jax.tree.unflatten(treedef, probe))
            except ValueError:
                return False
        return True


def _within(new: Sequence[int], known: tuple[int, int, int, int]) -> bool:
    least, low, high, greatest = known
    return all(value in (least, greatest) or low <= value <= high for value in new)
