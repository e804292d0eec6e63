"""Convolutions in the layout that XLA:CPU is fast at, wherever a traced program has them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxprs_in_params
from jax.extend.core.primitives import conv_general_dilated_p
from jaxtyping import Array

from jaxpt.convolution.choice import choose
from jaxpt.convolution.direct import in_portions
from jaxpt.convolution.geometry import Geometry, geometry
from jaxpt.convolution.rules import Static, compute, describe


def has_convolutions(jaxpr: Jaxpr) -> bool:
    """Whether a traced program holds a convolution, at any depth."""
    return any(map(_convolves, jaxpr.eqns))


def evaluate(closed: ClosedJaxpr, *args: Array) -> list[Array]:
    """Computes a traced program with its convolutions as channels-last ones.

    XLA:CPU has a fast convolution for images [B, H, W, C] and kernels [h, w, C, O] only. It brings others into that
    form, but in the entry computation, not inside a loop; and gradients of convolutions have other forms. Here all are
    written with the transpositions spelled out, which changes nothing but the order of sums.

    Args:
        closed: the program; what is in loops, branches and calls of it is treated alike.
        args: its arguments, flat.
    """
    jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    debug = jaxpr.debug_info.with_unknown_names()
    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        values.update(zip(eqn.outvars, _apply(eqn, inputs, debug), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(eqn: JaxprEqn, inputs: Sequence[Any], debug: Any) -> Sequence[Any]:
    """Returns the outputs of one equation."""
    if eqn.primitive is conv_general_dilated_p:
        return [_channels_last(*inputs, **eqn.params)]
    if _convolves(eqn):
        eqn = eqn.replace(params={name: _rewritten(value) for name, value in eqn.params.items()})
    # A program of one equation: JAX's own interpreter knows how each primitive wants to be applied.
    given = {atom: value for atom, value in zip(eqn.invars, inputs, strict=True) if not isinstance(atom, Literal)}
    one = Jaxpr((), list(given), eqn.outvars, [eqn], eqn.effects, debug)
    return jax.core.eval_jaxpr(one, (), *given.values())


def _convolves(eqn: JaxprEqn) -> bool:
    return eqn.primitive is conv_general_dilated_p or any(map(has_convolutions, jaxprs_in_params(eqn.params)))


def _rewritten(value: Any) -> Any:
    """Returns an equation's parameter with the programs in it (a loop's body, branches) rewritten."""
    if isinstance(value, tuple) and any(isinstance(v, ClosedJaxpr) for v in value):
        return tuple(map(_rewritten, value))
    if isinstance(value, ClosedJaxpr):
        return jax.make_jaxpr(partial(evaluate, value))(*value.in_avals)
    if isinstance(value, Jaxpr) and not value.constvars:  # the body of `jax.checkpoint`
        return _rewritten(ClosedJaxpr(value, ())).jaxpr
    return value


def _ungrouped(convolve: Callable[[Array, Array], Array], lhs: Array, rhs: Array, params: dict[str, Any]) -> Array:
    """Returns a channels-last convolution by the lowering that its shapes ask for (`jaxpt.convolution.choice`)."""
    dilated = {1} != {*params["lhs_dilation"], *params["rhs_dilation"]}
    sizes = *lhs.shape, *rhs.shape
    if lhs.ndim == 4 and not dilated and min(sizes) > 0 and jnp.issubdtype(lhs.dtype, jnp.floating):
        shape = geometry(lhs.shape[1:3], rhs.shape[:2], params["window_strides"], params["padding"])
        part, kernel = "forward", rhs
        if shape.strides == (1, 1) and _padded(shape):  # the gradient of a convolution with less padding
            (h, w), ((top, bottom), (left, right)) = shape.kernel, shape.padding
            less = (h - 1 - top, h - 1 - bottom), (w - 1 - left, w - 1 - right)
            shape = shape._replace(image=shape.output, padding=less)
            part, kernel = "input_gradient", jnp.transpose(rhs[::-1, ::-1], (0, 1, 3, 2))
        work = describe(part, shape, (1, *lhs.shape), (1, *kernel.shape))
        if min(shape.output) > 0 and choose(work, "cpu") != "direct":
            static = Static(shape, None, params["precision"], params["preferred_element_type"], None)
            return compute(part, static, lhs[None], kernel[None])[0]
    return in_portions(convolve, lhs, rhs)


def _padded(shape: Geometry) -> bool:
    """Whether much of what a convolution reads is padding."""
    (height, width), ((top, bottom), (left, right)) = shape.image, shape.padding
    return (height + top + bottom) * (width + left + right) > 1.5 * height * width


def _channels_last(lhs: Array, rhs: Array, *, dimension_numbers: lax.ConvDimensionNumbers, **params: Any) -> Array:
    """Returns the convolution with any dimension numbers, computed by one with those of Flax."""
    images, kernel, out = dimension_numbers
    last = lhs.ndim - 1
    space = tuple(range(1, last))
    channels_last = lax.ConvDimensionNumbers((0, last, *space), (last, last - 1, *range(last - 1)), (0, last, *space))
    lhs = jnp.transpose(lhs, (images[0], *images[2:], images[1]))
    rhs = jnp.transpose(rhs, (*kernel[2:], kernel[1], kernel[0]))
    convolve = partial(conv_general_dilated_p.bind, dimension_numbers=channels_last, **params)
    grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
    result = convolve(lhs, rhs) if grouped else _ungrouped(convolve, lhs, rhs, params)
    return jnp.transpose(result, [(out[0], *out[2:], out[1]).index(axis) for axis in range(last + 1)])
