"""Which lowering computes a convolution of stacked replicas, or one of its gradients: a pure function of shapes."""

import math
from typing import NamedTuple

from jaxpt.lowering.convolution.geometry import Geometry

LOWERINGS = ("direct", "grouped", "blocks", "rows", "im2col", "toeplitz")
"""How a convolution is computed:

- "direct": lax's convolution, replica after replica, gradients in the layout that XLA's CPU kernel takes;
- "grouped": one convolution of lax with a group per replica, what vmap makes of it;
- "blocks", "im2col", "toeplitz": a product with blocks of several columns, of one, of all (`products`);
- "rows": blocks of several columns, a product for each row of the kernel.
"""


PARTS = ("forward", "input_gradient", "kernel_gradient")
"""The convolution, and its gradients with respect to the images and to the kernel."""


class Work(NamedTuple):
    """One convolution or gradient to compute, in the sizes of the forward pass."""

    part: str
    """One of `PARTS`."""
    shape: Geometry
    """Sizes, strides and padding."""
    replicas: int
    """M kernels, each with images of its own."""
    batch: int
    """B images a replica."""
    channels: int
    """C of the images."""
    features: int
    """O of the output."""


def choose(work: Work, backend: str) -> str:
    """Returns the lowering, one of `LOWERINGS`.

    CPU: measured by benchmarks/convolutions.py on one core, since replicas are what fills the others (jax 0.10.2,
    float32, M = 1, batches of 32 and 128, layers of LeNet, of ResNet-20 and of a network for digits); the choice is
    within a fifth of the best for nearly all. XLA's kernel is the fastest where it reads four channels or more and the
    kernel is 3x3. Its input gradient computes every pixel that the gradient's padding adds, so a 5x5 kernel without
    padding costs three to five times the forward pass. Grouped gradients take 3 to 100 times as long as the best. GPU
    and TPU: not measured; products for small images, since a step of those is bound by launches, else what vmap does.

    Args:
        work: what is computed.
        backend: "cpu", "gpu", "tpu".
    """
    rows, columns = work.shape.output
    if rows == columns == 1 or work.shape.kernel == work.shape.strides == (1, 1):
        return "im2col"  # one product as it stands: nothing is copied or wasted
    if backend != "cpu":
        small = work.shape.image[0] * work.shape.image[1] * work.channels < 4096
        return "blocks" if small and work.replicas > 1 else "grouped"
    if work.part == "kernel_gradient":
        narrow = work.channels < 4 and (work.channels == 1 or work.features > 32)
        return "blocks" if narrow or work.batch < 4 else "direct"
    if work.channels < 4:
        return "blocks"
    down, along = work.shape.strides
    if work.part == "forward":
        return "rows" if 25 <= math.prod(work.shape.kernel) < 64 and work.features <= 32 else "direct"
    padded = work.shape.image[0] * work.shape.image[1] > 1.5 * rows * down * columns * along
    return "rows" if padded else "direct"


def block(lowering: str, work: Work) -> int:
    """Returns how many columns of the output one product takes, for a lowering by products.

    "blocks" and "rows" take as many as make the product up to 32 wide, at least two, all of one size but the last; or
    up to a third fewer that fill whole vectors: 28 columns of six features take two thirds of the time in blocks of
    four, not five.
    """
    columns = work.shape.output[1]
    if lowering not in ("blocks", "rows"):
        return columns if lowering == "toeplitz" else 1

    def even(size: int) -> int:
        return -(-columns // -(-columns // size))

    largest = even(max(2, 32 // work.features))
    smaller = (n for n in range(largest, 2 * largest // 3, -1) if n == even(n) and n * work.features % 8 == 0)
    return next(smaller, largest)
