"""Arrays of an NNX model made under tracing: marked as data, or found where Flax does not find them."""

import collections
import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx


class HiddenArrayError(ValueError):
    """A traced array is where Flax does not find it."""


def with_arrays_as_data(model: nnx.Module) -> nnx.Module:
    """Returns a model made under tracing, with its plain arrays marked as data, as in a model made outside of tracing.

    Flax recognises arrays by their class. A traced array has another class, so it would become part of the static
    structure.
    """
    nodes = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Pytree)]
    for _, node in nodes:
        for name, value in list(vars(node).items()):
            if isinstance(value, jax.core.Tracer):
                setattr(node, name, nnx.data(value))
    found = set(map(id, [*(node for _, node in nodes), *jax.tree.leaves(nnx.state(model))]))
    for path, node in nodes:
        for name, value in vars(node).items():
            if not isinstance(value, nnx.Variable) and _holds_traced(value, found):
                place = ".".join(map(str, (*path, name)))
                raise HiddenArrayError(
                    f"the model keeps an array drawn from its random key in {place}, a {type(value).__name__}, where "
                    "Flax does not find it; each replica has its own, so make it an attribute: nnx.Variable(array)"
                )
    return model


def _holds_traced(value: Any, found: set[int]) -> bool:
    """Returns whether an object or a function's closure holds a traced array, directly or nested.

    Args:
        value: the object to search.
        found: ids of the arrays and modules that Flax finds; the ids of searched objects are added.
    """
    if id(value) in found or isinstance(value, type | types.ModuleType):
        return False
    found.add(id(value))
    if isinstance(value, jax.Array | np.ndarray):
        return isinstance(value, jax.core.Tracer)
    held: list[Any] = list(getattr(value, "__dict__", {}).values())
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if name[:2] != "__"]
    held += [getattr(value, name) for name in slots if hasattr(value, name)]
    if isinstance(value, Mapping):
        held += value.values()
    elif isinstance(value, list | tuple | set | frozenset | collections.deque):
        held += value
    elif isinstance(value, functools.partial):
        held += (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        held.append(value.__self__)
    elif isinstance(value, types.FunctionType):
        cells = (cell.cell_contents for cell in value.__closure__ or () if _is_full(cell))
        held += (*cells, *(value.__defaults__ or ()))
    return any(_holds_traced(each, found) for each in held)


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # the name is not bound yet
        return False
