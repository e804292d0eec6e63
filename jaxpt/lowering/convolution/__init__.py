"""Convolutions of stacked replicas: `lax.conv_general_dilated` with lowerings of its own."""

from jaxpt.lowering.convolution.general import conv_by_products, conv_general_dilated
from jaxpt.lowering.convolution.layers import fast_convolutions

__all__ = ["conv_by_products", "conv_general_dilated", "fast_convolutions"]
