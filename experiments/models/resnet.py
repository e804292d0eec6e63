"""Residual networks for CIFAR (He et al. 2016, arXiv 1512.03385, section 4.2), original and pre-activation."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

import jaxpt

Convolution = Callable[..., Array]
"""`lax.conv_general_dilated`, or a function that does the same faster."""

_glorot = nnx.initializers.glorot_uniform()
_he = nnx.initializers.he_normal()


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation over examples and pixels, by running averages in evaluation or by the batch's statistics.

    Args:
        features: number of channels.
        batch_statistics: whether evaluation, too, uses the mean and variance of the batch that it is given. A score
            then depends on which examples are evaluated together.
        rngs: random streams; `params` is used.
    """

    def __init__(self, features: int, *, batch_statistics: bool = False, rngs: nnx.Rngs):
        super().__init__(features, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.batch_statistics = batch_statistics

    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> Float[Array, "B H W C"]:
        """Returns x [B, H, W, C], normalised per channel."""
        return super().__call__(x, False if self.batch_statistics else use_running_average, mask=mask)


class OriginalBlock(nnx.Module):
    """conv-BN-relu-conv-BN, plus the shortcut, then relu.

    Args:
        fan_in: channels of the input.
        fan_out: channels of the output; twice as many come with half the rows and columns.
        norm: makes a normalisation of so many channels.
        conv: makes a 3x3 convolution from (channels in, channels out, stride).
    """

    def __init__(
        self, fan_in: int, fan_out: int, norm: Callable[[int], BatchNorm], conv: Callable[[int, int, int], nnx.Conv]
    ):
        self.conv1, self.norm1 = conv(fan_in, fan_out, _stride(fan_in, fan_out)), norm(fan_out)
        self.conv2, self.norm2 = conv(fan_out, fan_out, 1), norm(fan_out)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B rows columns O"]:
        """Returns the block's output."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + shortcut_by_subsampling(x, y.shape[-1]))


class PreactivationBlock(nnx.Module):
    """BN-relu-conv twice, plus the shortcut of the block's input.

    Args:
        fan_in: channels of the input.
        fan_out: channels of the output; twice as many come with half the rows and columns.
        norm: makes a normalisation of so many channels.
        conv: makes a 3x3 convolution from (channels in, channels out, stride).
        first: whether this is the network's first block, whose input the stem has normalised already.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        norm: Callable[[int], BatchNorm],
        conv: Callable[[int, int, int], nnx.Conv],
        first: bool = False,
    ):
        self.norm1 = None if first else norm(fan_in)
        self.conv1 = conv(fan_in, fan_out, _stride(fan_in, fan_out))
        self.norm2, self.conv2 = norm(fan_out), conv(fan_out, fan_out, 1)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B rows columns O"]:
        """Returns the block's output."""
        y = self.conv1(x if self.norm1 is None else nnx.relu(self.norm1(x)))
        y = self.conv2(nnx.relu(self.norm2(y)))
        return y + shortcut_by_averaging(x, y.shape[-1])


