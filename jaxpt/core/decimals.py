"""Readable numbers: the shortest decimals that round to an array's numbers in its own precision."""

import re
from typing import Any

import numpy as np

_LONG = re.compile(r"\d+\.\d{8,}(e[+-]?\d+)?|\d\.\d+e[+-]?\d+")


def shortest(values: Any) -> Any:
    """Returns an array as `tolist` does, but with each float as the shortest decimal that converts back to it.

    >>> np.float32(0.03).tolist(), jaxpt.core.decimals.shortest(np.float32(0.03))
    (0.029999999329447746, 0.03)

    Args:
        values: an array or a number of any dtype, of NumPy or JAX. float32 0.03 becomes the Python float 0.03, which
            `np.float32` converts back to the same number. float64, integers and booleans do not change.
    """
    array = np.asarray(values)
    # Small floats that NumPy does not define (bfloat16) have kind "V"; only their `str` shows that they are floats.
    if array.dtype.kind not in "fV" or array.dtype == np.float64:
        return array.tolist()
    flat = [float(str(value)) for value in array.ravel()]
    return np.array(flat, np.float64).reshape(array.shape).tolist()


def shortened(text: str) -> str:
    """Returns a text with float32 numbers that have float64 digits replaced by their shortest decimals.

    Changes only decimals that equal a float32 number to the last digit; float64 numbers hardly ever do.
    """

    def shorter(found: re.Match[str]) -> str:
        number = float(found[0])
        with np.errstate(over="ignore"):
            single = np.float32(number)
        return str(shortest(single)) if float(single) == number else found[0]

    return _LONG.sub(shorter, text)
