"""The engine: step -> period -> run, all on the device, for any problem, optimiser, ladder and rule."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxpt import checks, placement, tree
from jaxpt.data import Batches, Data, minibatches, probe_batch
from jaxpt.ladder import Ladder, as_arrays
from jaxpt.placement import Placement
from jaxpt.precision import Precision, tracing_with
from jaxpt.replica_axis import Execution, ReplicaAxis, choose, convolves, over_replicas
from jaxpt.replicas import Replicas, in_force, init_replicas, mean_scores, paired_variance, rescale_momentum, train_step
from jaxpt.rules import Tempering
from jaxpt.state import RunState, Trace, state_axes, trace_axes
from jaxpt.types import Move, Optimizer, Problem, Rule, Schedule

T = TypeVar("T")
_INIT, _DATA, _EXCHANGE, _PROBE = range(4)  # what the run's key is folded with for each purpose


@tree.register(
    data=("ladder", "rule", "burn_in", "fixed"),
    meta=(
        *("problem", "optimizer", "every", "batch_size", "schedule", "own_batches"),
        *("drop_remainder", "probe", "evaluation_batch", "rescale_momentum"),
        *("replica_axis", "placement", "precision"),
    ),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """Trains M replicas as one program, one replica per rung, and lets a rule move them once a period.

    The engine is a pytree. Its numbers (ladder values, the rule's C, burn_in, fixed) are traced: an engine made by
    `dataclasses.replace` with other numbers runs the compiled program of the first. `init` copies ladder, rule and
    fixed values into the state, and from then on those in the state count.

    Args:
        problem: what each replica trains on; see `nnx_problem`, `linen_problem`, `energy_problem`.
        optimizer: {name: scalar} -> optax transformation, e.g. `lambda h: optax.sgd(h["learning_rate"], 0.9)`. It is
            built inside the step, so any optimiser that takes traced values will do, schedules over the step included.
        ladder: one ladder, or several that are exchanged in turn, by the alphabet of their names.
        rule: `Tempering(C)`, by default with C = 1, `Independent()`, `PBT()` or `CopyBest()`.
        every: steps in a period, before each exchange (dN_e of arXiv 1909.04013).
        burn_in: steps without exchanges (dN_i), unless the rule has `swap_while_tuning`; the first exchange follows the
            first period that ends after them.
        batch_size: examples in a minibatch. With a hyperparameter of that name: the largest one; a replica's loss then
            counts only so many of the examples drawn, while batch normalisation sees them all.
        fixed: hyperparameters that all replicas share, {name: value}.
        schedule: (hyperparameters, step) -> hyperparameters in force at that step; by default the rung's.
        own_batches: each replica draws minibatches of its own; by default all replicas see the same.
        drop_remainder: leave out an epoch's short last minibatch. By default it is used, filled up with examples that
            do not count (but that batch normalisation sees).
        probe: energies on this many validation examples, drawn anew each period and shared by all replicas; by
            default on the whole validation split.
        evaluation_batch: examples at a time in evaluation, which bounds its memory.
        rescale_momentum: the name of the learning rate: on a swap the momentum is multiplied by old / new value, which
            keeps the velocity. By default the momentum stays as it is.
        replica_axis: how a device's replicas are executed: "vmap", "unroll", "map", or "auto", whichever of them
            `jaxpt.replica_axis.choose` says.
        placement: which devices the replicas are spread over; "auto": one, but on CPUs as many host devices as divide
            M (see `use_all_cores`). See `jaxpt.placement`.
        precision: of float32 products: "highest", float32 everywhere; "high", TF32 on GPUs; "default", whatever JAX is
            set to, which is TF32 on GPUs by itself. See `jaxpt.precision`.

    Raises:
        ValueError: an argument is out of range; ladders differ in length or share a name; fewer than two rungs for a
            rule that exchanges; a name that nothing reads, or one that is read and that nobody gives.
    """

    problem: Problem
    optimizer: Optimizer
    ladder: Ladder | Sequence[Ladder]
    rule: Rule = dataclasses.field(default_factory=Tempering)
    every: int = dataclasses.field(kw_only=True)
    burn_in: int = dataclasses.field(default=0, kw_only=True)
    batch_size: int = dataclasses.field(default=128, kw_only=True)
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict, kw_only=True)
    schedule: Schedule | None = dataclasses.field(default=None, kw_only=True)
    own_batches: bool = dataclasses.field(default=False, kw_only=True)
    drop_remainder: bool = dataclasses.field(default=False, kw_only=True)
    probe: int | None = dataclasses.field(default=None, kw_only=True)
    evaluation_batch: int = dataclasses.field(default=1024, kw_only=True)
    rescale_momentum: str | None = dataclasses.field(default=None, kw_only=True)
    replica_axis: ReplicaAxis = dataclasses.field(default="auto", kw_only=True)
    placement: Placement | Literal["auto"] = dataclasses.field(default="auto", kw_only=True)
    precision: Precision = dataclasses.field(default="highest", kw_only=True)

    def __post_init__(self) -> None:
        checks.check_engine(self)

    @property
    def ladders(self) -> dict[str, Ladder]:
        """{name: ladder}, as given; they are exchanged in the order of their sorted names."""
        given = (self.ladder,) if isinstance(self.ladder, Ladder) else self.ladder
        return {ladder.name: ladder for ladder in given}

    @property
    def num_replicas(self) -> int:
        """M, the number of replicas and of rungs."""
        return next(iter(self.ladders.values())).num_rungs

    @property
    def placed(self) -> Placement:
        """Where the replicas live: the placement given, or what "auto" stands for."""
        return placement.automatic(self.num_replicas) if isinstance(self.placement, str) else self.placement

    def init(self, key: Key[Array, ""] | Key[Array, " S"]) -> RunState:
        """Returns the state before the first step: fresh weights, replica k on rung k of every ladder.

        Args:
            key: the seed; or an array of S seeds: S whole ladders in one run, with exchanges inside each only. Each
                equals a run of its own up to rounding.

        Raises:
            ValueError: not a typed key, or an array of them with more than one axis.
        """
        if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
            raise ValueError(f"key must be a typed key, e.g. jax.random.key(0), but it is {key!r}")
        lead = key.shape
        if len(lead) > 1 or lead == (0,):
            raise ValueError(f"key must be one key, or an array of S >= 1 of them, but its shape is {lead}")
        ladders = {name: as_arrays(ladder) for name, ladder in self.ladders.items()}
        start = _per_seed(key, lambda key: jax.random.fold_in(key, _INIT))(key)
        replicas = init_replicas(self.problem, self.optimizer, self.schedule, dict(self.fixed), ladders, start)
        rule = self.rule.init(ladders) if hasattr(self.rule, "init") else self.rule
        ladders, rule = jax.tree.map(
            lambda leaf: jnp.broadcast_to(jnp.array(leaf, jnp.asarray(leaf).dtype), lead + jnp.shape(leaf)),
            (ladders, rule),
        )
        # Every leaf is a buffer of its own, so that `donate` can take them all.
        step, period = jnp.zeros(2, jnp.int32)
        state = RunState(replicas, step, period, jnp.copy(key), ladders, rule)
        return self.placed.put(state, state_axes(key.ndim))

    def run(
        self,
        state: RunState,
        data: Data | None = None,
        *,
        periods: int,
        batches: Batches | None = None,
        donate: bool = False,
    ) -> tuple[RunState, Trace]:
        """Returns the state after so many periods, and what they recorded; one dispatch, nothing on the host.

        Args:
            state: where to go on from.
            data: the splits; None for a problem without data.
            periods: how many times `every` steps and an exchange (static).
            batches: the periods' minibatches, given instead of drawn from `data.train`; see `jaxpt.stream.prefetch`.
            donate: let the run write over the state that it is given, so that memory holds one and not two; that
                state cannot be used again.

        Raises:
            ValueError: the data or the batches do not fit (see `check`, which also looks at labels), or the state comes
                from an engine with another rule or other ladders.
        """
        return (_run_donated if donate else _run)(self, state, _as_data(data), batches, periods=periods)

    def lower(
        self,
        state: RunState,
        data: Data | None = None,
        *,
        periods: int,
        batches: Batches | None = None,
        donate: bool = False,
    ) -> jax.stages.Lowered:
        """Returns the program of `run` before its compilation; what `.compile()` makes is what `run` will use."""
        return (_run_donated if donate else _run).lower(self, state, _as_data(data), batches, periods=periods)

    def evaluate(self, state: RunState, examples: PyTree) -> dict[str, Float[Array, "..."]]:
        """Returns {"energy": [M], metric: [M]}: means over all the examples, in evaluation mode."""
        return _evaluate(self, state, examples)

    def execution(self, data: Data | None = None) -> Execution:
        """Returns how a run on such data executes the replica axis, and on how many devices; computes nothing."""
        shards, how = self.placed.num_shards, str(self.replica_axis)
        where = self.placed.platform, self.num_replicas // shards, shards
        if how == "auto":
            hyper, train = checks.abstract_hyper(self), _as_data(data).train
            how = choose(*where, convolves(self.problem, self.schedule, hyper, train, self.batch_size))
        return Execution(how, *where)

    def check(self, data: Data) -> None:
        """Shows the whole data set to loss and metrics, as shapes only, labels as they are; nothing is computed.

        Raises:
            ValueError: a split's arrays differ in length; a minibatch or probe is larger than its split; a rule that
                exchanges has no validation examples; a loss or metric does not give one number per example; a label
                is out of range (see `cross_entropy`); the loss does not read a hyperparameter that nothing else does.
        """
        checks.check_data(self, _as_data(data))


def _as_data(data: Data | tuple[PyTree, ...] | None) -> Data:
    return Data(*data) if isinstance(data, tuple) else Data(data)


def _periods(
    engine: Engine, state: RunState, data: Data, batches: Batches | None, periods: int
) -> tuple[RunState, Trace]:
    checks.check_state(engine, state)
    checks.check_sizes(engine, checks.with_batches(engine, data, batches, periods))

    def run(engine: Engine, state: RunState, data: Data, batches: Batches | None) -> tuple[RunState, Trace]:
        return jax.lax.scan(lambda s, given: _period(engine, s, data, given), state, batches, length=periods)

    axes, rows = state_axes(state.key.ndim), trace_axes(state.key.ndim)
    with tracing_with(engine.precision):
        return engine.placed.over_shards(run, (-1, axes, -1, -1), (axes, rows))(engine, state, data, batches)


_run = jax.jit(_periods, static_argnames="periods")
_run_donated = jax.jit(_periods, static_argnames="periods", donate_argnames="state")


@jax.jit
def _evaluate(engine: Engine, state: RunState, examples: PyTree) -> dict[str, Array]:
    def scores(engine: Engine, state: RunState, examples: PyTree) -> dict[str, Array]:
        return _over_seeds(engine, state.key, partial(_scores, engine, examples=examples))(state.replicas)

    axes = state_axes(state.key.ndim)
    with tracing_with(engine.precision):
        return engine.placed.over_shards(scores, (-1, axes, -1), axes.replicas)(engine, state, examples)


def _period(engine: Engine, state: RunState, data: Data, batches: Batches | None) -> tuple[RunState, Trace]:
    """`every` training steps, the energies, the exchange; for the replicas of one device."""
    per_seed = partial(_per_seed, state.key)
    replicas, losses = _train(engine, state, data.train, batches)
    step, turn = state.step + engine.every, state.period

    def probe(key: Key[Array, ""]) -> PyTree:
        return probe_batch(jax.random.fold_in(jax.random.fold_in(key, _PROBE), turn), data.valid, engine.probe)

    def energies(replicas: Replicas, key: Key[Array, ""]) -> dict[str, Array]:
        return _scores(engine, replicas, probe(key))

    over_seeds = partial(_over_seeds, engine, state.key)
    valid = over_seeds(energies, (0, 0))(replicas, state.key)
    test = {} if data.test is None else over_seeds(partial(_scores, engine, examples=data.test))(replicas)

    def propose(key: Key[Array, ""], energy: Array, replicas: Replicas, ladders: dict[str, Ladder], rule: Any) -> Any:
        noise = {}
        if getattr(rule, "noise_corrected", False):
            how = engine.problem, partial(_over_replicas, engine), engine.placed.whole
            sizes = engine.evaluation_batch, tree.leading(data.valid)
            noise["variance"] = paired_variance(*how, replicas, probe(key), *sizes)
        key = jax.random.fold_in(jax.random.fold_in(key, _EXCHANGE), turn)
        # What is small is shown to all devices, and each computes the same exchange.
        seen = engine.placed.whole((energy, replicas.rung, replicas.hyper))
        move, rule, info = rule.propose(key, turn, *seen, ladders, step > engine.burn_in, **noise)
        return _apply(engine, replicas, move, step), move.ladders or ladders, rule, info

    moved, ladders, rule, info = per_seed(propose)(state.key, valid["energy"], replicas, state.ladders, state.rule)
    trace = Trace(step, losses, valid, test, replicas.rung, replicas.hyper, info)
    return state._replace(replicas=moved, step=step, period=turn + 1, ladders=ladders, rule=rule), trace


def _train(
    engine: Engine, state: RunState, train: PyTree, batches: Batches | None
) -> tuple[Replicas, Float[Array, "... M"]]:
    """Returns the replicas after `every` steps, and the mean of each one's losses over them."""
    given, weight = (None, None) if batches is None else batches
    if train is not None:
        draw = partial(_minibatches, engine, step=state.step, num_examples=tree.leading(train))
        given, weight = _per_seed(state.key, draw, out_axes=(0, None))(state.key)
    numbers = state.step + jnp.arange(engine.every)

    def step(replica: Replicas, xs: tuple[Any, Any, Any]) -> tuple[Replicas, Array]:
        given, weight, number = xs
        batch = given if train is None else tree.take(train, given)
        return train_step(engine.problem, engine.optimizer, engine.schedule, replica, batch, weight, number)

    def steps(replica: Replicas, given: PyTree) -> tuple[Replicas, Float[Array, ""]]:
        replica, losses = jax.lax.scan(step, replica, (given, weight, numbers))
        return replica, losses.mean()

    one_seed = _over_replicas(engine, steps, (0, 0 if engine.own_batches else None))
    return _over_seeds(engine, state.key, one_seed, (0, None if train is None else 0))(state.replicas, given)


def _minibatches(
    engine: Engine, key: Key[Array, ""], *, step: Int[Array, ""], num_examples: int
) -> tuple[Int[Array, "*M T B"], Bool[Array, "T B"]]:
    """Returns one period's minibatches for one seed: shared by the replicas, or one for each of the device's."""
    draw = partial(
        minibatches,
        step=step,
        num_steps=engine.every,
        num_examples=num_examples,
        batch_size=engine.batch_size,
        drop_remainder=engine.drop_remainder,
    )
    key = jax.random.fold_in(key, _DATA)
    if not engine.own_batches:
        return draw(key)
    own = jax.vmap(jax.random.fold_in, (None, 0))(key, engine.placed.own(jnp.arange(engine.num_replicas)))
    return jax.vmap(draw, out_axes=(0, None))(own)


def _scores(engine: Engine, replicas: Replicas, examples: PyTree) -> dict[str, Float[Array, " M"]]:
    """Returns the energy and the metrics of each replica of one seed, means over the examples."""
    over = partial(_over_replicas, engine)
    return mean_scores(engine.problem, over, replicas, examples, engine.evaluation_batch)


def _apply(engine: Engine, replicas: Replicas, move: Move, step: Int[Array, ""]) -> Replicas:
    """Returns the replicas of one seed after a move: new hyperparameters, and weights for rules that copy them."""
    if move.parents is not None:
        mine = (*replicas[:3], replicas.hyper)
        params, model_state, opt_state, hyper = tree.take(engine.placed.whole(mine), engine.placed.own(move.parents))
        replicas = replicas._replace(params=params, model_state=model_state, opt_state=opt_state, hyper=hyper)
    rung, hyper = engine.placed.own((move.rung, move.hyper))
    moved = replicas._replace(rung=rung, hyper=hyper)
    if engine.rescale_momentum is None:
        return moved
    before, after = (
        jax.vmap(partial(in_force, engine.schedule), (0, None))(r.hyper, step)[engine.rescale_momentum]
        for r in (replicas, moved)
    )
    return moved._replace(opt_state=rescale_momentum(moved.opt_state, before / after))


def _per_seed(
    key: Key[Array, "..."], function: Callable[..., T], in_axes: Any = 0, out_axes: Any = 0
) -> Callable[..., T]:
    """Lifts a function of one seed's ladder to all seeds; the function itself when the run has one seed."""
    return jax.vmap(function, in_axes, out_axes) if key.ndim else function


def _over_seeds(
    engine: Engine, key: Key[Array, "..."], function: Callable[..., T], in_axes: tuple[int | None, ...] = (0,)
) -> Callable[..., T]:
    """The same for what is heavy, executed like the replicas."""
    return _over_replicas(engine, function, in_axes, seeds=True) if key.ndim else function


def _over_replicas(
    engine: Engine, function: Callable[..., T], in_axes: tuple[int | None, ...], seeds: bool = False
) -> Callable[..., T]:
    placed = engine.placed
    return over_replicas(engine.replica_axis, placed.platform, placed.num_shards, function, in_axes, seeds)
