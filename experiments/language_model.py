"""Learning rate and dropout on one ladder, a small transformer that reads Python's own reference text.

uv run -m experiments.language_model
"""

import dataclasses
from pathlib import Path
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

import jaxpt
from experiments import runner
from experiments.options import BaseOptions, command
from experiments.runner import Work
from jaxpt.core.data import Data

CHARACTERS = 128
"""Characters are ASCII codes; any other character of the text is a question mark."""


class Block(nnx.Module):
    """Causal self-attention and a dense layer with GELU, both with normalisation before and dropout behind."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.wide = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, rngs=rngs)
        self.dropout1, self.dropout2 = jaxpt.Dropout(rngs=rngs), jaxpt.Dropout(rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Returns what comes behind both."""
        x = x + self.dropout1(self.attention(self.norm1(x), mask=nnx.make_causal_mask(x[..., 0])))
        return x + self.dropout2(self.narrow(jax.nn.gelu(self.wide(self.norm2(x)))))


class Transformer(nnx.Module):
    """A causal transformer over characters."""

    def __init__(self, context: int, *, width: int = 48, blocks: int = 2, heads: int = 4, rngs: nnx.Rngs):
        self.character = nnx.Embed(CHARACTERS, width, rngs=rngs)
        self.position = nnx.Embed(context, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(blocks)])
        self.norm, self.out = nnx.LayerNorm(width, rngs=rngs), nnx.Linear(width, CHARACTERS, rngs=rngs)

    def __call__(self, text: Int[Array, "B T"]) -> Float[Array, "B T characters"]:
        """Returns at each place the logits of the character that comes next."""
        x = self.character(text) + self.position(jnp.arange(text.shape[-1]))
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


def loss(model: nnx.Module, batch: dict) -> Array:
    """Cross-entropy in nats a character, over all places of each window."""
    text = batch["text"].astype(jnp.int32)
    return jaxpt.cross_entropy(model(text[:, :-1]), text[:, 1:]).mean(-1)


def last(model: nnx.Module, batch: dict) -> Float[Array, "B characters"]:
    """Logits of the character behind each window, which the model has seen all of."""
    return model(batch["text"][:, :-1].astype(jnp.int32))[:, -1]


def error(model: nnx.Module, batch: dict) -> Array:
    """Whether another character than the one behind the window is the most probable."""
    return jaxpt.zero_one_loss(last(model, batch), batch["label"])


def reference_text(context: int, stride: int = 8) -> Data:
    """Windows of Python's reference text, `pydoc_data.topics`: about 370,000 characters, some more in newer Pythons.

    A paragraph that stands in several topics counts once; the first 80 % of the text are for training, then 10 % each
    for validation and test: no window overlaps two splits. Phrases that recur may stand in both.

    Leaves: text uint8 [N, context + 1]; label int32 [N], the last character.
    """
    paragraphs = dict.fromkeys(paragraph for topic in topics.values() for paragraph in topic.split("\n\n"))
    text = np.frombuffer("\n\n".join(paragraphs).encode("ascii", "replace"), np.uint8)
    parts = np.split(text, [len(text) * 8 // 10, len(text) * 9 // 10])
    windows = [np.lib.stride_tricks.sliding_window_view(part, context + 1)[::stride] for part in parts]
    return Data(*({"text": w.copy(), "label": w[:, -1].astype(np.int32)} for w in windows))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(BaseOptions):
    """Replicas of a small causal transformer that predicts the next character of Python's reference text."""

    steps: int = 1000
    every: int = 25
    burn_in: int = 200
    batch_size: int = 16
    C: float = 30.0
    seeds: int = 1
    probe: int | None = 256
    curve: int | None = 512
    sample: int | None = 1000
    directory: Path = Path("runs/language_model")
    context: int = 32
    """Characters that the model sees."""
    width: int = 48
    """Numbers that stand for a character; a multiple of the 4 heads."""
    blocks: int = 2
    """Blocks of attention and a dense layer."""
    coldest: float = 0.001
    """Adam's learning rate on the coldest rung."""
    hottest: float = 0.008
    """Adam's learning rate on the hottest rung; the rungs between are spaced geometrically."""
    least_dropout: float = 0.0
    """Dropout rate on the coldest rung."""
    most_dropout: float = 0.1
    """Dropout rate on the hottest rung; the rungs between are spaced evenly."""


def prepare(options: Options) -> Work:
    """Returns what is to be run."""
    if not 0 < options.coldest < options.hottest:
        raise ValueError(f"--coldest {options.coldest} must be above 0 and below --hottest {options.hottest}")

    def network(*, rngs: nnx.Rngs) -> nnx.Module:
        return Transformer(options.context, width=options.width, blocks=options.blocks, rngs=rngs)

    engine = jaxpt.Engine(
        jaxpt.nnx_problem(network, loss, metrics={"error": error}, predict=last),
        lambda h: optax.adam(h["learning_rate"]),
        jaxpt.Ladder(
            learning_rate=jaxpt.geometric(options.coldest, options.hottest, options.replicas),
            dropout_rate=jaxpt.linear(options.least_dropout, options.most_dropout, options.replicas),
            beta="learning_rate",
        ),
        jaxpt.Independent(),  # each arm puts in its own
        every=options.every,
        burn_in=options.burn_in,
        batch_size=options.batch_size,
        probe=options.probe,
    )
    data = reference_text(options.context)
    what = f"Python's reference text, windows of {options.context} characters, {len(data.train['text']):,} to train on"
    return Work("language_model", engine, data, what)


def main(options: Options) -> None:
    """Runs the experiment."""
    runner.run(prepare(options), options)


if __name__ == "__main__":
    command(main, Options)