class ResNet(nnx.Module):
    """ResNet-(6n+2) for 32x32 images: a 3x3 convolution, 3n blocks of two with 16, 32 and 64 channels, a dense layer.

    Convolutions have no bias; weight decay, momentum and augmentation are the experiment's business. ResNet-20 has
    269,722 weights in both versions, ResNet-44 658,586.

    | "original" (v1, He et al. 2016)                  | "preactivation" (v2, the paper's code)           |
    |--------------------------------------------------|--------------------------------------------------|
    | stem conv-BN-relu                                | the same                                         |
    | blocks conv-BN-relu-conv-BN, add, relu           | blocks BN-relu-conv-BN-relu-conv, add            |
    |                                                  | the first block without its first BN-relu        |
    | shortcuts (option A): every second row and       | shortcuts: average of 2x2 pixels, zero channels  |
    | column, zero channels                            |                                                  |
    | mean over pixels, dense                          | BN-relu, mean over pixels, dense                 |
    | convolutions start He normal                     | convolutions start Glorot uniform                |

    Args:
        depth: number of layers with weights, 6n+2: 20, 32, 44, 56, 110, ...
        classes: number of classes.
        channels: of the images.
        version: "original" or "preactivation".
        batch_statistics: normalise by the batch's statistics in evaluation too, as the paper's code does, instead of
            by running averages.
        convolution: the function behind all convolutions; the default is the faster one for replicas.
        rngs: random streams; `params` is used.

    Raises:
        ValueError: the depth is not 6n+2, or the version is unknown.
    """

    def __init__(
        self,
        depth: int = 20,
        classes: int = 10,
        *,
        channels: int = 3,
        version: str = "original",
        batch_statistics: bool = False,
        convolution: Convolution = jaxpt.conv_general_dilated,
        rngs: nnx.Rngs,
    ):
        if version not in ("original", "preactivation"):
            raise ValueError(f'the version must be "original" or "preactivation", not {version!r}')
        per_stage = _blocks_per_stage(depth)
        original = version == "original"
        norm = partial(BatchNorm, batch_statistics=batch_statistics, rngs=rngs)

        def conv(fan_in: int, fan_out: int, stride: int) -> nnx.Conv:
            return nnx.Conv(
                fan_in,
                fan_out,
                (3, 3),
                strides=stride,
                padding=1,
                use_bias=False,
                kernel_init=_he if original else _glorot,
                conv_general_dilated=convolution,
                rngs=rngs,
            )

        widths = [16] + [width for width in (16, 32, 64) for _ in range(per_stage)]
        blocks: list[Any] = []
        for i, step in enumerate(pairwise(widths)):
            blocks.append(
                OriginalBlock(*step, norm, conv) if original else PreactivationBlock(*step, norm, conv, i == 0)
            )
        self.stem, self.stem_norm = conv(channels, 16, 1), norm(16)
        self.blocks = nnx.List(blocks)
        self.last_norm = None if original else norm(64)
        self.out = nnx.Linear(64, classes, kernel_init=_glorot, rngs=rngs)

    def __call__(self, image: Float[Array, "B H W channels"]) -> Float[Array, "B classes"]:
        """Returns logits."""
        x = nnx.relu(self.stem_norm(self.stem(image)))
        for block in self.blocks:
            x = block(x)
        if self.last_norm is not None:
            x = nnx.relu(self.last_norm(x))
        return self.out(x.mean((1, 2)))


def shortcut_by_subsampling(x: Float[Array, "B H W C"], channels: int) -> Float[Array, "B rows columns channels"]:
    """Option A: every second row and column, with as many zero channels before as after; x itself if nothing grows."""
    return x if x.shape[-1] == channels else _zero_channels(x[:, ::2, ::2], channels)


def shortcut_by_averaging(x: Float[Array, "B H W C"], channels: int) -> Float[Array, "B rows columns channels"]:
    """Means of 2x2 pixels, with as many zero channels before as after; x itself if nothing grows."""
    return x if x.shape[-1] == channels else _zero_channels(_half(x), channels)


def _half(x: Array) -> Array:
    """Means of 2x2 pixels, of what there is of them at an odd edge."""
    return nnx.avg_pool(x, (2, 2), strides=(2, 2), padding="SAME", count_include_pad=False)


def _zero_channels(x: Array, channels: int) -> Array:
    before = (channels - x.shape[-1]) // 2
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, channels - x.shape[-1] - before)))


def _stride(fan_in: int, fan_out: int) -> int:
    """Twice the channels at half the size."""
    return 1 if fan_in == fan_out else 2


def _blocks_per_stage(depth: int) -> int:
    """Returns n of depth 6n+2."""
    n, rest = divmod(depth - 2, 6)
    if n >= 1 and rest == 0:
        return n
    nearest = f"{6 * n + 2} and {6 * n + 8}" if n >= 1 else "8"
    raise ValueError(f"a ResNet for CIFAR has 6n+2 layers, n at least 1, not {depth}; nearest: {nearest}")
