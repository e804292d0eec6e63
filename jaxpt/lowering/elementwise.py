"""Elementwise functions in loops that XLA:CPU turns into vector instructions.

XLA:CPU vectorises the innermost axis, but first unrolls it if it has up to 32 numbers, which leaves a call for each
number: a tanh of [128, 10, 10, 16] takes four times as long as one of [204800]. XLA merges a mere reshape with the
operations around it, but not a loop over a few parts. Numbers added to each feature, or multiplied with it, go into the
loop as well.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array, Float

_FUNCTIONS = frozenset(("exp", "expm1", "log", "log1p", "logistic", "tanh", "erf"))
CHEAP = frozenset(("add", "sub", "mul", "div", "neg", "max", "min"))
_DEPTH = 4  # most cheap operations in a row that are taken into the loop
SMALL = 32  # longest axis that XLA:CPU unrolls
PARTS = 4  # turns of the loop: few and large; 2 to 8 are equally fast
LEAST = 16384  # numbers from which on a loop pays off


def applies(eqn: JaxprEqn) -> bool:
    """Returns whether `apply` makes an equation of a traced program faster."""
    if eqn.primitive.name not in _FUNCTIONS:  # first, since others may have no output (`jax.debug.print`)
        return False
    shape = tuple(getattr(eqn.outvars[0].aval, "shape", ()))
    if not LEAST <= math.prod(shape) < 2**32:
        return False
    return len(shape) > 1 and shape[-1] <= SMALL and math.prod(shape) % PARTS == 0


def apply(eqn: JaxprEqn, read: Callable[[Any], Any], made_by: Mapping[Any, JaxprEqn]) -> Array:
    """Returns the output of an equation for which `applies` is true; equal up to rounding.

    Args:
        eqn: the equation.
        read: returns the value of an argument of any equation so far.
        made_by: {output variable: equation} of the equations so far.
    """
    bind, x = partial(eqn.primitive.bind, **eqn.params), read(eqn.invars[0])
    found = _in_rows(eqn.invars[0], read, made_by)
    if found is None:
        # Parts are flat, so the innermost axis is long and XLA:CPU vectorises it.
        return lax.map(bind, x.reshape(PARTS, -1)).reshape(x.shape)
    compute, wholes = found
    return lax.map(lambda parts: bind(compute(parts)), wholes).reshape(x.shape)


def row(shape: tuple[int, ...]) -> int:
    """Returns the size of a row: of the fewest last axes with more than `SMALL` numbers together, or of all axes."""
    return math.prod(shape[_first(shape) :])


def _first(shape: tuple[int, ...]) -> int:
    return next((i for i in range(len(shape) - 1, -1, -1) if math.prod(shape[i:]) > SMALL), 0)


def _in_rows(
    atom: Any, read: Callable[[Any], Any], made_by: Mapping[Any, JaxprEqn]
) -> tuple[Callable[[list[Array]], Array], list[Float[Array, "parts rows width"]]] | None:
    """Returns a function that computes parts of a variable, in rows, cheaply from parts of others, and these others.

    Per-feature numbers, repeated to fill a row, can be used in vector instructions; otherwise XLA:CPU looks one up for
    each number of the result. Returns None if there are no such numbers, or no equal parts.

    Args:
        atom: the variable.
        read: as in `apply`.
        made_by: as in `apply`.
    """
    shape, repeats = tuple(atom.aval.shape), False
    wholes: list[Any] = []
    lead, width = _first(shape), row(shape)
    part = (math.prod(shape) // width // PARTS, width)
    if math.prod(shape[:lead]) % PARTS:
        return None

    def take(atom: Any, depth: int) -> Callable[[list[Array]], Array]:
        nonlocal repeats
        made = None if isinstance(atom, Literal) else made_by.get(atom)
        name, of, axes = "" if made is None else made.primitive.name, atom, tuple(range(len(shape)))
        if made is not None and name == "broadcast_in_dim":
            of, axes = made.invars[0], made.params["broadcast_dimensions"]
        # A scalar costs nothing in the loop.
        if of.aval.shape == ():
            return lambda _: jnp.broadcast_to(jnp.asarray(read(of), of.aval.dtype), part)
        # Numbers for each feature: the same in every row, so they are repeated once, outside of the loop.
        if of.aval.shape != shape and all(a >= lead or n == 1 for a, n in zip(axes, of.aval.shape, strict=True)):
            one, repeats = lax.broadcast_in_dim(read(of), (1,) * lead + shape[lead:], axes).reshape(-1), True
            return lambda _: jnp.broadcast_to(one, part)
        # Cheap arithmetic is repeated in the loop, even if others need its result: XLA drops unused results.
        if made is not None and name in CHEAP and depth:
            inputs = [take(argument, depth - 1) for argument in made.invars]
            return lambda given: made.primitive.bind(*(of(given) for of in inputs), **made.params)
        # Anything else is cut into parts, once for each variable.
        if atom not in wholes:
            wholes.append(atom)
        place = wholes.index(atom)
        return lambda given: given[place]

    compute = take(atom, _DEPTH)
    if not wholes or not repeats:
        return None
    return compute, [jnp.broadcast_to(read(whole), shape).reshape(PARTS, *part) for whole in wholes]
