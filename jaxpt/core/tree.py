"""Pytrees whose leaves share a leading axis, and dataclasses as pytrees."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

T = TypeVar("T")


def leading(tree: PyTree, what: str = "tree") -> int:
    """Returns the length of the leading axis that all leaves share.

    Args:
        tree: a pytree of arrays (or abstract arrays), each of shape [N, ...].
        what: name of the tree in error messages.

    Raises:
        ValueError: the tree has no leaves, a leaf has no axes, or the lengths differ.
    """
    shapes = {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
    if not shapes:
        raise ValueError(f"{what} holds no arrays; expected arrays of shape [N, ...]")
    lengths = {path: shape[0] if shape else None for path, shape in shapes.items()}
    if all(length is None for length in lengths.values()):
        raise ValueError(f"{what} holds Python numbers, lists of them perhaps; make arrays of them by np.asarray")
    if None in lengths.values() or len(set(lengths.values())) != 1:
        single = "; are these of one example? put examples together" if None in lengths.values() else ""
        raise ValueError(
            f"the arrays of {what} must share their first axis, but their shapes are "
            + ", ".join(f"{path or 'array'}: {shape}" for path, shape in shapes.items())
            + single
        )
    return next(length for length in lengths.values() if length is not None)


def take(tree: T, index: int | tuple[int, ...] | Int[Array, "..."]) -> T:
    """Returns `leaf[index]` for every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def register(data: Sequence[str], meta: Sequence[str] = ()) -> Any:
    """Makes a class a pytree: `data` attributes hold its leaves, `meta` attributes are static.

    Unlike `jax.tree_util.register_dataclass` it does not call the constructor when it rebuilds an object. So a
    constructor can check its numbers, and the objects still pass through `jit`, where numbers are abstract.
    """

    def decorate(cls: type) -> type:
        def flatten_with_keys(obj: Any) -> tuple[Any, Any]:
            children = [(jax.tree_util.GetAttrKey(name), getattr(obj, name)) for name in data]
            return children, tuple(getattr(obj, name) for name in meta)

        def unflatten(static: Any, children: Any) -> Any:
            obj: Any = object.__new__(cls)
            for name, value in zip((*data, *meta), (*children, *static), strict=True):
                object.__setattr__(obj, name, value)
            return obj

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
        return cls

    return decorate


def name(path: Any) -> str:
    """Returns a leaf's path in its tree as text, such as "replicas/params/conv/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def plain(leaf: Any) -> Any:
    """Returns an array of typed keys as raw numbers, and any other array unchanged."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
