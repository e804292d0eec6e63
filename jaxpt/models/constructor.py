"""Traces a model's constructor: its shapes, and arrays that the constructor hides from the model's library."""

import collections
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


class HiddenArrayError(ValueError):
    """A traced array is where the model's library does not find it."""


def shapes_of(
    structures: Callable[[bool], Any], keep: str, eval_shape: Callable[[Callable[[], Any]], Any] = jax.eval_shape
) -> tuple[Any, bool]:
    """Returns the shapes of what a constructor makes, and whether it has to be called eagerly.

    Called eagerly, it computes values that do not depend on the random key at once, which starts JAX's devices.

    Args:
        structures: function of `eager` that calls the constructor.
        keep: how a model keeps an array itself, for the error message.
        eval_shape: function that traces a function without arguments.

    Raises:
        ValueError: the constructor asks for a value that depends on its random key, or hides such an array.
    """
    try:
        return eval_shape(lambda: structures(False)), False
    except (HiddenArrayError, *_VALUES):
        pass
    try:
        return eval_shape(lambda: structures(True)), True
    except _VALUES as error:
        raise ValueError(
            "make asks for the value of an array that is drawn from its random key, as float(array) does; such "
            f"a value is only known when the program runs, so keep the array itself{keep}"
        ) from error
    except HiddenArrayError as error:
        raise ValueError(str(error)) from None


def holds_traced(value: Any, found: set[int]) -> bool:
    """Returns whether an object or a function's closure holds a traced array, directly or nested.

    Args:
        value: the object to search.
        found: ids of the arrays and modules that the library finds; the ids of searched objects are added.
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
    return any(holds_traced(each, found) for each in held)


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # the name is not bound yet
        return False
