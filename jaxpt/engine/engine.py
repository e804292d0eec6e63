"""The engine: steps, periods and runs on the device, for any problem, optimiser, ladder and rule."""

import dataclasses
import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxpt.core import tree
from jaxpt.core.cooldown import Cooldown
from jaxpt.core.data import Batches, Data
from jaxpt.core.ladder import as_arrays
from jaxpt.core.ranges import check_numbers
from jaxpt.core.search import Search
from jaxpt.core.state import RunState, Trace
from jaxpt.core.types import with_frozen
from jaxpt.devices import fitting
from jaxpt.devices.execution import Execution, choose
from jaxpt.devices.placement import EVERYWHERE
from jaxpt.devices.precision import tracing_with
from jaxpt.engine import checks
from jaxpt.engine.axes import batches_axes, state_axes, trace_axes
from jaxpt.engine.moves import check_move
from jaxpt.engine.period import INIT, periods, scores
from jaxpt.engine.reads import convolved_bytes
from jaxpt.engine.replica import init_replicas, reported
from jaxpt.engine.spec import Spec, abstract_hyper


@tree.register(
    data=("problem", "ladder", "rule", "burn_in", "fixed", "search", "cooldown"),
    meta=(
        *("optimizer", "every", "batch_size", "schedule", "own_batches"),
        *("drop_remainder", "probe", "evaluation_batch", "rescale_momentum"),
        *("replica_axis", "replicas_at_once", "placement", "precision", "diverged", "draws"),
    ),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Engine(Spec):
    """Trains M replicas as one program, one replica per rung, and applies a rule to them after each period.

    The engine is a pytree. Its numbers (ladder values, the rule's C, burn_in, fixed, the steps of search and cooldown)
    are traced, so an engine made by `dataclasses.replace` with other numbers reuses the compiled program. `init` copies
    ladder, rule and fixed values into the state; a run uses those in the state.

    >>> ladder = jaxpt.Ladder(learning_rate=jaxpt.geometric(0.05, 0.3, 4))
    >>> sgd = lambda h: optax.sgd(h["learning_rate"], momentum=0.9)
    >>> engine = jaxpt.Engine(problem, sgd, ladder, jaxpt.Tempering(C=100.0), every=10, batch_size=32)
    >>> state, trace = engine.run(engine.init(jax.random.key(0)), jaxpt.Data(train, valid), periods=3)
    >>> trace.step.tolist(), trace.rung["learning_rate"].shape  # a row per period
    ([10, 20, 30], (3, 4))

    Args:
        problem: the problem of each replica; see `nnx_problem`, `linen_problem`, `equinox_problem`, `energy_problem`.
        optimizer: {name: scalar} -> optax transformation, e.g. `lambda h: optax.sgd(h["learning_rate"], 0.9)`. It is
            built inside the step, so any optimiser that accepts traced values works, also with schedules over the step.
        ladder: one ladder, or several that are exchanged in turn, in the alphabetical order of their names.
        rule: `Tempering()`, the default; `Independent()`, `PBT()` or `CopyBest()`.
        every: steps in a period, before each exchange (dN_e of arXiv 1909.04013).
        burn_in: steps without exchanges (dN_i), unless the rule has `swap_while_tuning`. The first exchange follows the
            first period that ends after burn-in.
        batch_size: examples in a minibatch. With a hyperparameter of that name: its largest value. A replica's loss
            then counts only as many examples as its hyperparameter, while batch normalisation sees all of them.
        fixed: hyperparameters that all replicas share, {name: value}.
        schedule: (hyperparameters, step) -> hyperparameters in force at that step; by default the rung's.
        search: the share of the run, such as its first 0.1, that is a short grid search; the ladder then contracts
            around its best rung. Or a `jaxpt.Search`. By default there is none.
        cooldown: the share of the run, such as its last 0.3, in which exchanges stop and learning rates fall to zero;
            or a `jaxpt.Cooldown`, for other hyperparameters, another shape, or given steps. By default there is none.
        own_batches: each replica draws its own minibatches, or takes its own from a stream; by default all replicas
            share them.
        drop_remainder: leave out an epoch's short last minibatch. By default it is used, filled up with examples that
            do not count in the loss (but that batch normalisation sees).
        probe: compute energies on this many validation examples, drawn again each period and shared by all replicas;
            by default on the whole validation split.
        evaluation_batch: most examples at a time in evaluation, which bounds its memory. On CPUs large values are also
            slower; with few replicas on an accelerator they may be faster. They change energies by rounding only.
        rescale_momentum: the name of the learning rate: a swap multiplies the momentum by old / new value, which keeps
            the velocity. By default the momentum does not change.
        replica_axis: how a device's replicas are executed: "vmap", "unroll", "map", or "auto", which takes the choice
            of `jaxpt.devices.execution.choose`; `jaxpt.tune` measures which is fastest.
        replicas_at_once: replicas that "map" runs at a time, which bounds its working memory; 1 by default.
        placement: the devices that hold the replicas. "auto" is one device; on CPUs it is as many host devices as
            divide M (see `use_all_cores`), and with several processes all devices. See `jaxpt.placement`.
        precision: of float32 products: "highest", float32 everywhere; "high", TF32 on GPUs; "default", JAX's setting,
            which is TF32 on GPUs unless changed. See `jaxpt.devices.precision`.
        diverged: the treatment of a replica whose energy is not finite. "keep": it keeps training, never gets a colder
            rung from a healthy replica, and counts nowhere; "stop": `fit` ends the run; "respawn": after each period,
            in a search after the last, it takes weights and optimiser state from the nearest healthy replica on the
            ladder and keeps its own hyperparameters, as `trace.info.parents` records.
        draws: a function of one replica's weights; its results, any pytree of arrays, are recorded at the end of each
            period in `trace.draws`, see `Result.draws`.

    Raises:
        ValueError: an argument is out of range; ladders differ in length or share a name; a rule that exchanges has
            fewer than two rungs; a hyperparameter is given but never read, or read but not given.
    """

    def __post_init__(self) -> None:
        if isinstance(self.cooldown, int | float | np.number) and not isinstance(self.cooldown, bool):
            object.__setattr__(self, "cooldown", Cooldown(float(self.cooldown)))
        if isinstance(self.search, int | float | np.number) and not isinstance(self.search, bool):
            object.__setattr__(self, "search", Search(float(self.search)))
        checks.check_engine(self)

    def over(self, steps: int | None) -> "Engine":
        """Returns the engine for a run of so many steps, which search and cooldown need if they are shares of it.

        `fit` calls it. Without such a share it is the same engine.

        Args:
            steps: optimiser steps of the run; None: so many that the cooldown never begins.

        Raises:
            ValueError: the cooldown would begin before the search ends.
        """
        search, cooldown = self.beginning, self.ending
        if all(part is None or part.share is None for part in (search, cooldown)):
            return self
        shares = [part.share for part in (search, cooldown) if part is not None and part.share is not None]
        cooldown = cooldown and cooldown.over(steps)
        # Two shares that fit the run fit it rounded, too.
        most = cooldown.begin if cooldown is not None and len(shares) == 2 and sum(shares) <= 1 else None
        return dataclasses.replace(self, search=search and search.over(steps, self.every, most), cooldown=cooldown)

    def init(self, key: Key[Array, ""] | Key[Array, " S"]) -> RunState:
        """Returns the state before the first step: fresh weights, replica k on rung k of every ladder.

        Args:
            key: the key of a seed; or an array of S keys, for S whole ladders in one run, with exchanges only within a
                ladder. Each ladder equals a run with its key alone, up to rounding.

        Raises:
            ValueError: `key` is not a typed key or a one-dimensional array of them; the seeds do not split evenly over
                the placement's groups of devices; the rule's `propose` does not return what a run can carry.
        """
        return self.placed.put(self._start(key), state_axes(key.ndim))

    def abstract(self, key: Key[Array, ""] | Key[Array, " S"]) -> RunState:
        """Returns the result of `init` as shapes with their shardings; computes nothing."""
        return self.placed.abstract(jax.eval_shape(self._start, key), state_axes(key.ndim))

    def abstract_data(self, data: Data | None = None) -> Data:
        """Returns data as shapes with the shardings that `placed.put` would give them; nothing is copied.

        Shapes are enough to compile for devices that are not there:
        `engine.lower(engine.abstract(key), engine.abstract_data(data), periods=3).compile()`.

        Args:
            data: the splits, as arrays or as `jax.ShapeDtypeStruct`s; None for a problem without data.

        Raises:
            ValueError: the data does not fit the engine (see `run`).
        """
        whole = _as_data(data)
        checks.check_sizes(self, whole)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.result_type(leaf)), whole)
        return self.placed.abstract(shapes, EVERYWHERE)

    def _start(self, key: Key[Array, ""] | Key[Array, " S"]) -> RunState:
        if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
            raise ValueError(f"key must be a typed key, e.g. jax.random.key(0), but it is {key!r}")
        lead = key.shape
        if len(lead) > 1 or lead == (0,):
            raise ValueError(f"key must be one key, or an array of S >= 1 of them, but its shape is {lead}")
        fitting.check_seeds(self.placed, lead[0] if lead else None)
        ladders = {name: as_arrays(ladder) for name, ladder in self.ladders.items()}
        start = self.lift(key).each_seed(lambda key: jax.random.fold_in(key, INIT))(key)
        problem = with_frozen(self.problem, lambda _: None)  # they may be on several devices already; init reads none
        replicas = init_replicas(problem, self.optimizer, self.schedule, dict(self.fixed), ladders, start)
        rule = self.rule.init(ladders)
        check_move(self, rule, ladders, reported(replicas.opt_state))
        ladders, rule = jax.tree.map(
            lambda leaf: jnp.broadcast_to(jnp.array(leaf, jnp.asarray(leaf).dtype), lead + jnp.shape(leaf)),
            (ladders, rule),
        )
        # Every leaf is a separate buffer, so that `donate` can take all of them.
        step, period = jnp.zeros(2, jnp.int32)
        return RunState(replicas, step, period, jnp.copy(key), ladders, rule)

    def run(
        self,
        state: RunState,
        data: Data | None = None,
        *,
        periods: int | Int[Array, ""],
        batches: Batches | None = None,
        donate: bool = False,
        max_periods: int | None = None,
    ) -> tuple[RunState, Trace]:
        """Returns the state after `periods` periods and their trace; one dispatch, without work on the host.

        Args:
            state: the state to start from.
            data: the splits; None for a problem without data.
            periods: number of periods, each of `every` steps and an exchange; static unless `max_periods` is given.
            batches: the periods' minibatches, instead of drawing them from `data.train`; see `jaxpt.prefetch`.
            donate: let the run overwrite the given state, so that memory holds one state and not two; the given state
                cannot be used again.
            max_periods: rows of the trace (static); by default `periods`. If given, `periods` is traced: one compiled
                program runs any number of periods up to `max_periods`, and the remaining rows of the trace are zeros. A
                run gives the same bits however it is divided into dispatches.

        Raises:
            ValueError: the data or the batches do not fit (see `check`, which also looks at labels), or the state comes
                from an engine with another rule or other ladders.
        """
        if not isinstance(periods, int | np.integer | jax.Array):
            raise ValueError(f"periods must be an integer, how many of them, but it is {periods!r}")
        max_periods = operator.index(periods) if max_periods is None else max_periods
        if not isinstance(periods, jax.Array) and not 0 <= periods <= max_periods:
            raise ValueError(f"periods must be 0 .. max_periods={max_periods}, but it is {periods!r}")
        # A NumPy number goes from the host to every device; a JAX array is on one device, to be copied to the others.
        count = periods if isinstance(periods, jax.Array) else np.int32(operator.index(periods))
        return (_run_donated if donate else _run)(self, state, _as_data(data), batches, count, max_periods=max_periods)

    def lower(
        self,
        state: RunState,
        data: Data | None = None,
        *,
        periods: int,
        batches: Batches | None = None,
        donate: bool = False,
    ) -> jax.stages.Lowered:
        """Returns the program of `run` before compilation; `run` will use the program that `.compile()` returns.

        Its arguments may be abstract; `periods` is the trace's `max_periods`.
        """
        count = jax.ShapeDtypeStruct((), jnp.int32)
        return (_run_donated if donate else _run).lower(
            self, state, _as_data(data), batches, count, max_periods=periods
        )

    def evaluate(self, state: RunState, examples: PyTree) -> dict[str, Float[Array, "..."]]:
        """Returns {"energy": [M], metric: [M]}, averaged over all the examples in evaluation mode."""
        check_numbers(examples, "examples")
        return _evaluate(self, state, examples)

    def execution(self, data: Data | None = None) -> Execution:
        """Returns how a run on such data executes the replica axis, and on how many devices; computes nothing."""
        placed, how = self.placed, str(self.replica_axis)
        where = placed.platform, self.num_replicas // placed.num_shards, placed.num_devices
        if how == "auto":
            hyper, train = abstract_hyper(self), _as_data(data).train
            how = choose(*where, convolved_bytes(self.problem, self.schedule, hyper, train, self.batch_size))
        return Execution(how, *where)

    def check(self, data: Data) -> None:
        """Traces loss and metrics on the whole data set: shapes, and the values of labels; computes nothing.

        Raises:
            ValueError: a split's arrays differ in length; a minibatch or probe is larger than its split; a rule that
                exchanges has no validation examples; a loss or metric does not return one number per example; a label
                is out of range (see `cross_entropy`); a hyperparameter is read neither by the loss nor elsewhere.
        """
        checks.check_data(self, _as_data(data))


