"""Prepares a run: puts its data on the devices, compiles its programs, and checks that it fits in memory."""

import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from jaxpt.core import tree
from jaxpt.core.cooldown import NEVER, in_force
from jaxpt.core.data import Batches, Data
from jaxpt.core.labels import StreamLabels
from jaxpt.core.state import RunState, Trace
from jaxpt.core.types import with_frozen
from jaxpt.devices import memory
from jaxpt.devices.execution import Execution
from jaxpt.engine.checks import check_minibatch
from jaxpt.engine.company import warn_of_company
from jaxpt.engine.engine import Engine
from jaxpt.engine.spec import abstract_hyper
from jaxpt.saving import settings
from jaxpt.saving.keeping import Keeper, in_order
from jaxpt.saving.model_files import check_names
from jaxpt.saving.progress import Position
from jaxpt.training.rows import counted, counted_own, drawn, replica_images
from jaxpt.training.stream import Prefetch, is_stream, prefetch

if TYPE_CHECKING:
    from jaxpt.saving.checkpoint import Checkpoints

_DRAWS = 2**28  # bytes of a dispatch's draws on the devices; the host keeps those of the whole run
_ROOMS = (64, 1024)  # most periods in a dispatch, the trace's rows; only two sizes, so that runs share programs


@dataclasses.dataclass(frozen=True)
class Job:
    """A prepared run: data on its devices, programs compiled."""

    engine: Engine
    short: Engine
    """Engine of the last period, if that is short."""
    key: jax.Array
    data: Data
    batches: Batches | None
    """Minibatches of the first period if they come from a stream; `feed` gives those of later periods."""
    feed: Iterator[Batches | None]
    max_periods: int
    """Most periods in a dispatch."""
    form: RunState
    """The state as shapes with their shardings."""
    row: Trace
    """A trace as shapes; its number of rows is arbitrary."""
    execution: Execution
    compile_seconds: float

    def begin(self, store: "Checkpoints | None") -> tuple[RunState, list[Trace], float, int, Keeper]:
        """Returns the start, from a checkpoint if there is one: state, rows, seconds, images and the best so far."""
        seeds = self.key.shape[0] if self.key.ndim else None
        if store is None or not store.steps:
            return self.engine.init(self.key), [], 0.0, 0, Keeper(self.engine, seeds)
        state, trace, progress, kept = store.load(self.form, self.row, jax.random.key_impl(self.key))
        return state, [trace], progress.seconds, progress.images, Keeper(self.engine, seeds, in_order(kept, seeds or 1))

    @property
    def position(self) -> Position | None:
        """The position of the training stream after the minibatches taken from `feed`; None without a stream."""
        return self.feed.position if isinstance(self.feed, Prefetch) else None

    def images(self, engine: Engine, trace: Trace, batches: Batches | None) -> int:
        """Returns how many training examples were used in these rows."""
        if batches is not None and engine.own_batches:
            return counted_own(engine, trace, np.asarray(batches.counts))
        if batches is not None:
            return replica_images(engine, trace, partial(counted, np.asarray(batches.counts)))
        if self.data.train is None:
            return 0
        return replica_images(engine, trace, partial(drawn, engine, trace, tree.leading(self.data.train)))


