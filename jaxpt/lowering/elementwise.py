"""Elementwise functions in loops that XLA:CPU turns into vector instructions.

XLA:CPU vectorises the innermost axis, but unrolls one of up to 32 numbers first, which leaves a call for each number: a
tanh of [128, 10, 10, 16] takes four times as long as one of [204800]. A reshape alone is merged with what comes before
and after; a loop over a few parts is not. What is added to each feature, or multiplies it, goes into the loop, too.
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
_DEPTH = 4  # of such arithmetic
SMALL = 32  # numbers, of an axis that XLA:CPU unrolls
PARTS = 4  # of a loop: few, and each large; 2 to 8 are as fast
LEAST = 16384  # numbers that are worth it


def applies(eqn: JaxprEqn) -> bool:
    """Whether an equation of a traced program is faster by `apply`."""
    shape = tuple(getattr(eqn.outvars[0].aval, "shape", ()))
    if eqn.primitive.name not in _FUNCTIONS or not LEAST <= math.prod(shape) < 2**32:
        return False
    return len(shape) > 1 and shape[-1] <= SMALL and math.prod(shape) % PARTS == 0


def apply(eqn: JaxprEqn, read: Callable[[Any], Any], made_by: Mapping[Any, JaxprEqn]) -> Array:
    """Returns the output of an equation that `applies`; it agrees up to rounding.

    Args:
        eqn: the equation.
        read: gives the value of an argument of any equation so far.
        made_by: the equations so far, by what they give.
    """
    bind, x = partial(eqn.primitive.bind, **eqn.params), read(eqn.invars[0])
    found = _in_rows(eqn.invars[0], read, made_by)
    if found is None:
        return lax.map(bind, x.reshape(PARTS, -1)).reshape(x.shape)
    compute, wholes = found
    return lax.map(lambda parts: bind(compute(parts)), wholes).reshape(x.shape)


def row(shape: tuple[int, ...]) -> int:
    """Returns how many numbers the last axes have together: as many axes as make more than `SMALL`, or all."""
    return math.prod(shape[_first(shape) :])


def _first(shape: tuple[int, ...]) -> int:
    return next((i for i in range(len(shape) - 1, -1, -1) if math.prod(shape[i:]) > SMALL), 0)


def _in_rows(
    atom: Any, read: Callable[[Any], Any], made_by: Mapping[Any, JaxprEqn]
) -> tuple[Callable[[list[Array]], Array], list[Float[Array, "parts rows width"]]] | None:
    """Returns how parts of a variable, in rows, follow from parts of others by cheap arithmetic, and those others.

    A number for each feature, repeated until it fills a row, takes part in vector instructions; as it stands, XLA:CPU
    looks one up for each number of the result. None: there is no such number, or there are no equal parts.

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
        if of.aval.shape == ():
            return lambda _: jnp.broadcast_to(jnp.asarray(read(of), of.aval.dtype), part)
        if of.aval.shape != shape and all(a >= lead or n == 1 for a, n in zip(axes, of.aval.shape, strict=True)):
            one, repeats = lax.broadcast_in_dim(read(of), (1,) * lead + shape[lead:], axes).reshape(-1), True
            return lambda _: jnp.broadcast_to(one, part)
        if made is not None and name in CHEAP and depth:
            inputs = [take(argument, depth - 1) for argument in made.invars]
            return lambda given: made.primitive.bind(*(of(given) for of in inputs), **made.params)
        if atom not in wholes:
            wholes.append(atom)
        place = wholes.index(atom)
        return lambda given: given[place]

    compute = take(atom, _DEPTH)
    if not wholes or not repeats:
        return None
    return compute, [jnp.broadcast_to(read(whole), shape).reshape(PARTS, *part) for whole in wholes]
