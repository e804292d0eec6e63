"""Pooling, and sums over all axes but a small last one, as XLA:CPU is fast at them.

A window that moves over pixels, and a sum of [128, 28, 28, 6] over all but the six features, are computed number by
number if the last axis is no multiple of a vector. Here windows are sums of strided slices, and such a sum is first
taken over rows of many numbers: four to eight times as fast.
"""

import itertools
import math
import operator
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array, Float

from jaxpt.vectors import CHEAP, LEAST, row

Shape = tuple[int, ...]

_WINDOW = 16  # numbers; a slice for each
_COMBINED: dict[str, Callable[[Array, Array], Array]] = {
    "reduce_window_sum": operator.add,
    "reduce_window_max": jnp.maximum,
}


def applies(eqn: JaxprEqn) -> bool:
    """Whether an equation of a traced program is faster by `apply`."""
    name, shape = eqn.primitive.name, tuple(getattr(eqn.invars[0].aval, "shape", ())) if eqn.invars else ()
    if name not in ("reduce_sum", *_COMBINED) or eqn.invars[0].aval.dtype not in (jnp.float32, jnp.float64):
        return False
    if name == "reduce_sum":
        leading = tuple(eqn.params["axes"]) == tuple(range(len(shape) - 1))
        return leading and len(shape) > 2 and 1 < shape[-1] <= 32 and shape[-1] % 8 > 0 and math.prod(shape) >= LEAST
    return _is_pooling(eqn, shape)


def apply(eqn: JaxprEqn, read: Callable[[Any], Any], made_by: Mapping[Any, JaxprEqn]) -> Array:
    """Returns the output of an equation that `applies`; arguments as in `vectors.apply`."""
    x = read(eqn.invars[0])
    if eqn.primitive.name == "reduce_sum":
        # XLA:CPU makes one loop of a sum and a product that leads to it, and takes that by features again.
        bind = partial(eqn.primitive.bind, **eqn.params)
        made = made_by.get(eqn.invars[0])
        return bind(x) if made is not None and made.primitive.name in CHEAP else _sum(partial(bind, axes=(0,)), x)
    window = eqn.params["window_dimensions"]
    made = made_by.get(eqn.invars[0])
    if made is not None and _is_gradient(eqn, made):
        return _spread(read(made.invars[0]), window, eqn.outvars[0].aval.shape)
    return _pooled(_COMBINED[eqn.primitive.name], x, window, eqn.params["window_strides"])


def _is_pooling(eqn: JaxprEqn, shape: Shape) -> bool:
    """Whether small windows move over the axes between the first and the last, without padding."""
    window, p = eqn.params["window_dimensions"], eqn.params
    plain = {1} == {*p["base_dilation"], *p["window_dilation"]} and {(0, 0)} == {*map(tuple, p["padding"])}
    inner = len(shape) > 2 and window[0] == window[-1] == p["window_strides"][0] == p["window_strides"][-1] == 1
    return plain and inner and 1 < math.prod(window) <= _WINDOW and math.prod(eqn.outvars[0].aval.shape) > 0


def _is_gradient(eqn: JaxprEqn, made: JaxprEqn) -> bool:
    """Whether it is the gradient of a sum over windows that do not overlap: each number goes to all of its window.

    JAX writes it as a sum over all windows of numbers that are as far apart.
    """
    if (
        eqn.primitive.name != "reduce_window_sum"
        or made.primitive.name != "pad"
        or {*eqn.params["window_strides"]} != {1}
    ):
        return False
    zero = isinstance(made.invars[1], Literal) and made.invars[1].val == 0
    apart = zip(eqn.params["window_dimensions"], made.params["padding_config"], strict=True)
    return zero and all(low == inside == w - 1 <= high for w, (low, high, inside) in apart)


def _sum(total: Callable[[Array], Array], x: Float[Array, "... C"]) -> Float[Array, " C"]:
    """Returns the sum over all axes but the last; `total` sums over the first of two."""
    rows = total(x.reshape(-1, row(x.shape)))
    return total(lax.optimization_barrier(rows).reshape(-1, x.shape[-1]))  # XLA would make one sum of the two


def _pooled(combine: Callable[[Array, Array], Array], x: Array, window: Shape, strides: Shape) -> Array:
    """Returns all windows' sums, or largest numbers, from a slice of x for each place in the window."""
    count = [(n - w) // s + 1 for n, w, s in zip(x.shape, window, strides, strict=True)]

    def at(place: tuple[int, ...]) -> Array:
        stop = [p + (n - 1) * s + 1 for p, n, s in zip(place, count, strides, strict=True)]
        return lax.slice(x, place, stop, strides)

    return reduce(combine, map(at, itertools.product(*map(range, window))))


def _spread(x: Array, window: Shape, shape: Shape) -> Array:
    """Returns each number of x at every place of its window; zeros where there is none."""
    for axis, size in enumerate(window):
        x = jnp.repeat(x, size, axis) if size > 1 else x
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, n - m, 0) for n, m in zip(shape, x.shape, strict=True)])