def prepare(
    engine: Engine,
    train: Any,
    scored: Data,
    whole: int,
    rest: int,
    done: int,
    key: jax.Array,
    store: "Checkpoints | None",
    first: Callable[[Iterator[Batches | None]], Batches | None],
) -> Job:
    """Checks the data and puts it on the devices, compiles the remaining programs, and checks that they fit in memory.

    `first` takes the first minibatches from their feed.
    """
    # Once, to every device, like the data.
    engine = dataclasses.replace(engine, problem=with_frozen(engine.problem, engine.placed.put))
    feed: Iterator[Batches | None] = itertools.repeat(None)
    if streaming := is_stream(train):
        lengths = [engine.every] * (whole - done) + [rest] * (rest > 0)
        # Where nothing is left to run, the first minibatch still gives the shapes.
        begin = engine.every * done if lengths else 0
        feed, train = _feed(engine, train, lengths or [1], begin, store), None
    batches = first(feed)
    host = scored._replace(train=train)
    seen = host if batches is None else host._replace(train=tree.take(batches.examples, (0,) * engine.batch_axes))
    engine.check(seen)
    if not done:
        _look_at_company(engine, seen, streaming)
    data = engine.placed.put(host)  # once, to every device
    execution = engine.execution(seen)
    form = engine.abstract(key)
    check_names(engine.problem)  # or the first save would fail
    if store is not None:
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), seen.train)
        store.match(settings.describe(engine, form, key, seen._replace(train=shapes) if streaming else host))
        if store.steps:
            form = _as_loaded(form)
    short = _short(engine, whole, rest)
    max_periods = 1 if streaming else min(_ROOMS[whole > _ROOMS[0]], _most_rows(engine, form))
    started = time.perf_counter()
    row: Any = None
    for part, periods, left in ((engine, max_periods, done < whole), (short, 1, rest > 0)):
        if left or (part is engine and whole):
            given = _shapes(part, batches)
            lowered = part.lower(form, data, periods=periods, batches=given, donate=True)
            row = lowered.out_info[1] if row is None else row
            if left:
                most = memory.limit(engine.placed)
                # Minibatches of its own belong to a replica: their memory grows with the replicas.
                own = engine.own_batches
                each = (form.replicas, given) if own else form.replicas
                shared = data, () if own else given, engine.problem.frozen
                memory.check(compiled(lowered), each, shared, execution, most, engine.placed.num_shards)
    seconds = time.perf_counter() - started
    return Job(engine, short, key, data, batches, feed, max_periods, form, row, execution, seconds)


def _most_rows(engine: Engine, form: RunState) -> int:
    """Returns how many periods' draws fit into `_DRAWS` bytes on the devices; at least one period's."""
    lead = form.key.ndim + 1
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[lead:], leaf.dtype), form.replicas.params)
    kept = () if engine.draws is None else jax.eval_shape(engine.draws, one)
    each = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    chains = math.prod(form.replicas.rung[next(iter(engine.ladders))].shape)
    return max(1, _DRAWS // max(1, each * chains))


def _short(engine: Engine, whole: int, rest: int) -> Engine:
    """Returns the engine of the last period if that is short: no exchanges, and the ladder does not contract."""
    search, schedule, every = engine.beginning, engine.schedule, rest or 1
    if search is not None and search.end > engine.every * whole:
        search, schedule = None, in_force(schedule, (search,))
    elif search is not None:
        search = dataclasses.replace(search, share=None, steps=every)  # over; rules still see it
    return dataclasses.replace(engine, every=every, burn_in=NEVER, search=search, schedule=schedule)


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Returns a compiled program; Python still handles signals while the compiler works.

    Python handles signals in its main thread, between two bytecode instructions, and a compilation is a single
    instruction. So it runs in another thread.
    """
    found: Future[jax.stages.Compiled] = Future()

    def compile_it() -> None:
        try:
            found.set_result(lowered.compile())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=compile_it, name="jaxpt-compile", daemon=True).start()
    return found.result()


def _look_at_company(engine: Engine, data: Data, streaming: bool) -> None:
    scored = {name: split for name, split in (("valid", data.valid), ("test", data.test)) if split is not None}
    sizes = {name: tree.leading(split) for name, split in scored.items()}
    if engine.probe is not None and "valid" in sizes:
        sizes["valid"] = engine.probe
    whole = streaming or data.train is None or engine.drop_remainder
    short = 0 if whole else tree.leading(data.train) % engine.batch_size
    parts = engine.placed.num_parts
    warn_of_company(engine.problem, data, engine.evaluation_batch, sizes, short, abstract_hyper(engine), parts)


def _as_loaded(form: RunState) -> RunState:
    """Returns shapes with the shardings of loaded arrays, so that the program compiled here is the one that runs."""
    place = SingleDeviceSharding(jax.local_devices()[0])

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or place)

    return jax.tree.map(placed, form)


def _shapes(engine: Engine, batches: Batches | None) -> PyTree:
    """Returns the minibatches of one period of an engine as shapes, given those of another."""
    own = (engine.num_replicas,) if engine.own_batches else ()
    lead = (1, *own, engine.every)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape[len(lead) :]), leaf.dtype), batches)


def _feed(engine: Engine, stream: Any, lengths: list[int], begin: int, store: "Checkpoints | None") -> Prefetch:
    """Returns the minibatches of a stream for periods of these lengths, after `begin` steps."""
    return prefetch(
        *(stream, lengths, engine.batch_size, begin, StreamLabels(partial(check_minibatch, engine))),
        replicas=engine.num_replicas if engine.own_batches else None,
        position=store.progress(store.steps[-1]).stream if begin and store is not None else None,
        positions=store is not None,
    )
