"""A resumed run sets its stream to where it was: to the bit, and at a cost that does not grow with the run."""

import dataclasses
import itertools
import warnings

import grain
import jax
import numpy as np
import pytest

import jaxpt
from jaxpt.core.data import Data
from jaxpt.saving.progress import Position, checksum, from_text, to_text
from jaxpt.training.source import Source
from jaxpt.training.stream import prefetch
from tests.conftest import make_engine
from tests.test_checkpoint import assert_same_result
from tests.test_stream import PLAIN, RUNGS, numbers

BATCH = 16
ENGINE = make_engine(PLAIN, RUNGS, every=2, batch_size=BATCH, rule=jaxpt.Tempering(3.0))


def rows(data: Data):
    """The training examples one by one, as Grain's and PyTorch's sources give them."""
    return [{"x": x, "y": y} for x, y in zip(np.asarray(data.train["x"]), np.asarray(data.train["y"]), strict=True)]


AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
"""Grain reads ahead in threads, by default 500 minibatches."""


def grain_dataset(data):
    return grain.MapDataset.source(rows(data)).shuffle(seed=3).repeat().batch(BATCH).to_iter_dataset(AHEAD)


def grain_iterator(data):
    return iter(grain_dataset(data))


def grain_loader(data):
    sampler = grain.samplers.IndexSampler(len(rows(data)), shuffle=True, seed=1)  # repeats its epochs
    batch = grain.transforms.Batch(BATCH)
    return grain.DataLoader(data_source=rows(data), sampler=sampler, operations=[batch], read_options=AHEAD)


class Walk:
    """An iterator that keeps its position as a generator of random numbers does: in a dict of any values."""

    def __init__(self, data):
        self.rng, self.examples = np.random.default_rng(5), data.train

    def __iter__(self):
        return self

    def __next__(self):
        some = self.rng.integers(0, len(self.examples["y"]), BATCH)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[some], self.examples)

    def state_dict(self):
        return self.rng.bit_generator.state

    def load_state_dict(self, state):
        self.rng.bit_generator.state = state


def torch_loader(data):
    torch = pytest.importorskip("torch")
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    pytest.importorskip("torchdata.stateful_dataloader.sampler")
    examples = rows(data)
    order = stateful.sampler.RandomSampler(examples, generator=torch.Generator().manual_seed(2))
    return Epochs(stateful.StatefulDataLoader(examples, batch_size=BATCH, sampler=order))


