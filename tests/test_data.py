import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpt.core.data import examples_seen, minibatches, order_at, steps_per_epoch


@pytest.mark.parametrize(("examples", "batch"), [(10, 4), (12, 4), (5, 5), (7, 1)])
def test_every_epoch_visits_each_example_once(examples, batch):
    epoch = steps_per_epoch(examples, batch)
    indices, counts = minibatches(jax.random.key(0), 0, num_steps=3 * epoch, num_examples=examples, batch_size=batch)
    epochs = np.asarray(indices).reshape(3, -1), np.asarray(counts).reshape(3, -1)
    orders = [i[c] for i, c in zip(*epochs, strict=True)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(examples))
    if examples > 5:
        assert any((orders[0] != other).any() for other in orders[1:]), "epochs are shuffled anew"


def test_a_dropped_remainder_leaves_only_whole_minibatches():
    indices, counts = minibatches(jax.random.key(0), 0, num_steps=4, num_examples=10, batch_size=4, drop_remainder=True)
    assert counts.all()
    for epoch in np.asarray(indices).reshape(2, 8):
        assert len(set(epoch)) == 8


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 5, 17])
def test_any_stretch_of_steps_can_be_recomputed(start):
    draw = lambda step, steps: minibatches(jax.random.key(5), step, num_steps=steps, num_examples=10, batch_size=4)
    whole, stretch = draw(0, 30), draw(start, 7)
    for a, b in zip(whole, stretch, strict=True):
        np.testing.assert_array_equal(a[start : start + 7], b)


def test_what_fills_up_a_short_minibatch_is_real_and_does_not_count():
    indices, counts = minibatches(jax.random.key(0), 2, num_steps=1, num_examples=10, batch_size=4)
    assert counts.tolist() == [[True, True, False, False]]
    assert len(set(np.asarray(indices[0]).tolist())) == 4


@pytest.mark.parametrize("drop", [False, True])
def test_examples_seen_counts_short_minibatches_as_they_are(drop):
    _, counts = minibatches(jax.random.key(0), 0, num_steps=11, num_examples=10, batch_size=4, drop_remainder=drop)
    assert examples_seen(11, 10, 4, drop) == counts.sum()
    assert examples_seen(11, 10, 4, drop, limit=3) == np.minimum(counts.sum(1), 3).sum()


@pytest.mark.parametrize("count", [65, 128, 1000, 8192, 112_383])
def test_an_order_that_is_not_drawn_whole_is_a_permutation(count):
    orders = jax.vmap(lambda key: order_at(key, jnp.arange(count), count))(jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(np.sort(orders, axis=-1), np.tile(np.arange(count), (2, 1)))
    first, second = np.asarray(orders)
    assert (first == second).sum() < 12, "two orders have one place in common on average"
    assert (first == np.arange(count)).sum() < 12


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
@pytest.mark.parametrize("examples", [60, 5000])
def test_epochs_are_epochs_with_keys_of_other_generators(impl, examples):
    """These keys give all rows of a vmap the bits of the first, and an epoch is drawn in several calls."""
    size = examples // 10
    epoch = steps_per_epoch(examples, size)
    draw = lambda key, step: minibatches(key, step, num_steps=5, num_examples=examples, batch_size=size)
    keys = jax.random.split(jax.random.key(0, impl=impl), 2)
    found = [jax.vmap(draw, (0, None), (0, None))(keys, step)[0] for step in range(0, epoch, 5)]
    for order in np.concatenate(found, 1).reshape(2, -1):
        np.testing.assert_array_equal(np.sort(order), np.arange(examples))


@pytest.mark.parametrize("count", [65, 100])
def test_such_orders_of_a_few_examples_are_random(count):
    """20,000 keys: every position and every two are uniform; places kept and ascents have the exact moments."""
    keys, bins = jax.random.split(jax.random.key(7), 20_000), 8
    orders = np.asarray(jax.jit(jax.vmap(lambda key: order_at(key, jnp.arange(count), count)))(keys))
    for at in (0, 1, count // 2, count - 1):
        assert stats.chisquare(np.bincount(orders[:, at], minlength=count)).pvalue > 1e-3
    size = np.bincount(np.arange(count) * bins // count)
    expected = (np.outer(size, size) - np.diag(size)) / (count * (count - 1)) * len(keys)  # two are never the same
    for a, b in ((0, 1), (0, count // 2), (1, count - 1)):
        joint = np.histogram2d(orders[:, a] * bins // count, orders[:, b] * bins // count, bins=bins)[0]
        assert stats.chisquare(joint.ravel(), expected.ravel()).pvalue > 1e-3
    kept, ascents = (orders == np.arange(count)).sum(1), (np.diff(orders, axis=1) > 0).sum(1)
    noise = len(keys) ** -0.5
    assert abs(kept.mean() - 1) < 4 * noise
    assert abs(kept.var() - 1) < 4 * 3**0.5 * noise  # the fourth central moment of a Poisson number of mean 1 is 4
    assert abs(ascents.mean() - (count - 1) / 2) < 4 * noise * ((count + 1) / 12) ** 0.5
    assert abs(ascents.var() / ((count + 1) / 12) - 1) < 4 * 2**0.5 * noise


def test_such_orders_look_random():
    """20,000 keys: where positions 0, 1 and 2 lead is uniform, and independent for every two of them."""
    count, keys, bins = 5000, jax.random.split(jax.random.key(1), 20_000), 8
    found = np.asarray(jax.vmap(lambda key: order_at(key, jnp.arange(3), count))(keys)) * bins // count
    for a, b in ((0, 1), (0, 2), (1, 2)):
        joint = np.histogram2d(found[:, a], found[:, b], bins=bins)[0]
        assert stats.chisquare(joint.ravel()).pvalue > 1e-3
    # Along one order: neighbours are independent too.
    order = np.asarray(order_at(jax.random.key(2), jnp.arange(112_383), 112_383)) * bins // 112_383
    joint = np.histogram2d(order[:-1], order[1:], bins=bins)[0]
    assert stats.chisquare(joint.ravel()).pvalue > 1e-3


@pytest.mark.slow
def test_an_epoch_of_many_examples_visits_each_once():
    count, batch = 5000, 128
    steps = steps_per_epoch(count, batch)
    index, counts = minibatches(jax.random.key(3), 0, num_steps=2 * steps, num_examples=count, batch_size=batch)
    for epoch in (slice(0, steps), slice(steps, None)):
        np.testing.assert_array_equal(np.sort(index[epoch][counts[epoch]]), np.arange(count))
    assert (index[:steps] != index[steps:]).any()
    later, _ = minibatches(jax.random.key(3), 37, num_steps=5, num_examples=count, batch_size=batch)
    np.testing.assert_array_equal(later, index[37:42])
