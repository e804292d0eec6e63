"""One update of an optax transformation, with as much of what a step knows as the transformation takes."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxpt.core.types import Params


def extra_arguments(
    key: Key[Array, ""], value: Float[Array, ""], grad: PyTree, value_fn: Callable[[Params], Float[Array, ""]]
) -> dict[str, Any]:
    """Returns what a step offers an update: {name in optax: argument}. A function that nobody calls costs nothing.

    Args:
        key: for random numbers of this step.
        value: the loss on this step's minibatch, as `value` (polyak_sgd, momo, reduce_on_plateau, line searches).
        grad: its gradient.
        value_fn: params -> the loss on the same minibatch with the same dropout; also as `obj_fn` (sophia), and its
            gradient as `grad_fn(params, i)` (sam in opaque mode).
    """
    return {
        "key": key,
        "value": value,
        "grad": grad,
        "value_fn": value_fn,
        "obj_fn": value_fn,
        "grad_fn": lambda params, _=0: uphill(jax.grad(value_fn)(params)),
    }


def uphill(grads: PyTree) -> PyTree:
    """Returns the direction of steepest ascent, given JAX's gradients, which are the conjugate of it."""
    return jax.tree.map(lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, grads)


def updated(
    transform: Any, grads: PyTree, state: PyTree, params: Params, extra: Mapping[str, Any]
) -> tuple[PyTree, PyTree]:
    """Returns (updates, new state) of an optax transformation, which gets those of the extra arguments that it takes.

    A chain hands all of them to each of its parts, so what one part does not take is found out by trying: the refused
    argument is left out for the whole chain. This happens while tracing; the program holds one update.
    """
    # The signature tells, not the class: `optax.MultiSteps` has a class of its own.
    taken = inspect.signature(transform.update).parameters
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    given = {name: value for name, value in extra.items() if every or name in taken}
    while True:
        try:
            return transform.update(grads, state, params, **given)
        except TypeError as error:
            # Python's own message names one; that of optax's line searches lists all that nothing took.
            refused = set(re.findall(r"'(\w+)'", str(error))) & set(given)
            if "nexpected keyword argument" not in str(error) or not refused:
                raise
            given = {name: value for name, value in given.items() if name not in refused}