class Epochs:
    """As in the guide: a loader read again and again."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        while True:
            yield from self.loader

    def state_dict(self):
        return self.loader.state_dict()

    def load_state_dict(self, state):
        self.loader.load_state_dict(state)


def hugging_face(data):
    datasets = pytest.importorskip("datasets")
    columns = {name: np.asarray(leaf) for name, leaf in data.train.items()}
    table = datasets.Dataset.from_dict(columns).with_format("numpy").shuffle(seed=0)
    return table.to_iterable_dataset(num_shards=4).repeat(None).batch(BATCH)


def fit(stream, data, directory=None, steps=14, engine=ENGINE, **more):
    return jaxpt.fit(engine, stream, data.valid, steps=steps, directory=directory, progress=False, **more)


def stop_after(steps):
    return [lambda status: status.step >= steps]


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [grain_dataset, grain_iterator, grain_loader, Walk, torch_loader, hugging_face],
    ids=lambda make: make.__name__,
)
def test_an_interrupted_run_equals_an_uninterrupted_one(make, data, tmp_path):
    """It ends after four periods, when the next one has already been read, and goes on with a new stream."""
    whole = fit(make(data), data)
    part = fit(make(data), data, tmp_path, callbacks=stop_after(8))
    assert part.state.step == 8
    assert_same_result(fit(make(data), data, tmp_path), whole)
    longer = fit(make(data), data, tmp_path, steps=17)  # a short last period, which is not saved
    assert_same_result(longer, fit(make(data), data, steps=17))


@pytest.mark.slow
def test_a_resumed_run_with_own_minibatches_equals_an_uninterrupted_one(data, tmp_path):
    own = dataclasses.replace(ENGINE, own_batches=True)
    whole = fit(grain_dataset(data), data, engine=own)
    fit(grain_dataset(data), data, tmp_path, engine=own, callbacks=stop_after(8))
    assert_same_result(fit(grain_dataset(data), data, tmp_path, engine=own), whole)


@pytest.mark.slow
def test_the_same_iterator_is_set_back_to_what_the_run_used(data, tmp_path):
    """The next period had been read from it when the run ended."""
    stream = grain_iterator(data)
    fit(stream, data, tmp_path, callbacks=stop_after(8))
    assert_same_result(fit(stream, data, tmp_path), fit(grain_iterator(data), data))


class Counted:
    """A source of examples that lists which of them are asked for."""

    def __init__(self, examples):
        self.examples, self.asked = examples, []

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.examples[index]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [8, 64])
def test_resuming_asks_the_source_for_what_is_new_only(steps, data, tmp_path):
    """One period of two steps after a run of any length: two minibatches, and what Grain reads ahead."""

    def stream(source):
        one_by_one = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        return grain.MapDataset.source(source).repeat().to_iter_dataset(one_by_one).batch(BATCH)

    first, then = Counted(rows(data)), Counted(rows(data))
    fit(stream(first), data, tmp_path, steps=steps)
    fit(stream(then), data, tmp_path, steps=steps + 2)
    assert len(first.asked) >= steps * BATCH
    assert 2 * BATCH <= len(then.asked) <= 2 * BATCH + 3
    assert then.asked[0] == steps * BATCH % len(then)


def shifted(data, begin):
    """Minibatches that differ, from that with this number."""
    for i in itertools.count(begin):
        yield jax.tree.map(lambda leaf, i=i: np.roll(np.asarray(leaf), i, axis=0)[:BATCH], data.train)


class Loader:
    """Not an iterator: read anew each time, here from any minibatch."""

    def __init__(self, data, begin=0):
        self.data, self.begin = data, begin

    def __iter__(self):
        return shifted(self.data, self.begin)


@pytest.mark.slow
def test_a_used_stream_without_a_position_is_refused_not_skipped_into_another_place(data, tmp_path):
    used = shifted(data, 0)
    fit(used, data, tmp_path, callbacks=stop_after(8))
    with pytest.raises(ValueError, match=r"a generator that has already been read from, .* skips the 8 minibatches"):
        fit(used, data, tmp_path)
    with pytest.raises(ValueError, match=r"number 8, .* is not the one .* the iterator has been read from before"):
        fit((batch for batch in used), data, tmp_path)
    with pytest.raises(ValueError, match=r"number 8, .* is not the one"):
        fit(shifted(data, 1), data, tmp_path)
    whole = fit(shifted(data, 0), data)
    assert_same_result(fit(shifted(data, 0), data, tmp_path), whole)


@pytest.mark.slow
def test_a_loader_in_another_order_is_warned_of(data, tmp_path):
    fit(Loader(data), data, tmp_path / "one", steps=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(Loader(data), data, tmp_path / "one", steps=10)
    with pytest.warns(UserWarning, match="number 10, .* the loader's order is another one"):
        assert fit(Loader(data, 1), data, tmp_path / "one", steps=12).state.step == 12


@pytest.mark.slow
def test_a_run_may_go_on_with_another_kind_of_stream_in_the_same_order(data, tmp_path):
    """From Grain's iterator to a generator, which is skipped and compared, and back, which has no state saved."""
    generator = lambda: (batch for batch in grain_dataset(data))
    fit(grain_dataset(data), data, tmp_path, steps=4)
    fit(generator(), data, tmp_path, steps=8)
    assert_same_result(fit(grain_dataset(data), data, tmp_path), fit(grain_dataset(data), data))


@pytest.mark.slow
def test_a_second_run_reads_a_generator_on(data):
    """Without a directory nothing is skipped: the first four minibatches of eight, then the other four."""
    stream = shifted(data, 0)
    fit(stream, data, steps=4)
    assert_same_result(fit(stream, data, steps=4), fit(shifted(data, 4), data, steps=4))
    stream.close()
    with pytest.raises(ValueError, match=r"ended before step 0: .* make it anew if it has been read from before"):
        fit(stream, data, steps=4)


