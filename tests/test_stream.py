import dataclasses
import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt.core.data import Batches, minibatches
from jaxpt.engine.period import DATA
from jaxpt.training.stream import is_stream, prefetch
from tests import conftest
from tests.conftest import make_engine

RUNGS = jaxpt.Ladder(learning_rate=[0.02, 0.05, 0.1, 0.2])


def softmax_regression(count=lambda: None):
    """One matrix, quick to compile; nothing in it looks at a whole minibatch. `count` is called by each trace."""

    def energy(w, batch):
        count()
        return jaxpt.cross_entropy(batch["x"] @ w, batch["y"])

    shape = (conftest.FEATURES, conftest.CLASSES)
    return jaxpt.energy_problem(energy, lambda key: jax.random.normal(key, shape))


PLAIN = softmax_regression()


def in_order(engine, train, seed=0, replica=None):
    """A stream of NumPy minibatches, short ones short, in the order that the engine draws for this seed."""
    key = jax.random.fold_in(jax.random.key(seed), DATA)
    drawn = minibatches(
        key if replica is None else jax.random.fold_in(key, replica), 0, num_steps=60, num_examples=len(train["y"]),
        batch_size=engine.batch_size, drop_remainder=engine.drop_remainder,
    )  # fmt: skip
    for indices, counts in zip(*map(np.asarray, drawn), strict=True):
        yield jax.tree.map(lambda a, rows=indices[counts]: a[rows], train)


def assert_same_run(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.trace, b.trace)
    weights = lambda result: (result.state.replicas.params, result.state.replicas.model_state)
    jax.tree.map(np.testing.assert_array_equal, weights(a), weights(b))
    assert a.replica_images == b.replica_images


@pytest.mark.users_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "rungs", "drop_remainder", "steps"),
    [(PLAIN, RUNGS, False, 18), (conftest.small_problem(), None, True, 15)],
    ids=["short minibatches and a short period", "dropout and batch statistics"],
)
def test_a_stream_gives_the_bits_of_data_on_the_device_in_the_same_order(problem, rungs, drop_remainder, steps, data):
    """100 examples in minibatches of 16, the seventh of an epoch has 4 or is dropped; three periods of 5 steps."""
    engine = make_engine(problem, rungs, rule=jaxpt.Tempering(3.0), drop_remainder=drop_remainder)
    settings = {"steps": steps, "seed": 7, "progress": False}
    there = jaxpt.fit(engine, data.train, data.valid, **settings)
    stream = in_order(engine, data.train, seed=7)
    streamed = jaxpt.fit(engine, stream, data.valid, **settings)
    assert there.trace.info.attempted.any(), "there are exchanges to compare"
    assert_same_run(there, streamed)
    after = next(itertools.islice(in_order(engine, data.train, seed=7), steps, None))
    jax.tree.map(np.testing.assert_array_equal, next(stream), after)  # no more was taken than used


def own_in_order(engine, train, seed=0):
    """The same for each replica in turn, a minibatch of each for every step."""
    streams = [in_order(engine, train, seed, replica) for replica in range(engine.num_replicas)]
    return (batch for step in zip(*streams, strict=True) for batch in step)


@pytest.mark.users_compiler
@pytest.mark.slow
@pytest.mark.parametrize("how", ["vmap", "map"])
def test_a_stream_of_each_replicas_own_minibatches_gives_the_bits_of_data_on_the_device(how, data):
    """Some of them are short; three periods and a short one. Each of M consecutive minibatches is of one replica."""
    engine = make_engine(PLAIN, RUNGS, rule=jaxpt.Tempering(3.0), own_batches=True, replica_axis=how)
    settings = {"steps": 18, "seed": 7, "progress": False}
    there = jaxpt.fit(engine, data.train, data.valid, **settings)
    stream = own_in_order(engine, data.train, seed=7)
    streamed = jaxpt.fit(engine, stream, data.valid, **settings)
    assert there.trace.info.accepted.any()
    assert_same_run(there, streamed)
    after = next(itertools.islice(own_in_order(engine, data.train, seed=7), 4 * 18, None))
    jax.tree.map(np.testing.assert_array_equal, next(stream), after)
    shared = jaxpt.fit(dataclasses.replace(engine, own_batches=False), data.train, data.valid, **settings)
    assert not np.allclose(there.trace.loss, shared.trace.loss), "the minibatches differ"


