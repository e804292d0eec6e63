"""The convolution of stacked replicas, with custom gradients and a custom batching rule.

There are three functions, linear in both arguments: the convolution and its two gradients. The gradients of each are
the other two, so gradients of any order exist. Each has one batching rule: an axis added by vmap becomes more replicas
if both arguments have it, otherwise more examples, features or channels. So a first layer whose images are the same for
all replicas is one ordinary convolution with M times the features, and a vmap over seeds of a vmap over replicas is a
convolution of S * M replicas.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, DTypeLike, Float

from jaxpt.lowering.convolution import choice, direct, products
from jaxpt.lowering.convolution.geometry import Geometry
from jaxpt.lowering.merging import merge, split, unless_on_tpu

UNROLLED = 8
"""Direct convolutions unrolled per pass of the loop over replicas: enough to fill the cores, few enough to compile."""


class Static(NamedTuple):
    """The static parameters of a convolution."""

    shape: Geometry
    """Sizes, strides and padding."""
    lowering: str | None
    """One of `choice.LOWERINGS`; None: chosen by `choice.choose`."""
    precision: Any
    """Precision of the products, as in lax."""
    preferred: DTypeLike | None
    """`preferred_element_type`, as in lax."""
    dtype: DTypeLike | None
    """Dtype that the result is cast to; None: no cast."""


_GRADIENTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    # function(a, b): (part, arguments) of the gradients at the cotangent u, with respect to a and to b
    "forward": (lambda a, b, u: ("input_gradient", u, b), lambda a, b, u: ("kernel_gradient", a, u)),
    "input_gradient": (lambda a, b, u: ("forward", u, b), lambda a, b, u: ("kernel_gradient", u, a)),
    "kernel_gradient": (lambda a, b, u: ("input_gradient", b, u), lambda a, b, u: ("forward", a, u)),
}

_FOLDS = {
    # For a vmap over a only, and over b only: the axes of argument and result that the new axis is merged into.
    "forward": ((1, 1), (4, 4)),  # more examples B; more features O
    "input_gradient": ((1, 1), (3, 4)),  # more examples B; more channels C
    "kernel_gradient": ((4, 3), (4, 4)),  # more channels C; more features O
}


# custom_vjp allows reverse mode only; `general.conv_by_products` has forward mode.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def apply(part: str, static: Static, a: Float[Array, "M ..."], b: Float[Array, "M ..."]) -> Float[Array, "M ..."]:
    """Returns a convolution of M replicas, or one of its gradients.

    Args:
        part: the function, which determines a and b: "forward" of images [M, B, H, W, C] and kernels [M, h, w, C, O];
            "input_gradient" of output cotangents [M, B, rows, columns, O] and kernels; "kernel_gradient" of images
            and output cotangents.
        static: the static parameters.
        a: the first argument.
        b: the second argument.
    """
    return _batched(part, static)(a, b)


def _forward(part: str, static: Static, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return apply(part, static, a, b), (a, b)


def _backward(part: str, static: Static, saved: tuple[Array, Array], u: Array) -> tuple[Array, Array]:
    def gradient(i: int) -> Array:
        name, *arguments = _GRADIENTS[part][i](*saved, u)
        # A gradient has the dtype of its argument, whatever `preferred_element_type` made of the result.
        return apply(name, static._replace(preferred=None, dtype=saved[i].dtype), *arguments)

    return gradient(0), gradient(1)


apply.defvjp(_forward, _backward)


def _batched(part: str, static: Static) -> Callable[[Array, Array], Array]:
    """Returns the function of (a, b) with its batching rule."""

    @custom_vmap
    def jaxpt_convolution(a: Array, b: Array) -> Array:  # `rewrite` finds calls by this name
        return compute(part, static, a, b)

    @jaxpt_convolution.def_vmap
    def rule(size: int, batched: list[bool], a: Array, b: Array) -> tuple[Array, bool]:
        def stacked(a: Array, b: Array, into: tuple[int | None, int | None] = (0, 0), out: int = 0) -> Array:
            a, b = (x if axis is None else merge(x, axis) for x, axis in zip((a, b), into, strict=True))
            # `_batched` again, so that a vmap of a vmap meets the same rule.
            return split(_batched(part, static)(a, b), out, size)

        if all(batched):
            return stacked(a, b), True
        # An axis of one argument alone is folded into it, so that the other one is not copied.
        axis, out = _FOLDS[part][0 if batched[0] else 1]
        folded = partial(stacked, into=(axis, None) if batched[0] else (None, axis), out=out)
        if part == "kernel_gradient" and batched[1]:
            return unless_on_tpu(folded, stacked, size, a, b), True
        return folded(a, b), True

    return jaxpt_convolution


def compute(part: str, static: Static, a: Float[Array, "M ..."], b: Float[Array, "M ..."]) -> Float[Array, "M ..."]:
    """Returns the result of `apply`, by the given lowering or by the choice for the platform."""
    if static.lowering is not None:
        return _lowered(part, static, static.lowering, a, b)
    work = describe(part, static.shape, a.shape, b.shape)
    chosen = {platform: choice.choose(work, platform) for platform in ("cpu", "gpu", "tpu")}
    if len(set(chosen.values())) == 1:
        return _lowered(part, static, chosen["cpu"], a, b)
    # The platform is known only when JAX lowers a program: it may be another one than that of JAX's default device.
    on = {platform: partial(_lowered, part, static, lowering) for platform, lowering in chosen.items()}
    tpu = {} if chosen["tpu"] == chosen["gpu"] else {"tpu": on["tpu"]}
    return lax.platform_dependent(a, b, cpu=on["cpu"], **tpu, default=on["gpu"])


def _lowered(part: str, static: Static, lowering: str, a: Array, b: Array) -> Float[Array, "M ..."]:
    """Returns the result of `apply` by one of `choice.LOWERINGS`."""
    work = describe(part, static.shape, a.shape, b.shape)
    # A cotangent has the dtype of the result, which may differ from that of images and kernels.
    dtype = jnp.promote_types(a.dtype, b.dtype)
    options: dict[str, Any] = {"precision": static.precision, "preferred_element_type": static.preferred}
    canonical = {} if part == "forward" else {"canonical": lowering == "direct"}
    if lowering in ("direct", "grouped"):
        one = partial(direct.PARTS[part], shape=static.shape, **canonical, **options)
    else:
        blocks = {"block": choice.block(lowering, work), "by_rows": lowering == "rows"}
        one = partial(products.PARTS[part], shape=static.shape, **blocks, **options)
    out = _over_replicas(one, lowering)(a.astype(dtype), b.astype(dtype))
    return out if static.dtype is None else out.astype(static.dtype)


def describe(part: str, shape: Geometry, a: tuple[int, ...], b: tuple[int, ...]) -> choice.Work:
    """Returns the work for arguments a and b of these shapes."""
    # b is a kernel [M, h, w, C, O], but for "kernel_gradient" a cotangent [M, B, rows, columns, O].
    channels = b[3] if part != "kernel_gradient" else a[4]
    return choice.Work(part, shape, a[0], a[1], channels, b[4])


def _over_replicas(one: Callable[[Array, Array], Array], lowering: str) -> Callable[[Array, Array], Array]:
    def stacked(a: Array, b: Array) -> Array:
        # Without a batch axis lax's convolution stays ungrouped.
        if a.shape[0] == 1:
            return one(a[0], b[0])[None]
        if lowering != "direct":
            return jax.vmap(one)(a, b)
        # A loop, since vmap would make one grouped convolution, which is slow on CPUs.
        _, out = lax.scan(lambda _, pair: (None, one(*pair)), None, (a, b), unroll=min(UNROLLED, a.shape[0]))
        return out

    return stacked