def test_a_position_belongs_to_the_item_handed_out_not_to_what_is_read_ahead():
    class Counting:
        taken = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.taken += 1
            return {"v": np.full(4, self.taken)}

        def get_state(self):
            return {"taken": self.taken}

        def set_state(self, state):
            self.taken = state["taken"]

    stream = Counting()
    feed = prefetch(stream, [3] * 4, 4, positions=True)
    assert feed.position is None
    for period in range(3):
        next(feed)
        assert feed.ready(30.0), "the next period has been read"
        assert stream.taken == 3 * (period + 2)
        assert from_text(feed.position.state) == {"taken": 3 * (period + 1)}
    resumed = prefetch(Counting(), [3], 4, start=9, position=feed.position)
    np.testing.assert_array_equal(next(resumed).examples["v"], next(feed).examples["v"])
    plain = prefetch(numbers(), [1], 4)
    next(plain)
    assert plain.position is None, "not kept unless asked for"


@pytest.mark.parametrize(
    "state",
    [
        {"next_index": 3, "of": [1, (2.5, None), True], 7: "text", "": float("inf")},
        b"\x00\xff bytes",
        {"numbers": np.arange(6, dtype=np.int16).reshape(2, 3), "one": np.float64(0.1), "none": np.zeros((0, 2))},
        np.random.default_rng(0).bit_generator.state,
        ("tuple", {"dict": {"array": {}}}),
    ],
    ids=["plain", "bytes", "arrays", "generator", "nested"],
)
def test_states_come_back_as_they_were(state):
    def same(one, other):
        assert type(one) is type(other)
        if isinstance(one, dict):
            assert list(one) == list(other)
            return all(same(one[key], other[key]) for key in one)
        if isinstance(one, list | tuple):
            return all(same(*both) for both in zip(one, other, strict=True))
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None)
        return np.array_equal(one, other)

    assert same(from_text(to_text(state)), state)


def test_tensors_come_back_as_tensors():
    torch = pytest.importorskip("torch")
    state = {"generator": torch.Generator().manual_seed(3).get_state()}
    back = from_text(to_text(state))["generator"]
    assert back.dtype == torch.uint8
    assert torch.equal(back, state["generator"])


def test_a_state_that_cannot_be_kept_is_refused_with_its_type():
    with pytest.raises(ValueError, match="holds a value of <class 'set'>, which a checkpoint cannot keep"):
        to_text({"seen": {1, 2}})
    with pytest.raises(ValueError, match=r"numpy\.ndarray"):
        to_text({"seen": np.array([object()])})


def test_a_stream_that_does_not_take_its_position_says_so():
    class Other:
        def __iter__(self):
            return numbers()

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            self.place = state["place"]

    with pytest.raises(ValueError, match=r"does not take the position .* KeyError: 'place'; give the stream of the"):
        Source(Other(), 3, Position(0, to_text({})))


@pytest.mark.parametrize("named", [True, False])
def test_a_loader_whose_state_holds_an_address_is_warned_of_once(named):
    """Grain's DataLoader compares the source's `repr`, which in another process is another one."""

    class Numbers:
        def __len__(self):
            return 64

        def __getitem__(self, place):
            return {"x": np.float32(place)}

    if named:
        Numbers.__repr__ = lambda self: "Numbers(64)"
    loader = grain.DataLoader(
        data_source=Numbers(), sampler=grain.samplers.IndexSampler(64, seed=1), read_options=AHEAD
    )
    source = Source(loader)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            source.position(next(source))
    assert len(said) == (not named)
    assert all("Numbers object at 0x" in str(one.message) for one in said)


def test_a_checksum_depends_on_every_array():
    batch = {"x": np.arange(4.0), "y": np.arange(4)}
    assert checksum(batch) == checksum({"x": np.arange(8.0)[:4], "y": np.arange(8)[:4]})
    assert checksum(batch) != checksum(batch | {"y": np.arange(4) + 1})