@pytest.mark.slow
def test_own_minibatches_of_any_size_count_as_they_are(data):
    """Two seeds share them; a rung of batch_size 2 counts two examples at most, and the first replica gets one each."""
    rungs = jaxpt.Ladder(batch_size=[16, 2])
    engine = make_engine(PLAIN, rungs, fixed={"learning_rate": 0.1}, rule=jaxpt.Independent(), own_batches=True)

    def sized(sizes):
        return (jax.tree.map(lambda leaf, n=n: leaf[:n], data.train) for n in itertools.cycle(sizes))

    run = lambda sizes, **more: jaxpt.fit(engine, sized(sizes), data.valid, steps=7, progress=False, **more)
    result = run([1, 16], seeds=[0, 1])
    assert result.replica_images == 2 * 7 * (1 + 2)
    other = run([1, 2], seed=1)  # the examples beyond the second count nowhere
    np.testing.assert_allclose(result.trace.loss[:, 1], other.trace.loss, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_all_seeds_share_a_stream(data):
    """Equal to a run of its own for each seed; 2e-5, the sums being ordered otherwise."""
    engine = make_engine(PLAIN, RUNGS, rule=jaxpt.Tempering(3.0))
    settings = {"steps": 15, "progress": False}
    both = jaxpt.fit(engine, in_order(engine, data.train), data.valid, seeds=[0, 1], **settings)
    alone = jaxpt.fit(engine, in_order(engine, data.train), data.valid, seed=1, **settings)
    np.testing.assert_allclose(both.trace.loss[:, 1], alone.trace.loss, rtol=2e-5, atol=2e-5)
    assert not np.allclose(both.trace.loss[:, 0], alone.trace.loss)
    assert both.replica_images == 2 * 4 * (2 * 100 + 16)


@pytest.mark.slow
def test_images_of_batch_size_rungs_are_counted_as_they_are(data):
    """As of data on the device: an epoch of 100 examples is 6 minibatches of 16 and one of 4, then comes one more."""
    rungs = jaxpt.Ladder(batch_size=[16, 2])
    engine = make_engine(PLAIN, rungs, fixed={"learning_rate": 0.1}, rule=jaxpt.Tempering(3.0))
    settings = {"steps": 8, "progress": False}
    there = jaxpt.fit(engine, data.train, data.valid, **settings)
    streamed = jaxpt.fit(engine, in_order(engine, data.train), data.valid, **settings)
    assert_same_run(there, streamed)
    assert streamed.replica_images == (7 * 16 + 4) + 8 * 2


@pytest.mark.slow
def test_more_periods_trace_nothing_anew(data):
    count = 0

    def one_more():
        nonlocal count
        count += 1

    engine = make_engine(softmax_regression(one_more), RUNGS)
    traced = []
    for steps in (10, 40, 15):
        count = 0
        jaxpt.fit(engine, in_order(engine, data.train), data.valid, steps=steps, progress=False)
        traced.append(count)
    # Shapes are checked each time; the program is traced the first time only.
    assert traced[0] > traced[1] == traced[2]


def numbers(count=None, size=4):
    for i in itertools.count() if count is None else range(count):
        yield {"v": np.full((size, 2), i, np.float32)}


def test_the_next_period_is_made_while_this_one_is_in_use():
    """The consumer holds period k and asks for nothing; the whole of period k + 1 is read meanwhile, and no more."""
    read, whole = 0, threading.Semaphore(0)

    def stream():
        nonlocal read
        for batch in numbers():
            read += 1
            if read % 3 == 0:
                whole.release()
            yield batch

    feed = prefetch(stream(), [3] * 5, 4)
    for period in range(5):
        batches = next(feed)
        np.testing.assert_array_equal(batches.examples["v"][0, :, 0, 0], 3 * period + np.arange(3))
        for _ in range(2 if period == 0 else period < 4):  # the first period was waited for, the next one is not
            assert whole.acquire(timeout=30)
        assert read == min(3 * (period + 2), 15)
    assert next(feed, None) is None


def test_short_minibatches_are_filled_up_and_the_filling_does_not_count():
    stream = iter([{"v": np.arange(4.0)}, {"v": np.arange(3.0)}, {"v": np.arange(1.0)}])
    (batches,) = prefetch(stream, [3], 4)
    np.testing.assert_array_equal(batches.examples["v"], [[[0, 1, 2, 3], [0, 1, 2, 0], [0, 0, 0, 0]]])
    np.testing.assert_array_equal(batches.counts[0].sum(-1), [4, 3, 1])


def test_minibatches_of_each_replica_lead_with_the_replicas():
    (batches,) = prefetch(numbers(), [2], 4, replicas=3)
    np.testing.assert_array_equal(batches.examples["v"][0, :, :, 0, 0], [[0, 3], [1, 4], [2, 5]])
    assert batches.counts.shape == (1, 3, 2, 4)


def broken_at(step, batch):
    """Good minibatches, but for one."""
    for i, good in enumerate(numbers()):
        yield batch if i == step else good


def test_a_stream_may_write_into_the_same_arrays_again():
    def reused():
        held = np.zeros((4, 2), np.float32)
        for number in range(6):
            held[:] = number
            yield {"v": held}

    for replicas, lengths in ((None, [3, 3]), (2, [2, 1])):
        taken = [batches.examples["v"] for batches in prefetch(reused(), lengths, 4, replicas=replicas)]
        seen = [np.unique(period[0, ..., 0, 0]).tolist() for period in taken]
        assert list(itertools.chain(*seen)) == [0, 1, 2, 3, 4, 5]


def failing():
    yield from numbers(4)
    raise OSError("disk on fire")


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (numbers(4), "ended before step 4: it holds 4 minibatches, but the run has 9 steps"),
        (numbers(0), "ended before step 0"),
        (broken_at(5, {"v": np.zeros((4, 3), np.float32)}), r"step 5 is unlike .* float32\[B, 3\] .* float32\[B, 2\]"),
        (broken_at(5, {"v": np.zeros((4, 2), np.int32)}), r"step 5 is unlike .* int32\[B, 2\]"),
        (broken_at(5, {"w": np.zeros((4, 2), np.float32)}), "step 5 is unlike"),
        (broken_at(5, {"v": np.zeros((5, 2), np.float32)}), "step 5 has 5 examples, but the engine's batch_size=4"),
        (broken_at(0, {"v": np.zeros((0, 2), np.float32)}), "step 0 has 0 examples"),
        (broken_at(5, {"v": np.zeros((4, 2)), "w": np.zeros(3)}), "step 5 must share their first axis"),
    ],
)
def test_what_is_wrong_with_a_stream_is_said_with_its_step(stream, message):
    with pytest.raises(ValueError, match=message):
        list(prefetch(stream, [2, 2, 2, 3], 4))


