"""One update of an optax transformation, with the extra arguments that the transformation accepts."""

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
    """Returns the extra arguments for an update, {name in optax: argument}. Functions that are not called cost nothing.

    Args:
        key: key for the random numbers of this step.
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
    """Returns the direction of steepest ascent: the conjugate of JAX's gradients."""
    return jax.tree.map(lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, grads)


def updated(
    transform: Any, grads: PyTree, state: PyTree, params: Params, extra: Mapping[str, Any]
) -> tuple[PyTree, PyTree]:
    """Returns (updates, new state) of an optax transformation, called with the extra arguments that it accepts.

    A chain passes all of them to each of its parts, so the arguments that a part does not accept are found by trial: a
    rejected argument is left out for the whole chain. This happens during tracing; the program holds one update.
    """
    # Decided by the signature, not by the class: `optax.MultiSteps` has another class.
    taken = inspect.signature(transform.update).parameters
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    given = {name: value for name, value in extra.items() if every or name in taken}
    while True:
        try:
            return transform.update(grads, state, params, **given)
        except TypeError as error:
            # Python's message names one argument; that of optax's line searches lists all unused ones.
            refused = set(re.findall(r"'(\w+)'", str(error))) & set(given)
            if "nexpected keyword argument" not in str(error) or not refused:
                raise
            given = {name: value for name, value in given.items() if name not in refused}
