"""The paper's LeNets (arXiv 1909.04013), as its tables print them and as its authors' code runs them.

All weights start Glorot uniform ("Xavier"), all biases at zero. Dropout has the one rate `dropout_rate` everywhere.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

import jaxpt

Convolution = Callable[..., Array]
"""`lax.conv_general_dilated`, or a function that does the same faster."""

_glorot = nnx.initializers.glorot_uniform()


class TrainablePooling(nnx.Module):
    """LeCun's subsampling: a 2x2 average, scaled and shifted per feature map, through tanh.

    The scale starts at 1 and the shift at 0; an odd last row or column is left out.

    Args:
        features: number of feature maps C.
        rngs: not used; there is nothing random here.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 C"]:
        """Returns tanh(scale * mean + bias)."""
        return jnp.tanh(nnx.avg_pool(x, (2, 2), strides=(2, 2)) * self.scale[...] + self.bias[...])


class SquaredDistance(nnx.Module):
    """RBF output: the squared Euclidean distance of the features to a learned centre of each class.

    The distance itself is the logit, as in the authors' code: class k is likely where features are FAR from centre k.
    The squared norm of the features is common to all classes and cancels in the softmax, which leaves a linear
    classifier with weights -2 c_k and biases |c_k|^2.

    Args:
        features: number of features F.
        classes: number of classes K.
        rngs: random streams; `params` is used.
    """

    def __init__(self, features: int, classes: int, *, rngs: nnx.Rngs):
        self.centres = nnx.Param(_glorot(rngs.params(), (features, classes)))

    def __call__(self, x: Float[Array, "B F"]) -> Float[Array, "B K"]:
        """Returns sum_f (x_f - centre_fk)^2."""
        return jnp.sum(jnp.square(x[:, :, None] - self.centres[...]), 1)


class LeNetEMNIST(nnx.Module):
    """LeNet-5 for EMNIST-letters: 63,084 weights with the RBF head, 63,110 with the softmax head.

    | layer                                     | gives     |                      |
    |-------------------------------------------|-----------|----------------------|
    | image, 28x28 padded to 32x32 by `prepare` | 32x32x1   |                      |
    | convolution 5x5, valid                    | 28x28x6   | tanh                 |
    | trainable average pooling                 | 14x14x6   | tanh, dropout        |
    | convolution 5x5, valid                    | 10x10x16  | tanh                 |
    | trainable average pooling                 | 5x5x16    | tanh, dropout        |
    | convolution 5x5, valid                    | 1x1x120   | tanh, dropout, twice |
    | dense                                     | 84        | tanh, dropout        |
    | head                                      | `classes` |                      |

    Dropout stands twice after the third convolution in the authors' code, so a number there survives with probability
    (1 - rate)^2.

    Args:
        classes: number of classes.
        channels: of the images.
        head: "rbf", squared distances to learned centres as logits, or "softmax", a dense layer.
        convolution: the function behind all convolutions; the default is the faster one for replicas.
        rngs: random streams; `params` and `dropout` are used.

    Raises:
        ValueError: the head is unknown.
    """

    def __init__(
        self,
        classes: int = 26,
        *,
        channels: int = 1,
        head: str = "rbf",
        convolution: Convolution = jaxpt.conv_general_dilated,
        rngs: nnx.Rngs,
    ):
        heads: dict[str, Callable[..., Any]] = {
            "rbf": SquaredDistance,
            "softmax": partial(nnx.Linear, kernel_init=_glorot),
        }
        if head not in heads:
            raise ValueError(f'the head must be "rbf" or "softmax", not {head!r}')
        conv = _valid_5x5(convolution, rngs)
        self.conv1, self.pool1 = conv(channels, 6), TrainablePooling(6, rngs=rngs)
        self.conv2, self.pool2 = conv(6, 16), TrainablePooling(16, rngs=rngs)
        self.conv3 = conv(16, 120)
        self.dense = nnx.Linear(120, 84, kernel_init=_glorot, rngs=rngs)
        self.head = heads[head](84, classes, rngs=rngs)
        self.dropout = jaxpt.Dropout("dropout_rate", rngs=rngs)

    def __call__(self, image: Float[Array, "B 32 32 channels"]) -> Float[Array, "B classes"]:
        """Returns logits."""
        x = self.dropout(self.pool1(jnp.tanh(self.conv1(image))))
        x = self.dropout(self.pool2(jnp.tanh(self.conv2(x))))
        x = self.dropout(jnp.tanh(self.conv3(x)))
        x = self.dropout(x.reshape(len(x), -1))
        x = self.dropout(jnp.tanh(self.dense(x)))
        return self.head(x)


