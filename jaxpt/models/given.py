"""Given weights, matched with a model's by their names."""

import difflib
import os
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Path: TypeAlias = tuple[Any, ...]
"""A variable's place in a model, such as ("hidden", "kernel")."""

_SHOWN = 5  # names in a message, at most


def flat(nested: Any) -> dict[Path, Any]:
    """Returns the leaves of nested mappings by their paths.

    Raises:
        ValueError: it is no mapping, or a leaf is no array.
    """
    if not isinstance(nested, Mapping):
        raise ValueError(
            "start must be weights by name, as nnx.state(model), jaxpt.load_model(path) or Linen's variables are, but "
            f"it is {_in_short(nested)}"
        )
    found: dict[Path, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            found |= {(name, *path): leaf for path, leaf in flat(value).items()}
        elif hasattr(value, "shape") and hasattr(value, "dtype"):
            found[name,] = value
        else:
            raise ValueError(f"start holds {_in_short(value)} as {name}, which is no array; give arrays by their names")
    return found


def matched(
    start: Mapping[Path, Any], wanted: Mapping[Path, Any], frozen: Collection[Path]
) -> tuple[dict[Path, np.ndarray], dict[Path, Any]]:
    """Returns given arrays of a model: those that replicas start from, as the model's types, and the frozen ones.

    Frozen arrays keep their own type, so a frozen part may be in bfloat16.

    Args:
        start: the given arrays.
        wanted: all of the model's variables, as shapes.
        frozen: paths of those that are not trained.

    Raises:
        ValueError: a given name matches nothing; shapes differ; a frozen variable is not given; an array holds NaN.
    """
    _check_names(start, wanted)
    if other := [
        f"{shown(path)}: {given.shape} given, {wanted[path].shape} in the model"
        for path, given in start.items()
        if tuple(given.shape) != tuple(wanted[path].shape)
    ]:
        raise ValueError(
            f"arrays of start have other shapes than the model's ({_few(other, '; ')}); leave them out of start, and "
            "each replica draws new ones, or change the model"
        )
    if absent := [shown(path) for path in frozen if path not in start]:
        raise ValueError(
            f"wrt does not train {_few(absent)}, and start does not give it; frozen weights must be given: "
            "start=nnx.state(model), jaxpt.load_model(path), or the variables of a Linen module"
        )
    if spoilt := [shown(path) for path, given in start.items() if _has_nan(given)]:
        raise ValueError(f"start holds NaN in {_few(spoilt)}: were these weights saved after a run had diverged?")
    kept = {path: _canonical(start[path]) for path in frozen}
    begun = {path: np.asarray(array, wanted[path].dtype) for path, array in start.items() if path not in kept}
    return begun, kept


def check_selected(wrt: Any, trained: Collection[Any], weights: Collection[Path]) -> None:
    """Raises ValueError if a filter selects none of a model's weights."""
    if not trained:
        raise ValueError(f"wrt={wrt!r} selects no weights; the model has {_few(map(shown, weights))}")


def shown(path: Path) -> str:
    """Returns a path as text, such as hidden.kernel."""
    return ".".join(map(str, path))


def _check_names(start: Mapping[Path, Any], wanted: Mapping[Path, Any]) -> None:
    """Raises ValueError if a given name is none of the model's."""
    names = {shown(path) for path in wanted}
    lost = []
    for path in start:
        if path not in wanted:
            near = difflib.get_close_matches(shown(path), names, 1, 0.0)
            lost.append(f"{shown(path)} (the nearest name in the model: {near[0]})" if near else shown(path))
    if lost:
        raise ValueError(
            f"start gives weights that the model does not have: {_few(lost, '; ')}; rename them, or leave them out"
        )


def _canonical(array: Any) -> Any:
    """Returns an array in a type that JAX has."""
    kind = jax.dtypes.canonicalize_dtype(array.dtype)
    return array if array.dtype == kind else np.asarray(array, kind)


def _has_nan(array: Any) -> bool:
    """Returns whether a floating-point array holds NaN; infinities may be meant, in a mask for example."""
    return bool(jax.dtypes.issubdtype(array.dtype, np.inexact) and jnp.isnan(array).any())


def _in_short(value: Any) -> str:
    """Returns what was given instead of weights, without its numbers."""
    if isinstance(value, str | os.PathLike):
        return f"the path {str(value)!r}; load it first, by jaxpt.load_model if save_model wrote it"
    shown = repr(value)
    return shown if len(shown) < 60 else f"a {type(value).__name__}"


def _few(names: Any, between: str = ", ") -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return between.join(listed[:_SHOWN]) + more
