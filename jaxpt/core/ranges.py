"""Checks that JAX can represent the numbers of a data set: it silently truncates 64 bits to 32."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxpt.core import tree


def check_numbers(arrays: PyTree, what: str) -> None:
    """Raises ValueError if an array on the host contains numbers that JAX would change, or a leaf is not numeric.

    64-bit integers that fit into 32 bits are fine; with JAX's option `jax_enable_x64` all are. Arrays of 64 bits are
    scanned once; others cost nothing.

    Args:
        arrays: a pytree; abstract arrays and arrays on a device are skipped.
        what: name of the arrays in the message.
    """
    for path, leaf in jax.tree.leaves_with_path(arrays):
        if isinstance(leaf, np.ndarray) and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            _check(leaf, f"{what}/{tree.name(path)}".rstrip("/"))
        elif not isinstance(leaf, int | float | complex | np.generic) and not hasattr(leaf, "dtype"):
            name, kind = f"{what}/{tree.name(path)}".rstrip("/"), type(leaf).__name__
            remedy = "call it" if callable(leaf) else "make an array of it by np.asarray"
            if not callable(leaf) and isinstance(leaf, Iterable) and not isinstance(leaf, str | bytes):
                remedy = "only the training split may be a stream, which is an iterator of minibatches of arrays"
            raise ValueError(f"{name} must be arrays, but it holds a {kind}; {remedy}")


def _check(array: np.ndarray, name: str) -> None:
    if array.dtype.kind in "OSUMmV" and array.dtype.isbuiltin != 2:  # 2: types registered with NumPy, such as bfloat16
        raise ValueError(
            f"{name} holds {array.dtype}, but JAX computes with numbers only; make numbers of it, or leave it out"
        )
    wide: bool = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    if wide or not array.size or array.dtype not in (np.int64, np.uint64, np.float64):
        return
    kept = jax.dtypes.canonicalize_dtype(array.dtype)
    limits: Any = np.finfo(kept) if array.dtype.kind == "f" else np.iinfo(kept)
    with np.errstate(invalid="ignore"):
        low, high = array.min(), array.max()
        if array.dtype.kind == "f" and not (np.isfinite(low) and np.isfinite(high)):
            finite = array[np.isfinite(array)]
            low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if low >= limits.min and high <= limits.max:
        return
    remedy = "scale it" if array.dtype.kind == "f" else "number its values anew from 0, or split it into two arrays"
    raise ValueError(
        f"{name} has values {low} .. {high} of type {array.dtype}, but JAX holds it as {kept}, which ends at "
        f"{limits.max}; {remedy}, or switch 64 bits on: jax.config.update('jax_enable_x64', True)"
    )