def test_an_error_of_the_stream_itself_comes_through_with_its_step():
    with pytest.raises(OSError, match="disk on fire") as info:
        list(prefetch(failing(), [3, 3], 4))
    assert "step 4" in info.value.__notes__[0]


@pytest.mark.slow
def test_fit_says_what_is_wrong(data):
    engine = make_engine(PLAIN, RUNGS)
    stream = lambda: in_order(engine, data.train)
    with pytest.raises(ValueError, match="ended before step 7"):
        jaxpt.fit(engine, itertools.islice(stream(), 7), data.valid, steps=20, progress=False)
    with pytest.raises(ValueError, match="validation split is empty"):
        jaxpt.fit(engine, stream(), None, steps=5, progress=False)
    own = make_engine(PLAIN, RUNGS, own_batches=True)
    ends = r"ended before step 2: it holds 11 minibatches, .* 5 steps of 4 minibatches, one for each replica"
    with pytest.raises(ValueError, match=ends):
        jaxpt.fit(own, itertools.islice(stream(), 11), data.valid, steps=5, progress=False)
    first = ({**batch, "y": batch["y"] + 5 * (i == 6)} for i, batch in enumerate(stream()))
    with pytest.raises(ValueError, match=r"the stream's minibatch of step 1 for replica 2: .* labels must lie in"):
        jaxpt.fit(own, first, data.valid, steps=5, progress=False)
    wrong = ({"x": batch["x"], "y": batch["y"] + 5} for batch in stream())
    with pytest.raises(ValueError, match="labels must lie in"):
        jaxpt.fit(engine, wrong, data.valid, steps=5, progress=False)


def test_run_refuses_minibatches_that_do_not_fit(data):
    engine = make_engine(PLAIN, RUNGS)
    state = engine.init(jax.random.key(0))
    (batches,) = prefetch(in_order(engine, data.train), [5], 16)
    with pytest.raises(ValueError, match="leave one of them out"):
        engine.run(state, data, periods=1, batches=batches)
    with pytest.raises(ValueError, match=r"\(periods, every, batch_size\) = \(2, 5, 16\)"):
        engine.run(state, data._replace(train=None), periods=2, batches=batches)
    own = dataclasses.replace(engine, own_batches=True)
    with pytest.raises(ValueError, match=r"\(periods, replicas, every, batch_size\) = \(1, 4, 5, 16\)"):
        own.run(state, data._replace(train=None), periods=1, batches=batches)


def test_streams_are_told_from_arrays(data):
    class Loader:
        def __iter__(self):
            return numbers()

    assert is_stream(numbers())
    assert is_stream(Loader())
    for split in (None, data.train, [np.zeros(3)], (np.zeros(3),), np.zeros(3), jnp.zeros(3), Batches(1, 2)):
        assert not is_stream(split)


def test_a_finished_run_on_a_stream_may_be_called_again(data, tmp_path):
    engine = make_engine(PLAIN, RUNGS)
    first, again = (
        jaxpt.fit(
            engine, in_order(engine, data.train), data.valid, steps=2 * engine.every, directory=tmp_path, progress=False
        )
        for _ in range(2)
    )
    assert_same_run(first, again)
