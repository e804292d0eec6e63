"""Rewrites any traced program for XLA:CPU: layout and lowering of convolutions, small axes, random bits."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxprs_in_params
from jax.extend.core.primitives import conv_general_dilated_p
from jaxtyping import Array

from jaxpt.lowering import elementwise, narrow, random_bits, reductions
from jaxpt.lowering.convolution.batching import Static, compute, describe
from jaxpt.lowering.convolution.choice import choose
from jaxpt.lowering.convolution.direct import in_portions
from jaxpt.lowering.convolution.geometry import Geometry, geometry

_OTHERS = (elementwise, random_bits, reductions, narrow)
"""Modules that rewrite single equations."""


def has_convolutions(jaxpr: Jaxpr) -> bool:
    """Returns whether a traced program contains a convolution of lax or of jaxpt, at any depth."""
    return any(map(_convolves, jaxpr.eqns))


def evaluate(closed: ClosedJaxpr, *args: Array) -> list[Array]:
    """Computes a traced program with its convolutions in channels-last form, and other slow equations rewritten.

    XLA:CPU has a fast convolution only for images [B, H, W, C] and kernels [h, w, C, O]. It converts others to that
    form in the entry computation, but not inside a loop; and gradients of convolutions have other forms. Here all are
    written with explicit transpositions, or as the matrix products that `lowering.convolution` chooses for their
    shapes. Only the order of sums changes, as long as all numbers are finite: products multiply zeros with nearby
    pixels, so a value that is not finite spreads further. Elementwise functions, random bits, pooling and sums over few
    features, and products that jaxlib may compute wrongly each have a module in this room.

    Args:
        closed: the program; programs nested in it (loops, branches, calls) are treated alike.
        args: its arguments, flat.
    """
    jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))
    made_by: dict[Any, JaxprEqn] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    # The programs of single equations have other arguments than this one, so its names do not fit them.
    debug = jaxpr.debug_info.with_unknown_names()
    for eqn in jaxpr.eqns:
        other = next((module for module in _OTHERS if module.applies(eqn)), None)
        if other is not None:
            # All that these modules rewrite has a single output.
            values[eqn.outvars[0]] = other.apply(eqn, read, made_by)
        else:
            inputs = [read(atom) for atom in eqn.invars]
            values.update(zip(eqn.outvars, _apply(eqn, inputs, debug), strict=True))
        # Some rewrites depend on the equation that made an argument (`elementwise`, `reductions`).
        made_by.update(dict.fromkeys(eqn.outvars, eqn))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(eqn: JaxprEqn, inputs: Sequence[Any], debug: Any) -> Sequence[Any]:
    """Returns the outputs of one equation."""
    if eqn.primitive is conv_general_dilated_p:
        return [_channels_last(*inputs, **eqn.params)]
    # A nested program is traced anew only if something in it is rewritten.
    if _slow(eqn):
        eqn = eqn.replace(params={name: _rewritten(value) for name, value in eqn.params.items()})
    # A program of one equation: JAX's interpreter knows how to apply each primitive.
    given = {atom: value for atom, value in zip(eqn.invars, inputs, strict=True) if not isinstance(atom, Literal)}
    one = Jaxpr((), list(given), eqn.outvars, [eqn], eqn.effects, debug)
    return jax.core.eval_jaxpr(one, (), *given.values())


def _convolves(eqn: JaxprEqn) -> bool:
    stock = eqn.primitive is conv_general_dilated_p
    return stock or _is_own(eqn) or any(map(has_convolutions, jaxprs_in_params(eqn.params)))


def _slow(eqn: JaxprEqn) -> bool:
    """Returns whether an equation, or one nested in it, is rewritten."""
    if eqn.primitive is conv_general_dilated_p or any(module.applies(eqn) for module in _OTHERS):
        return True
    return not _is_own(eqn) and any(_slow(inner) for jaxpr in jaxprs_in_params(eqn.params) for inner in jaxpr.eqns)


def _is_own(eqn: JaxprEqn) -> bool:
    """Returns whether an equation is a call of `lowering.convolution`, whose lowering is already chosen."""
    # `custom_vmap` keeps the name of the function that `batching` decorates.
    call = eqn.params.get("call") if eqn.primitive.name == "custom_vmap_call" else None
    return call is not None and call.jaxpr.debug_info.func_name.endswith("jaxpt_convolution")


def _rewritten(value: Any) -> Any:
    """Returns an equation's parameter with the programs in it (a loop's body, branches) rewritten."""
    # A tuple of programs: the branches of `cond` and `switch`.
    if isinstance(value, tuple) and any(isinstance(v, ClosedJaxpr) for v in value):
        return tuple(map(_rewritten, value))
    if isinstance(value, ClosedJaxpr):
        return jax.make_jaxpr(partial(evaluate, value))(*value.in_avals)
    if isinstance(value, Jaxpr) and not value.constvars:  # the body of `jax.checkpoint`, before jax 0.12
        return _rewritten(ClosedJaxpr(value, ())).jaxpr
    return value


def _ungrouped(lhs: Array, rhs: Array, params: dict[str, Any]) -> Array:
    """Returns a channels-last convolution, by the lowering that `convolution.choice` returns for its shapes."""
    preferred, plain = params["preferred_element_type"], {1} == {*params["lhs_dilation"], *params["rhs_dilation"]}
    if lhs.ndim == 4 and plain and min(*lhs.shape, *rhs.shape) > 0 and jnp.issubdtype(lhs.dtype, jnp.floating):
        shape = geometry(lhs.shape[1:3], rhs.shape[:2], params["window_strides"], params["padding"])
        if min(shape.output) > 0:
            part, shape, a, b = _described(shape, lhs, rhs)
            # Programs are rewritten on CPUs only, and for one replica (M = 1) at a time.
            lowering = choose(describe(part, shape, (1, *a.shape), (1, *b.shape)), "cpu")
            if lowering != "direct":
                out = compute(part, Static(shape, lowering, params["precision"], preferred, None), a[None], b[None])[0]
                # [h, w, C, O] -> [C, h, w, O]: the channels C are the examples of this convolution.
                return out.transpose(2, 0, 1, 3) if part == "kernel_gradient" else out

    def convolve(lhs: Array, rhs: Array, preferred: Any) -> Array:
        return conv_general_dilated_p.bind(lhs, rhs, **{**params, "preferred_element_type": preferred})

    return in_portions(convolve, lhs, rhs, preferred)


def _described(shape: Geometry, lhs: Array, rhs: Array) -> tuple[str, Geometry, Array, Array]:
    """Returns a convolution, perhaps as another one's gradient, as part, geometry and arrays of `batching.compute`."""
    (height, width), ((top, bottom), (left, right)), (h, w) = shape.image, shape.padding, shape.kernel
    if shape.strides == (1, 1) and h * w > math.prod(shape.output) > 1:
        # A kernel larger than its output: the gradient of a kernel, whose cotangent slides over the images.
        return (
            "kernel_gradient",
            shape._replace(kernel=shape.output),
            lhs.transpose(3, 1, 2, 0),
            rhs.transpose(2, 0, 1, 3),
        )
    if shape.strides == (1, 1) and (height + top + bottom) * (width + left + right) > 1.5 * height * width:
        # Much of the input is padding: taken as the input gradient of a convolution with less padding.
        less = (h - 1 - top, h - 1 - bottom), (w - 1 - left, w - 1 - right)
        of = shape._replace(image=shape.output, padding=less)
        return "input_gradient", of, lhs, rhs[::-1, ::-1].transpose(0, 1, 3, 2)
    return "forward", shape, lhs, rhs


def _channels_last(lhs: Array, rhs: Array, *, dimension_numbers: lax.ConvDimensionNumbers, **params: Any) -> Array:
    """Returns a convolution with any dimension numbers, computed in Flax's layout (channels last)."""
    # Each specification lists (batch or output, feature or input, *space).
    images, kernel, out = dimension_numbers
    last = lhs.ndim - 1
    space = tuple(range(1, last))
    channels_last = lax.ConvDimensionNumbers((0, last, *space), (last, last - 1, *range(last - 1)), (0, last, *space))
    lhs = jnp.transpose(lhs, (images[0], *images[2:], images[1]))
    rhs = jnp.transpose(rhs, (*kernel[2:], kernel[1], kernel[0]))
    params["dimension_numbers"] = channels_last
    # Grouped convolutions get the layout alone: the lowerings cover none.
    grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
    result = conv_general_dilated_p.bind(lhs, rhs, **params) if grouped else _ungrouped(lhs, rhs, params)
    return jnp.transpose(result, [(out[0], *out[2:], out[1]).index(axis) for axis in range(last + 1)])
