"""Small arrays joined into one for each type, so that a row of the trace is written in few operations."""

from collections.abc import Sequence
from itertools import groupby
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

AT_MOST = 1024
"""Numbers of an array that is joined with others. Larger ones, such as draws, would be copied at the end."""


class Packing(NamedTuple):
    """A division of a list of arrays into groups of one type, each joined, and single arrays.

    Attributes:
        shapes: shape and type of each array.
        groups: the places of the arrays in each group.
    """

    shapes: tuple[jax.ShapeDtypeStruct, ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, shapes: Sequence[jax.ShapeDtypeStruct]) -> "Packing":
        """Returns the packing of arrays of these shapes and types."""
        small = [i for i, one in enumerate(shapes) if prod(one.shape) <= AT_MOST]

        def kind(i: int) -> str:
            return str(shapes[i].dtype)

        groups = [tuple(group) for _, group in groupby(sorted(small, key=kind), kind)]
        groups += [(i,) for i, one in enumerate(shapes) if prod(one.shape) > AT_MOST]
        return cls(tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in shapes), tuple(groups))

    @property
    def packed(self) -> list[jax.ShapeDtypeStruct]:
        """Shape and type of each packed array: of the array itself in a group of one, else one axis."""
        found = []
        for group in self.groups:
            first = self.shapes[group[0]]
            size = sum(prod(self.shapes[i].shape) for i in group)
            found.append(first if len(group) == 1 else jax.ShapeDtypeStruct((size,), first.dtype))
        return found

    def pack(self, arrays: Sequence[Array]) -> list[Array]:
        """Returns the arrays, or numbers of Python, joined."""
        found = [
            array if isinstance(array, jax.Array) else jnp.asarray(array, one.dtype)
            for array, one in zip(arrays, self.shapes, strict=True)
        ]
        return [
            found[group[0]] if len(group) == 1 else jnp.concatenate([found[i].reshape(-1) for i in group])
            for group in self.groups
        ]

    def unpack(self, rows: Sequence[Array]) -> list[Array]:
        """Returns the arrays, each with the leading axis that the packed ones have."""
        found: dict[int, Array] = {}
        for group, joined in zip(self.groups, rows, strict=True):
            at = 0
            for i in group:
                shape = self.shapes[i].shape
                part = joined if len(group) == 1 else joined[:, at : at + prod(shape)]
                found[i], at = part.reshape(joined.shape[0], *shape), at + prod(shape)
        return [found[i] for i in range(len(self.shapes))]
