import jax
import numpy as np
import pytest

from jaxpt.data import examples_seen, minibatches, steps_per_epoch


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
