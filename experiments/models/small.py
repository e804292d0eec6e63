"""The network of the digits experiment."""

from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, Float

import jaxpt

Conv = partial(nnx.Conv, conv_general_dilated=jaxpt.conv_general_dilated)


class SmallConvNet(nnx.Module):
    """Two strided convolutions and two dense layers with dropout, for 8x8 images in [0, 1]; 13,706 weights."""

    def __init__(self, classes: int = 10, *, rngs: nnx.Rngs):
        self.conv1 = Conv(1, 16, (3, 3), strides=2, rngs=rngs)
        self.conv2 = Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.dense1 = nnx.Linear(2 * 2 * 32, 64, rngs=rngs)
        self.dropout = jaxpt.Dropout("dropout_rate", rngs=rngs)
        self.dense2 = nnx.Linear(64, classes, rngs=rngs)

    def __call__(self, image: Float[Array, "B 8 8 1"]) -> Float[Array, "B classes"]:
        """Returns logits."""
        x = jax.nn.relu(self.conv1(image))
        x = jax.nn.relu(self.conv2(x))
        x = jax.nn.relu(self.dense1(x.reshape(len(x), -1)))
        return self.dense2(self.dropout(x))
