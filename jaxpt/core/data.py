"""Data on the device, and minibatches drawn there by key: epochs without replacement."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree

from jaxpt.core import tree

_SORT_AT_MOST = 64  # examples; a longer order is not drawn whole
_FEISTEL_ROUNDS = 8


class Data(NamedTuple):
    """Splits of a data set: pytrees of arrays whose first axis is the examples; None for a missing split.

    Attributes:
        train: the split for minibatches.
        valid: the split for energies, and so for exchanges and the choice of the best replica.
        test: its scores are recorded if given; nothing depends on them.
    """

    train: PyTree = None
    valid: PyTree = None
    test: PyTree = None


def refuse_splits(call: str, more: Sequence[Any]) -> None:
    """Raises ValueError if splits were given one by one, as `fit` takes them, to a function that takes a `Data`.

    Args:
        call: the function's name.
        more: its positional arguments after the data.
    """
    if more:
        raise ValueError(
            f"{call} takes all splits as one jaxpt.Data, but {1 + len(more)} were given one by one; write "
            f"{call}(engine, jaxpt.Data(train, valid), ...)"
        )


class Batches(NamedTuple):
    """Minibatches of whole periods, given instead of drawn; all seeds share them, and all replicas.

    For an engine with `own_batches=True` each replica has its own, along an axis M after the periods.

    Attributes:
        examples: leaves [P, T, B, ...], or [P, M, T, B, ...]: P periods of T = `every` steps.
        counts: whether each example counts in the loss; the others only fill up a short minibatch.
    """

    examples: PyTree
    counts: Bool[Array, "P *M T B"]


def steps_per_epoch(num_examples: int, batch_size: int, drop_remainder: bool = False) -> int:
    """Returns the number of minibatches in an epoch; the last one may be short unless it is dropped."""
    return num_examples // batch_size if drop_remainder else -(-num_examples // batch_size)


def minibatches(
    key: Key[Array, ""],
    step: Int[Array, ""] | int,
    *,
    num_steps: int,
    num_examples: int,
    batch_size: int,
    drop_remainder: bool = False,
) -> tuple[Int[Array, "T B"], Bool[Array, "T B"]]:
    """Returns the examples that the steps `step` .. `step + num_steps - 1` use.

    Every epoch visits each example once, in an order that depends on (key, epoch) alone. So any stretch of steps can be
    computed without the earlier ones; see `order_at`. A short last minibatch is filled up with examples of the same
    epoch, with weight zero.

    Args:
        key: the same for the whole run.
        step: the first step; traced.
        num_steps: T, static.
        num_examples: size of the training split.
        batch_size: B, at most `num_examples`.
        drop_remainder: leave out an epoch's short last minibatch (other examples every epoch).

    Returns:
        Indices into the split, and whether each of them counts.
    """
    # Under vmap other generators ("rbg") draw all rows' bits from the first key, and an epoch has several rows.
    key = jax.random.wrap_key_data(jax.random.key_data(key)[..., :2], impl="threefry2x32")
    epoch_steps = steps_per_epoch(num_examples, batch_size, drop_remainder)
    steps = jnp.asarray(step) + jnp.arange(num_steps)
    epochs = steps // epoch_steps
    position = (steps % epoch_steps)[:, None] * batch_size + jnp.arange(batch_size)
    inside = position % num_examples
    if num_examples > _SORT_AT_MOST:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, epochs)
        return jax.vmap(order_at, (0, 0, None))(keys, inside, num_examples), position < num_examples
    # The most epochs that num_steps consecutive steps can touch, wherever they begin.
    orders = jax.vmap(lambda e: jax.random.permutation(jax.random.fold_in(key, e), num_examples))(
        epochs[0] + jnp.arange((num_steps + epoch_steps - 2) // epoch_steps + 1)
    )
    return orders[(epochs - epochs[0])[:, None], inside], position < num_examples


def order_at(key: Key[Array, ""], position: Int[Array, " B"], num_examples: int) -> Int[Array, " B"]:
    """Returns the entries at these positions of a random order of 0 .. num_examples - 1, without drawing all of it.

    A Feistel network permutes all numbers with the required number of bits; a result that is too large is permuted
    again until it is in range (Black and Rogaway, Ciphers with arbitrary finite domains, 2002). A permutation by
    sorting costs 0.2 ms for 1,000 examples on a CPU and tens of milliseconds for 100,000, in every period, even one of
    a single step.

    Args:
        key: determines the order.
        position: 0 .. num_examples - 1.
        num_examples: static, at least 16; the orders of fewer are not uniform.
    """
    bits = (num_examples - 1).bit_length()
    low, high = bits // 2, bits - bits // 2
    rounds = jax.random.bits(key, (_FEISTEL_ROUNDS,), jnp.uint32)

    def permute(x: Array) -> Array:
        left, right = x >> low, x & ((1 << low) - 1)
        for i in range(_FEISTEL_ROUNDS):
            if i % 2:
                right ^= _mixed(left, rounds[i]) >> (32 - low)
            else:
                left ^= _mixed(right, rounds[i]) >> (32 - high)
        return left << low | right

    def again(x: Array) -> Array:
        return jnp.where(x >= num_examples, permute(x), x)

    first = permute(position.astype(jnp.uint32))
    return jax.lax.while_loop(lambda x: jnp.any(x >= num_examples), again, first).astype(jnp.int32)


def _mixed(x: Array, round_key: Array) -> Array:
    """Returns 32 bits that depend on all bits of x and of the key: the finalizer of MurmurHash3, twice."""
    for _ in range(2):
        x = x ^ round_key
        x = (x ^ x >> 16) * jnp.uint32(0x85EBCA6B)
        x = (x ^ x >> 13) * jnp.uint32(0xC2B2AE35)
        x = x ^ x >> 16
    return x


def probe_batch(key: Key[Array, ""], valid: PyTree, size: int | None) -> PyTree:
    """Returns `size` examples of the validation split, drawn without replacement; the whole split if size is None."""
    if size is None or valid is None:
        return valid
    return tree.take(valid, jax.random.choice(key, tree.leading(valid), (size,), replace=False))


def examples_seen(
    steps: int, num_examples: int, batch_size: int, drop_remainder: bool = False, limit: int | None = None
) -> int:
    """Returns how many examples count in the first `steps` minibatches, at most `limit` in each."""
    epoch_steps = steps_per_epoch(num_examples, batch_size, drop_remainder)
    most = batch_size if limit is None else min(limit, batch_size)
    short = 0 if drop_remainder else num_examples % batch_size  # size of an epoch's last minibatch; 0: it is full
    epochs = steps // epoch_steps if short else 0
    return (steps - epochs) * most + epochs * min(short, most)
