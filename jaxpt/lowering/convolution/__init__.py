"""Convolutions of stacked replicas: a `lax.conv_general_dilated` with several lowerings."""

from jaxpt.lowering.convolution.general import conv_by_products, conv_general_dilated
from jaxpt.lowering.convolution.layers import fast_convolutions

__all__ = ["conv_by_products", "conv_general_dilated", "fast_convolutions"]
