"""What users hand over: is it a function, and can it be called as it will be?"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any


def check_takes(
    name: str, function: Callable[..., Any], *arguments: str, named: Sequence[str] = (), hint: str = ""
) -> None:
    """Raises ValueError unless something is a function that takes such arguments.

    Args:
        name: what the user calls it.
        function: what was given.
        *arguments: what its positional arguments are.
        named: names of its keyword arguments.
        hint: what to do.
    """
    call = f"{name}({', '.join([*arguments, *(f'{key}=...' for key in named)])})"
    if not callable(function):
        raise ValueError(f"{name} must be a function, called as {call}, but it is {function!r}{hint and f'; {hint}'}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # what is not written in Python may have none
        return
    try:
        signature.bind(*arguments, **dict.fromkeys(named))
    except TypeError as error:
        raise ValueError(
            f"{name} is called as {call}, but what was given does not take that: {error}{hint and f'; {hint}'}"
        ) from error
