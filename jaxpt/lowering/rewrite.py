"""Rewrites any traced program for the platform that it will run on, equation by equation, at any depth."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxprs_in_params
from jax.extend.core.primitives import conv_general_dilated_p
from jaxtyping import Array

from jaxpt.lowering import channels_last, elementwise, kernel_gradients, narrow, random_bits, reductions

T = TypeVar("T")


class _Module(Protocol):
    """A module that rewrites single equations, each with one output."""

    def applies(self, eqn: JaxprEqn) -> bool: ...
    def apply(self, eqn: JaxprEqn, read: Callable[[Any], Any], made_by: Mapping[Any, JaxprEqn]) -> Array: ...


_CPU: tuple[_Module, ...] = (elementwise, random_bits, reductions, narrow, channels_last)
_ACCELERATORS: tuple[_Module, ...] = (kernel_gradients,)


def _modules(platform: str) -> tuple[_Module, ...]:
    """Returns the modules for a platform: "cpu", or any name of an accelerator."""
    return _CPU if platform == "cpu" else _ACCELERATORS


def convolved_bytes(jaxpr: Jaxpr) -> int:
    """Returns the size, on a TPU, of the largest array that a convolution reads or gives; 0 without a convolution.

    Convolutions of lax and of jaxpt, at any depth. The size is the same for a loss and for its gradient, whose
    convolutions have the same arrays or arrays of their shapes.
    """
    return max(map(_convolved_bytes, jaxpr.eqns), default=0)


def evaluate(
    closed: ClosedJaxpr, *args: Array, platform: str = "cpu", modules: Sequence[_Module] | None = None
) -> list[Array]:
    """Computes a traced program with each equation rewritten that a module has a faster form for.

    Only the order of sums changes, as long as all numbers are finite.

    On CPUs: convolutions in channels-last form or as matrix products (`channels_last`), and elementwise functions,
    random bits and keys, pooling and sums over few features, and products that jaxlib may compute wrongly, each in a
    module of this room. On accelerators: gradients of kernels, in a form that vmap keeps fast (`kernel_gradients`).

    Args:
        closed: the program; programs nested in it (loops, branches, calls) are treated alike.
        args: its arguments, flat.
        platform: the platform that it will run on, "cpu", "gpu" or "tpu".
        modules: those that rewrite; by default all for the platform.
    """
    modules = _modules(platform) if modules is None else modules
    jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))
    made_by: dict[Any, JaxprEqn] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    # The programs of single equations have other arguments than this one, so its names do not fit them.
    debug = jaxpr.debug_info.with_unknown_names()
    for eqn in jaxpr.eqns:
        module = next((module for module in modules if module.applies(eqn)), None)
        if module is not None:
            # All that these modules rewrite has a single output.
            values[eqn.outvars[0]] = module.apply(eqn, read, made_by)
        else:
            inputs = [read(atom) for atom in eqn.invars]
            values.update(zip(eqn.outvars, _apply(eqn, inputs, debug, modules), strict=True))
        # Some rewrites depend on the equation that made an argument (`elementwise`, `reductions`).
        made_by.update(dict.fromkeys(eqn.outvars, eqn))
    return [read(atom) for atom in jaxpr.outvars]


def with_keys(function: Callable[..., T], platform: str) -> Callable[..., T]:
    """Returns a function with random bits and keys rewritten for the platform, and nothing else (`random_bits`)."""
    if platform != "cpu":
        return function

    def rewritten(*args: Any) -> T:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        found = evaluate(program, *jax.tree.leaves(args), modules=(random_bits,))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return rewritten


def _apply(eqn: JaxprEqn, inputs: Sequence[Any], debug: Any, modules: Sequence[_Module]) -> Sequence[Any]:
    """Returns the outputs of one equation that no module rewrites."""
    # A nested program is traced anew only if something in it is rewritten.
    if _slow(eqn, modules):
        eqn = eqn.replace(params={name: _rewritten(value, modules) for name, value in eqn.params.items()})
    # A program of one equation: JAX's interpreter knows how to apply each primitive.
    given = {atom: value for atom, value in zip(eqn.invars, inputs, strict=True) if not isinstance(atom, Literal)}
    one = Jaxpr((), list(given), eqn.outvars, [eqn], eqn.effects, debug)
    return jax.core.eval_jaxpr(one, (), *given.values())


def _convolved_bytes(eqn: JaxprEqn) -> int:
    if eqn.primitive is conv_general_dilated_p or _is_own(eqn):
        return max(_tiled_bytes(atom.aval) for atom in (*eqn.invars, *eqn.outvars))
    return max(map(convolved_bytes, jaxprs_in_params(eqn.params)), default=0)


def _tiled_bytes(array: Any) -> int:
    """Returns the size of an array in tiles of 8 x 128 numbers, its axes in the order that pads least."""
    shape: tuple[int, ...] = array.shape
    padded = lambda size, tile: -(-size // tile) * tile  # noqa: E731
    pairs = [(i, j) for i in range(len(shape)) for j in range(len(shape)) if i != j]
    others = lambda *axes: math.prod(size for axis, size in enumerate(shape) if axis not in axes)  # noqa: E731
    least = min((others(i, j) * padded(shape[i], 8) * padded(shape[j], 128) for i, j in pairs), default=array.size)
    return least * array.dtype.itemsize


def _slow(eqn: JaxprEqn, modules: Sequence[_Module]) -> bool:
    """Returns whether an equation, or one nested in it, is rewritten."""
    if any(module.applies(eqn) for module in modules):
        return True
    inner = () if _is_own(eqn) else jaxprs_in_params(eqn.params)
    return any(_slow(eqn, modules) for jaxpr in inner for eqn in jaxpr.eqns)


def _is_own(eqn: JaxprEqn) -> bool:
    """Returns whether an equation is a call that this room makes, whose lowering is already chosen."""
    # `custom_vmap` keeps the names of the functions that `convolution.batching` and `kernel_gradients` decorate.
    call = eqn.params.get("call") if eqn.primitive.name == "custom_vmap_call" else None
    return call is not None and call.jaxpr.debug_info.func_name.endswith(("jaxpt_convolution", "jaxpt_kernel_gradient"))


def _rewritten(value: Any, modules: Sequence[_Module]) -> Any:
    """Returns an equation's parameter with the programs in it (a loop's body, branches) rewritten."""
    # A tuple of programs: the branches of `cond` and `switch`.
    if isinstance(value, tuple) and any(isinstance(v, ClosedJaxpr) for v in value):
        return tuple(_rewritten(v, modules) for v in value)
    if isinstance(value, ClosedJaxpr):
        return jax.make_jaxpr(partial(evaluate, value, modules=modules))(*value.in_avals)
    if isinstance(value, Jaxpr) and not value.constvars:  # the body of `jax.checkpoint`, before jax 0.12
        return _rewritten(ClosedJaxpr(value, ()), modules).jaxpr
    return value