class LeNetCIFAR10(nnx.Module):
    """The paper's network for CIFAR-10: what its table prints, or what its figures were made with.

    | "table": 62,006 weights                   | "as_run": 169,346 weights              |
    |-------------------------------------------|----------------------------------------|
    | image 32x32x3                             | image 32x32x3                          |
    | conv 5x5 -> 28x28x6, relu                 | conv 5x5 -> 28x28x16, relu             |
    | max pool -> 14x14x6, dropout              | max pool -> 14x14x16, dropout          |
    | conv 5x5 -> 10x10x16, relu                |                                        |
    | max pool -> 5x5x16, dropout               |                                        |
    | conv 5x5 -> 1x1x120, relu, dropout        | conv 5x5 -> 10x10x120, relu            |
    | dense -> 84, relu, dropout                | flatten -> 12,000, dropout             |
    | dense -> `classes`                        | dense -> `classes`                     |

    In the authors' code the 16 maps of the second convolution are computed from the image, not from the first pooling,
    and the dense layer of 84 is overwritten, so neither the 6 maps nor the 84 features reach the output: the network
    has one convolution and one pooling less, reads 12,000 features of a 10x10 grid instead of 84, and has 2.7 times the
    weights. It also learns far better, so the paper's CIFAR-10 figures are reproduced with "as_run" only.

    Args:
        classes: number of classes.
        channels: of the images.
        version: "table" or "as_run".
        convolution: the function behind all convolutions; the default is the faster one for replicas.
        rngs: random streams; `params` and `dropout` are used.

    Raises:
        ValueError: the version is unknown.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        channels: int = 3,
        version: str = "as_run",
        convolution: Convolution = jaxpt.conv_general_dilated,
        rngs: nnx.Rngs,
    ):
        if version not in ("table", "as_run"):
            raise ValueError(f'the version must be "table" or "as_run", not {version!r}')
        conv, dense = _valid_5x5(convolution, rngs), partial(nnx.Linear, kernel_init=_glorot, rngs=rngs)
        table = version == "table"
        pooled = [conv(channels, 6), conv(6, 16)] if table else [conv(channels, 16)]
        hidden = [dense(120, 84)] if table else []
        self.pooled, self.hidden = nnx.List(pooled), nnx.List(hidden)
        self.conv = conv(16, 120)
        self.out = dense(84 if table else 10 * 10 * 120, classes)
        self.dropout = jaxpt.Dropout("dropout_rate", rngs=rngs)

    def __call__(self, image: Float[Array, "B 32 32 channels"]) -> Float[Array, "B classes"]:
        """Returns logits."""
        x = image
        for conv in self.pooled:
            x = self.dropout(nnx.max_pool(nnx.relu(conv(x)), (2, 2), strides=(2, 2)))
        x = nnx.relu(self.conv(x))
        x = self.dropout(x.reshape(len(x), -1))
        for dense in self.hidden:
            x = self.dropout(nnx.relu(dense(x)))
        return self.out(x)


def _valid_5x5(convolution: Convolution, rngs: nnx.Rngs) -> Callable[[int, int], nnx.Conv]:
    """Returns (maps in, maps out) -> a 5x5 convolution without padding."""
    return lambda fan_in, fan_out: nnx.Conv(
        fan_in,
        fan_out,
        (5, 5),
        padding="VALID",
        kernel_init=_glorot,
        conv_general_dilated=convolution,
        rngs=rngs,
    )
