"""Gradients of convolutions' kernels on accelerators, in a form that vmap over replicas keeps fast.

The gradient of a kernel is a convolution of the images with the cotangent, in which examples take the place of
channels. JAX's vmap makes M of them one convolution with a group of these channels for each replica: a forward
convolution with a window as large as the picture, which cuDNN has no kernels for. Here it becomes one whose groups
divide the batch (`batch_group_count`), as in the gradient of the sum over M replicas. XLA:GPU computes that by cuDNN's
gradient of a grouped convolution, with the layer's own window. XLA:TPU makes one program of both.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend.core import JaxprEqn
from jax.extend.core.primitives import conv_general_dilated_p
from jaxtyping import Array

from jaxpt.lowering.merging import merge, split, unless_on_tpu


def applies(eqn: JaxprEqn) -> bool:
    """Returns whether an equation is the gradient of a kernel, without groups, in a form that `apply` knows."""
    if eqn.primitive is not conv_general_dilated_p:
        return False
    p = eqn.params
    (images, cotangent, _), groups = p["dimension_numbers"], {p["feature_group_count"], p["batch_group_count"]}
    # The examples, on the first axis of both, are summed over as channels are. (Where they are on another axis, JAX's
    # own form stays; so it does for arrays whose types hold shardings.)
    summed = images[1] == cotangent[1] == 0
    return summed and groups == {1} and p.get("out_sharding") is None


def apply(eqn: JaxprEqn, read: Callable[[Any], Any], made_by: Mapping[Any, JaxprEqn]) -> Array:
    """Returns the output of an equation for which `applies` is true; arguments as in `elementwise.apply`."""
    del made_by

    def convolve(images: Array, cotangent: Array, groups: int) -> Array:
        return conv_general_dilated_p.bind(images, cotangent, **{**eqn.params, "batch_group_count": groups})

    return batched(convolve, eqn.params["dimension_numbers"])(*map(read, eqn.invars))


def batched(
    convolve: Callable[[Array, Array, int], Array], numbers: lax.ConvDimensionNumbers
) -> Callable[[Array, Array], Array]:
    """Returns the function of (images, cotangent) with a batching rule of its own.

    Args:
        convolve: (images, cotangent, batch_group_count) -> their convolution, the gradient of the kernel.
        numbers: its dimension numbers.
    """
    images_axis, cotangent_axis = numbers.lhs_spec[0], numbers.rhs_spec[0]
    channels, features = numbers.out_spec[:2]

    @custom_vmap
    def jaxpt_kernel_gradient(images: Array, cotangent: Array) -> Array:  # `rewrite` finds calls by this name
        return convolve(images, cotangent, 1)

    @jaxpt_kernel_gradient.def_vmap
    def rule(size: int, given: list[bool], images: Array, cotangent: Array) -> tuple[Array, bool]:
        def in_groups(images: Array, cotangent: Array) -> Array:
            # A vmap of this one is JAX's own, which multiplies the groups.
            together = convolve(merge(images, images_axis), merge(cotangent, cotangent_axis), size)
            return split(together, features, size)

        def folded(images: Array, cotangent: Array) -> Array:
            # An axis of one argument alone is more channels or more features: still the gradient of a single kernel.
            images = merge(images, images_axis) if given[0] else images
            cotangent = merge(cotangent, cotangent_axis) if given[1] else cotangent
            return split(batched(convolve, numbers)(images, cotangent), channels if given[0] else features, size)

        if all(given):
            return in_groups(images, cotangent), True
        if given[0]:
            return folded(images, cotangent), True
        return unless_on_tpu(folded, in_groups, size, images, cotangent), True

    return jaxpt_kernel_gradient
