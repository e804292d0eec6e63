"""Pooling and its gradients, and sums over all axes but a small last one, in forms that XLA:CPU runs fast.

XLA:CPU moves a window from number to number, computes the gradient of a maximum by a scatter, and adds up
[128, 28, 28, 6] over all but the six features one number at a time. Here a window is a set of slices, one per position
in it, and such a sum is first taken over rows of many numbers. Most take a half to a tenth of the time, gradients down
to a twentieth.
"""

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array, Float

from jaxpt.lowering.elementwise import CHEAP, LEAST, SMALL, row

Shape = tuple[int, ...]

_WINDOW = 16  # most numbers in a window, since each needs a slice
_COMBINED: dict[str, Callable[[Array, Array], Array]] = {
    "reduce_window_sum": operator.add,
    "reduce_window_max": jnp.maximum,
}


def applies(eqn: JaxprEqn) -> bool:
    """Returns whether `apply` makes an equation of a traced program faster."""
    name, p = eqn.primitive.name, eqn.params
    if name not in ("reduce_sum", "select_and_scatter_add", *_COMBINED):
        return False
    given: Any = eqn.invars[-1].aval
    shape = tuple(given.shape)
    if given.dtype not in (jnp.float32, jnp.float64) or len(shape) < 3:
        return False
    if name == "reduce_sum":
        leading = tuple(p["axes"]) == tuple(range(len(shape) - 1))
        return leading and 1 < shape[-1] <= SMALL and math.prod(shape) >= LEAST
    window, strides = p["window_dimensions"], p["window_strides"]
    # Windows over space alone: the first axis (examples) and the last (channels) have windows of one.
    inner = window[0] == window[-1] == strides[0] == strides[-1] == 1 < math.prod(window) <= _WINDOW
    plain = {(0, 0)} == {*map(tuple, p["padding"])} and min(_count(shape, window, strides)) > 0
    # JAX's gradient of a maximum; where windows overlap, a number may get several cotangents.
    if name == "select_and_scatter_add":
        return inner and plain and tuple(window) == tuple(strides) and p["select_prim"] is lax.ge_p
    return inner and plain and {1} == {*p["base_dilation"], *p["window_dilation"]}


def apply(eqn: JaxprEqn, read: Callable[[Any], Any], made_by: Mapping[Any, JaxprEqn]) -> Array:
    """Returns the output of an equation for which `applies` is true; arguments as in `elementwise.apply`."""
    # Only select_and_scatter_add has two arguments: the cotangent and the pooled numbers.
    *cotangent, x = map(read, eqn.invars)
    made = None if isinstance(eqn.invars[-1], Literal) else made_by.get(eqn.invars[-1])
    if eqn.primitive.name == "reduce_sum":
        # XLA:CPU fuses a sum with the product before it into one loop, which again runs by features: left as it is.
        bind = partial(eqn.primitive.bind, **eqn.params)
        return bind(x) if made is not None and made.primitive.name in CHEAP else _sum(partial(bind, axes=(0,)), x)
    window, strides = eqn.params["window_dimensions"], eqn.params["window_strides"]
    if cotangent:
        return _to_largest(cotangent[0], x, window)
    if made is not None and _is_gradient(eqn, made):
        out: Any = eqn.outvars[0].aval
        return _spread(read(made.invars[0]), window, out.shape)
    return reduce(_COMBINED[eqn.primitive.name], _places(x, window, strides))


def _is_gradient(eqn: JaxprEqn, made: JaxprEqn) -> bool:
    """Returns whether an equation is the gradient of a sum over windows that do not overlap.

    In this gradient each number is copied to all of its window. JAX writes it as a sum over windows, with stride one,
    of numbers padded apart by the size of a window.
    """
    summed = eqn.primitive.name == "reduce_window_sum" and {*eqn.params["window_strides"]} == {1}
    if not summed or made.primitive.name != "pad":
        return False
    # The padding between the numbers must be zero, or the sums are not copies.
    zero = isinstance(made.invars[1], Literal) and made.invars[1].val == 0
    apart = zip(eqn.params["window_dimensions"], made.params["padding_config"], strict=True)
    return zero and all(low == inside == w - 1 <= high for w, (low, high, inside) in apart)


def _sum(total: Callable[[Array], Array], x: Float[Array, "... C"]) -> Float[Array, " C"]:
    """Returns the sum over all axes but the last; `total` sums over the first of two."""
    rows = total(x.reshape(-1, row(x.shape)))
    return total(lax.optimization_barrier(rows).reshape(-1, x.shape[-1]))  # or XLA merges both sums


def _places(x: Array, window: Shape, strides: Shape) -> list[Array]:
    """Returns, for each position in a window, the numbers there of all windows; the last axis varies fastest."""
    count = _count(x.shape, window, strides)

    def at(place: Shape) -> Array:
        stop = [p + (n - 1) * s + 1 for p, n, s in zip(place, count, strides, strict=True)]
        return lax.slice(x, place, stop, strides)

    return [at(place) for place in itertools.product(*map(range, window))]


def _count(shape: Shape, window: Shape, strides: Shape) -> Shape:
    """Returns the number of windows along each axis."""
    return tuple((n - w) // s + 1 for n, w, s in zip(shape, window, strides, strict=True))


def _to_largest(cotangent: Array, x: Array, window: Shape) -> Array:
    """Returns the gradient of each window's maximum: the cotangent at the largest number, at the first if several."""
    # `free`: windows whose largest number is not found yet, so that of equal numbers the first gets the cotangent.
    places = _places(x, window, window)
    largest, free, parts = reduce(jnp.maximum, places), jnp.ones(cotangent.shape, bool), []
    for part in places:
        found = free & (part == largest)
        free = free & ~found
        parts.append(jnp.where(found, cotangent, jnp.zeros_like(cotangent)))
    # The parts are ordered by position, last axis fastest, so that axis is put together first.
    for axis in reversed(range(x.ndim)):
        size = window[axis]
        parts = [_interleaved(parts[i : i + size], axis) for i in range(0, len(parts), size)]
    return _filled(parts[0], x.shape)


def _interleaved(parts: Sequence[Array], axis: int) -> Array:
    shape = parts[0].shape
    return jnp.stack(parts, axis + 1).reshape(*shape[:axis], -1, *shape[axis + 1 :])


def _spread(x: Array, window: Shape, shape: Shape) -> Array:
    """Returns each number of x repeated at every position of its window."""
    for axis, size in enumerate(window):
        x = jnp.repeat(x, size, axis) if size > 1 else x
    return _filled(x, shape)


def _filled(x: Array, shape: Shape) -> Array:
    """Returns x padded with zeros at the end, where no window reaches."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, n - m, 0) for n, m in zip(shape, x.shape, strict=True)])
