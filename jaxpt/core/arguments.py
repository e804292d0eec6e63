"""Checks of users' arguments: functions that accept the arguments of later calls, shares, names."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np


def check_takes(
    name: str, function: Callable[..., Any], *arguments: str, named: Sequence[str] = (), hint: str = ""
) -> None:
    """Raises ValueError unless `function` is a function that accepts these arguments.

    Args:
        name: the argument's name, for the message.
        function: the value given by the user.
        *arguments: descriptions of its positional arguments.
        named: names of its keyword arguments.
        hint: advice, added to the message.
    """
    call = f"{name}({', '.join([*arguments, *(f'{key}=...' for key in named)])})"
    if not callable(function):
        raise ValueError(f"{name} must be a function, called as {call}, but it is {function!r}{hint and f'; {hint}'}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # functions not written in Python may lack a signature
        return
    try:
        signature.bind(*arguments, **dict.fromkeys(named))
    except TypeError as error:
        raise ValueError(
            f"{name} is called as {call}, but what was given does not take that: {error}{hint and f'; {hint}'}"
        ) from error


def is_number(value: Any) -> bool:
    """Returns whether a value is a real number, and not a yes or no."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Returns whether a value is an integer of at least 1, of Python or NumPy, and not a yes or no."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def check_share(name: str, value: Any, most: float) -> None:
    """Raises ValueError unless a value is None or a number above 0 and at most `most`."""
    if value is not None and not (is_number(value) and 0 < value <= most):
        raise ValueError(
            f"{name} must be above 0 and at most {most:g}, a share of the run's steps, but it is {value!r}"
        )


NEVER = np.iinfo(np.int32).max
"""A step that no run reaches."""


def check_steps(name: str, value: Any, of: str, least: int) -> None:
    """Raises ValueError unless a value is None or a number of steps, at least `least`, that int32 holds."""
    if value is not None and not (isinstance(value, int | np.integer) and least <= value <= NEVER):
        beyond = " that 32 bits hold" if isinstance(value, int | np.integer) and value > NEVER else ""
        raise ValueError(f"{name} of a {of} must be an integer of at least {least}{beyond}, but it is {value!r}")


def as_names(names: str | Sequence[str], of: str) -> tuple[str, ...]:
    """Returns names of hyperparameters that fall to zero as a tuple.

    Raises:
        ValueError: there is none, or one is not a name or is batch_size.
    """
    found = (names,) if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)
    if not found or not all(isinstance(name, str) for name in found):
        raise ValueError(f"names must be hyperparameters, such as ('learning_rate',), but it is {names!r}")
    if "batch_size" in found:
        raise ValueError(f"a batch size cannot fall to zero; leave batch_size out of the names of the {of}")
    return found
