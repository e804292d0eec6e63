"""Numbers for people: the shortest decimals that stand for an array's numbers in its own precision."""

import re
from typing import Any

import numpy as np

_LONG = re.compile(r"\d+\.\d{8,}(e[+-]?\d+)?|\d\.\d+e[+-]?\d+")


def shortest(values: Any) -> Any:
    """Returns an array as `tolist` does, but each float as the shortest decimal that gives the same number back.

    >>> np.float32(0.03).tolist(), jaxpt.core.decimals.shortest(np.float32(0.03))
    (0.029999999329447746, 0.03)

    Args:
        values: an array or a number of any dtype, of NumPy or JAX. float32 0.03 becomes the Python float 0.03, and
            `np.float32` of it is the same number again; float64, integers and truth values are left as they are.
    """
    array = np.asarray(values)
    # Those of 16 bits and fewer beside NumPy's own (bfloat16) have kind "V" and are floats to `str` alone.
    if array.dtype.kind not in "fV" or array.dtype == np.float64:
        return array.tolist()
    flat = [float(str(value)) for value in array.ravel()]
    return np.array(flat, np.float64).reshape(array.shape).tolist()


def shortened(text: str) -> str:
    """Returns a text in which float32 numbers that are written with the digits of float64 have their shortest decimals.

    Only a decimal that is a float32 number to its last digit is changed; one of float64 hardly ever is.
    """

    def shorter(found: re.Match[str]) -> str:
        number = float(found[0])
        with np.errstate(over="ignore"):
            single = np.float32(number)
        return str(shortest(single)) if float(single) == number else found[0]

    return _LONG.sub(shorter, text)
