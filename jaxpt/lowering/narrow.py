"""Products of many rows with a small matrix, which jaxlib 0.10.2 computes wrongly on CPUs, written as explicit sums.

XLA:CPU of jaxlib 0.10.2 fuses a product with a reduction of its result (a sum of squares, a maximum) into one call of
YNNPACK. With more than 32,768 rows (16,384 in float64) of three to seven numbers, and two to six outputs, the call
returns wrong numbers without an error (https://github.com/jax-ml/jax/issues/39103; 0.10.1 and 0.11 are correct). A
compiler option that disables such fusions would slow LeNet's training by 30 %, and cannot be set for a program inside
another `jax.jit`. An optimisation barrier does not prevent the fusion. So these products are written differently, with
a margin on every side of the faulty region.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import jaxlib
from jax.extend.core import JaxprEqn
from jaxtyping import Array

_ROWS = 8192  # from this number of rows on; fewer are computed correctly
_SUMMED = 16  # most terms in each number of the result
_OUTPUTS = 16  # most numbers in each row of the result
FAULTY = re.match(r"0\.10\.2(?!\d)", jaxlib.__version__) is not None
"""Whether the installed jaxlib has the fault."""


def applies(eqn: JaxprEqn) -> bool:
    """Returns whether an equation is a product that the installed jaxlib may compute wrongly."""
    if not FAULTY or eqn.primitive.name != "dot_general":
        return False
    (lhs_summed, rhs_summed), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    sides = [
        (v.aval, {*summed, *batch})
        for v, summed, batch in zip(eqn.invars, (lhs_summed, rhs_summed), (lhs_batch, rhs_batch), strict=True)
    ]
    if not all(jnp.issubdtype(aval.dtype, jnp.floating) for aval, _ in sides):  # type: ignore[attr-defined]
        return False
    lhs: Any = eqn.invars[0].aval
    terms, together = (math.prod(lhs.shape[d] for d in dims) for dims in (lhs_summed, lhs_batch))
    # The rows may be on either side of the product.
    few, many = sorted(
        math.prod(n for d, n in enumerate(aval.shape) if d not in used)  # type: ignore[attr-defined]
        for aval, used in sides
    )
    return 1 < terms <= _SUMMED and few <= _OUTPUTS and many * together >= _ROWS


def apply(eqn: JaxprEqn, read: Callable[[Any], Any], made_by: Mapping[Any, JaxprEqn]) -> Array:
    """Returns the output of an equation for which `applies` is true; arguments as in `elementwise.apply`."""
    del made_by
    contracted, batched = eqn.params["dimension_numbers"]
    lhs, rhs = (
        _laid_out(read(v), summed, batch) for v, summed, batch in zip(eqn.invars, contracted, batched, strict=True)
    )
    batch, terms = len(batched[0]), lhs.shape[-1]
    # [*batch, *free of lhs, 1, ..., terms] times [*batch, 1, ..., *free of rhs, terms], as dot_general orders its axes.
    lhs = lhs.reshape(*lhs.shape[:-1], *(1,) * (rhs.ndim - 1 - batch), terms)
    rhs = rhs.reshape(*rhs.shape[:batch], *(1,) * (lhs.ndim - rhs.ndim), *rhs.shape[batch:])
    out: Any = eqn.outvars[0].aval
    wide = jnp.promote_types(out.dtype, jnp.float32)  # XLA too sums bfloat16 products in float32
    lhs, rhs = lhs.astype(wide), rhs.astype(wide)
    total = lhs[..., 0] * rhs[..., 0]
    for term in range(1, terms):
        total = total + lhs[..., term] * rhs[..., term]
    return total.astype(out.dtype)


def _laid_out(x: Array, summed: tuple[int, ...], batch: tuple[int, ...]) -> Array:
    """Returns an argument of a product as [*batch, *free, terms]."""
    free = [d for d in range(x.ndim) if d not in (*summed, *batch)]
    x = jnp.transpose(x, (*batch, *free, *summed))
    return x.reshape(*x.shape[: len(batch) + len(free)], -1)
