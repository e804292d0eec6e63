"""Checks that a user's argument is a function and accepts the arguments of later calls."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any


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