def _as_data(data: Data | tuple[PyTree, ...] | None) -> Data:
    made = Data(*data) if isinstance(data, tuple) else Data(data)
    for name, split in made._asdict().items():
        check_numbers(split, f"data.{name}")
    return made


def _periods(
    engine: Engine, state: RunState, data: Data, batches: Batches | None, count: Array, *, max_periods: int
) -> tuple[RunState, Trace]:
    checks.check_state(engine, state)
    checks.check_sizes(engine, checks.with_batches(engine, data, batches, max_periods))
    axes, rows = state_axes(state.key.ndim), trace_axes(state.key.ndim)
    with tracing_with(engine.precision):
        run = engine.placed.over_shards(
            partial(periods, max_periods=max_periods),
            (EVERYWHERE, axes, EVERYWHERE, batches_axes(engine.own_batches), EVERYWHERE),
            (axes, rows),
        )
        state, trace = run(engine, state, data, batches, count)
        return state, engine.placed.readable(trace)


_run = jax.jit(_periods, static_argnames="max_periods")
_run_donated = jax.jit(_periods, static_argnames="max_periods", donate_argnames="state")


@jax.jit
def _evaluate(engine: Engine, state: RunState, examples: PyTree) -> dict[str, Array]:
    def shard(engine: Engine, state: RunState, examples: PyTree) -> dict[str, Array]:
        lift = engine.lift(state.key)
        return lift.seeds(partial(scores, engine, lift, examples=examples))(state.replicas)

    axes = state_axes(state.key.ndim)
    with tracing_with(engine.precision):
        score = engine.placed.over_shards(shard, (EVERYWHERE, axes, EVERYWHERE), axes.replicas)
        return engine.placed.readable(score(engine, state, examples))
