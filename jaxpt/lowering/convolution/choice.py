"""The choice of the lowering for a convolution of stacked replicas, or for one of its gradients, by shapes alone."""

import math
from typing import NamedTuple

from jaxpt.lowering.convolution.geometry import Geometry

LOWERINGS = ("direct", "grouped", "blocks", "rows", "im2col", "toeplitz")
"""The ways to compute a convolution:

- "direct": lax's convolution, one replica after the other, gradients in the layout of XLA's CPU kernel;
- "grouped": one convolution of lax with a group per replica, as vmap makes it; gradients of kernels with groups of
  examples (`kernel_gradients`);
- "blocks", "im2col", "toeplitz": a product with blocks of several columns, of one column, of all columns (`products`);
- "rows": blocks of several columns, with a product for each row of the kernel.
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
    """M kernels, each with separate images."""
    batch: int
    """B images per replica."""
    channels: int
    """C of the images."""
    features: int
    """O of the output."""


def choose(work: Work, platform: str) -> str:
    """Returns the lowering, one of `LOWERINGS`.

    CPU: measured by benchmarks/convolutions.py on one core, since other replicas fill the other cores (jax 0.10.2,
    float32, M = 1, batches of 32 and 128, layers of LeNet, of ResNet-20 and of a network for digits). The choice is
    within a fifth of the best for nearly all of these. XLA's kernel is the fastest if it reads four channels or more
    and the kernel is 3x3. Its input gradient computes every pixel that the gradient's padding adds, so a 5x5 kernel
    without padding costs three to five times the forward pass. Grouped gradients take 3 to 100 times as long as the
    best.

    GPU and TPU: compiled for TPU v5e and H100 ahead of time, not run. XLA:TPU makes groups an axis of a batch and
    wastes nothing: by its own estimates products take 2.6 to 17 times the cycles of the grouped convolution, for the
    layers of LeNet with M = 8. XLA:GPU calls cuDNN with a group for each replica, for all three parts.

    Args:
        work: the convolution or gradient to compute.
        platform: "cpu", "gpu" or "tpu".
    """
    if platform == "tpu":
        return "grouped"  # a single product too: copying the images for it costs more than is won
    rows, columns = work.shape.output
    if rows == columns == 1 or work.shape.kernel == work.shape.strides == (1, 1):
        return "im2col"  # already a single product: nothing is copied or wasted
    if platform != "cpu":
        return "grouped"
    # XLA's kernel is fast from four channels on; those of a direct kernel gradient are the examples (`direct`).
    if work.part == "kernel_gradient":
        # Few channels with many features: also a first layer of shared images, whose replicas are folded into O.
        narrow = work.channels < 4 and (work.channels == 1 or work.features > 32)
        return "blocks" if narrow or work.batch < 4 else "direct"
    if work.channels < 4:
        return "blocks"
    # From here on four channels or more.
    down, along = work.shape.strides
    if work.part == "forward":
        # Square kernels of 5x5 to 7x7; for 3x3 XLA's kernel is the fastest.
        return "rows" if 25 <= math.prod(work.shape.kernel) < 64 and work.features <= 32 else "direct"
    # Pixels that only the gradient's padding adds. Strides dilate the cotangent, which is not padding.
    padded = work.shape.image[0] * work.shape.image[1] > 1.5 * rows * down * columns * along
    return "rows" if padded else "direct"


def block(lowering: str, work: Work) -> int:
    """Returns the number of output columns in one product, for a lowering by products.

    "blocks" and "rows" take as many columns as make the product up to 32 numbers wide, at least two, all blocks equal
    except the last. They take up to a third fewer if these fill whole vectors: 28 columns of six features take two
    thirds of the time in blocks of four instead of five.
    """
    columns = work.shape.output[1]
    if lowering not in ("blocks", "rows"):
        return columns if lowering == "toeplitz" else 1

    # The smallest block size that needs no more blocks than `size` does.
    def even(size: int) -> int:
        return -(-columns // -(-columns // size))

    largest = even(max(2, 32 // work.features))
    # A multiple of eight numbers fills whole vectors.
    smaller = (n for n in range(largest, 2 * largest // 3, -1) if n == even(n) and n * work.features % 8 == 0)
    return next(smaller, largest)
