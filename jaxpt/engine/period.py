"""One period of a run: training steps, energies and the exchange, for the replicas of one device."""

from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxpt.core import tree
from jaxpt.core.data import Batches, Data, minibatches, probe_batch
from jaxpt.core.ladder import Ladder, contracted
from jaxpt.core.search import Search, best_place
from jaxpt.core.state import Replicas, RunState, Trace
from jaxpt.core.types import Info, Move, Observation
from jaxpt.devices.execution import Lift
from jaxpt.devices.placement import EXAMPLES, Placement
from jaxpt.engine.packing import Packing
from jaxpt.engine.replica import Divided, reported, rescale_momentum, scheduled, step_keys, train_step
from jaxpt.engine.scoring import mean_scores, paired_variance
from jaxpt.engine.spec import Spec
from jaxpt.rules.exchange import energy_spread

T = TypeVar("T")
INIT, DATA, EXCHANGE, PROBE = range(4)  # folded into the run's key, one number per purpose
STEPS = "training_steps"
"""The name of the loop over the steps in compiled programs."""


def periods(
    engine: Spec, state: RunState, data: Data, batches: Batches | None, count: Int[Array, ""], *, max_periods: int
) -> tuple[RunState, Trace]:
    """Returns the state after `count` periods and a trace of `max_periods` rows, of which the first `count` are filled.

    `count` is traced: one program runs any number of periods up to `max_periods`, and a period gives the same bits in
    whichever dispatch it runs.
    """

    def given(turn: Int[Array, ""]) -> Batches | None:
        # Leaves of `batches` lead with the dispatch's periods; None has no leaves, so it stays None.
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, turn, keepdims=False), batches)

    first = jnp.zeros((), jnp.int32)
    # Traced once, for both the shape of its row and the loop's body.
    program, (_, row) = jax.make_jaxpr(lambda s, turn: period(engine, s, data, given(turn)), return_shape=True)(
        state, first
    )

    def one(carry: tuple[Array, list[Array], list[Array]]) -> tuple[Array, list[Array], list[Array]]:
        turn, leaves, rows = carry
        # A jaxpr's outputs are flat: first the state's leaves, then the row's.
        out = jaxpr_as_fun(program)(*leaves, turn)
        pairs = zip(rows, packing.pack(out[len(leaves) :]), strict=True)
        rows = [jax.lax.dynamic_update_index_in_dim(rows, leaf, turn, 0) for rows, leaf in pairs]
        return turn + 1, out[: len(leaves)], rows

    leaves, structure = jax.tree.flatten(state)
    shapes, form = jax.tree.flatten(row)
    packing = Packing.of(shapes)
    start = first, leaves, [jnp.zeros((max_periods, *leaf.shape), leaf.dtype) for leaf in packing.packed]
    # `while_loop`, not `scan`: the length is traced. Rows past it stay zero.
    _, leaves, rows = jax.lax.while_loop(lambda carry: carry[0] < jnp.minimum(count, max_periods), one, start)
    return jax.tree.unflatten(structure, leaves), jax.tree.unflatten(form, packing.unpack(rows))


def period(engine: Spec, state: RunState, data: Data, batches: Batches | None) -> tuple[RunState, Trace]:
    """Runs `every` training steps, computes the energies and exchanges; for the replicas of one device."""
    lift = engine.lift(state.key)
    replicas, losses, told = _train(engine, state, data.train, batches)
    step, turn = state.step + engine.every, state.period

    # By the period's number alone, so that a resumed run draws the same examples.
    def probe(key: Key[Array, ""]) -> PyTree:
        return probe_batch(jax.random.fold_in(jax.random.fold_in(key, PROBE), turn), data.valid, engine.probe)

    def energies(replicas: Replicas, key: Key[Array, ""]) -> dict[str, Array]:
        return scores(engine, lift, replicas, probe(key))

    valid = lift.seeds(energies, (0, 0))(replicas, state.key)
    # Test scores take the whole split, also with a probe.
    test = {} if data.test is None else lift.seeds(partial(scores, engine, lift, examples=data.test))(replicas)

    def propose(
        key: Key[Array, ""], energy: Array, replicas: Replicas, told: Any, ladders: dict[str, Ladder], rule: Any
    ) -> Any:
        variance = None
        if rule.noise_corrected:
            how = engine.problem, lift.replicas, engine.placed.all_gather
            sizes = engine.evaluation_batch, tree.leading(data.valid)
            # `probe(key)` again: the same examples as those of the energies.
            variance = paired_variance(*how, replicas, probe(key), *sizes)
        key = jax.random.fold_in(jax.random.fold_in(key, EXCHANGE), turn)
        # Small arrays are gathered on all devices, and each computes the same exchange.
        energy, rung, hyper, told = engine.placed.all_gather((energy, replicas.rung, replicas.hyper, told))
        # burn_in and the cooldown's start are traced: whether swaps are allowed is data, not another program.
        allowed, cooling, searching = step > engine.burn_in, None, None
        if engine.beginning is not None:
            searching = engine.beginning.running(step, engine.every)
            allowed = allowed & ~searching
            ends = engine.beginning.ends(step, engine.every)
            ladders, hyper = _searched(engine.beginning, energy, rung, hyper, ladders, ends)
        if engine.ending is not None:
            cooling = engine.ending.begun(step)
            allowed = allowed & ~cooling
        seen = Observation(turn, energy, rung, hyper, ladders, allowed, variance, cooling, searching, told)
        move, rule, info = rule.propose(key, seen)
        if engine.diverged == "respawn":
            # In the search a rung's energy must be its own, or the ladder would contract around a rate that diverges.
            now = True if searching is None else ~searching | ends
            move, info = _respawned(energy, rung, move, info, now)
        return _apply(engine, replicas, move, step), move.ladders or ladders, rule, info

    moved, ladders, rule, info = lift.each_seed(propose)(
        state.key, valid["energy"], replicas, told, state.ladders, state.rule
    )
    # Rungs and hyperparameters of `replicas`, not of `moved`: those during the period.
    factor = None if engine.ending is None else engine.ending.fall(step)
    draws = None if engine.draws is None else lift.seeds(lift.replicas(engine.draws, (0,)), (0,))(replicas.params)
    trace = Trace(step, losses, valid, test, replicas.rung, replicas.hyper, info, factor, told, draws)
    return state._replace(replicas=moved, step=step, period=turn + 1, ladders=ladders, rule=rule), trace


def _train(
    engine: Spec, state: RunState, train: PyTree, batches: Batches | None
) -> tuple[Replicas, Float[Array, "... M"], dict[str, Float[Array, "... M"]] | None]:
    """Returns the replicas after `every` steps, and the means of loss and reported numbers over these steps."""
    lift = engine.lift(state.key)
    given, weight = (None, None) if batches is None else batches
    # Of minibatches of its own, each replica has its own short ones.
    own = engine.own_batches and batches is not None
    if own:
        given, weight = batches, None
    if train is not None:
        draw = partial(_minibatches, engine, step=state.step, num_examples=tree.leading(train))
        # Which examples count depends on the step alone, so `weight` has no axis of seeds.
        given, weight = lift.each_seed(draw, out_axes=(0, None))(state.key)
    if weight is None and not own and engine.placed.num_parts > 1:
        raise ValueError(
            "placement.grid divides minibatches, but the problem has no data; give placement.shard_map(devices)"
        )
    never_short = train is not None and (engine.drop_remainder or tree.leading(train) % engine.batch_size == 0)
    # The run's step numbers: schedules read them, and each step folds its number into the replica's key.
    numbers = state.step + jnp.arange(engine.every)

    def step(replica: Replicas, xs: tuple[Any, ...]) -> tuple[Replicas, tuple[Array, Any]]:
        given, weight, number, keys = xs
        if never_short:  # a constant: XLA then divides by a number that it knows
            weight = jnp.ones_like(weight)
        # Without a split `given` holds the examples themselves, else their indices.
        given = engine.placed.local_part(given)
        batch = given if train is None else tree.take(train, given)
        how = engine.problem, engine.optimizer, engine.in_force
        replica, loss = train_step(*how, replica, batch, weight, number, _divided(engine.placed), keys)
        return replica, (loss, reported(replica.opt_state))

    def steps(replica: Replicas, given: PyTree) -> tuple[Replicas, Float[Array, ""], Any]:
        examples, counts = given if own else (given, weight)
        # All at once: a hash of the keys of all steps costs hardly more than that of one.
        keys = jax.vmap(partial(step_keys, replica.key))(numbers)
        with jax.named_scope(STEPS):
            replica, (losses, told) = jax.lax.scan(step, replica, (examples, counts, numbers, keys))
        return replica, losses.mean(), jax.tree.map(jnp.mean, told)

    one_seed = lift.replicas(steps, (0, 0 if engine.own_batches else None))
    return lift.seeds(one_seed, (0, None if train is None else 0))(state.replicas, given)


def _divided(placed: Placement) -> Divided | None:
    """Returns how the devices of a group share a minibatch; None if each replica is on one device."""
    if placed.num_parts == 1:
        return None
    total = partial(jax.lax.psum, axis_name=EXAMPLES)
    return Divided(jax.lax.axis_index(EXAMPLES), placed.local_part, total, placed.num_parts)


def _minibatches(
    engine: Spec, key: Key[Array, ""], *, step: Int[Array, ""], num_examples: int
) -> tuple[Int[Array, "*M T B"], Bool[Array, "T B"]]:
    """Returns one period's minibatches for one seed: shared, or separate for each of the device's replicas."""
    draw = partial(
        minibatches,
        step=step,
        num_steps=engine.every,
        num_examples=num_examples,
        batch_size=engine.batch_size,
        drop_remainder=engine.drop_remainder,
    )
    key = jax.random.fold_in(key, DATA)
    if not engine.own_batches:
        return draw(key)
    # Folded with the replica's number among all M, so that placement does not change the draw.
    own = jax.vmap(jax.random.fold_in, (None, 0))(key, engine.placed.local_rows(jnp.arange(engine.num_replicas)))
    return jax.vmap(draw, out_axes=(0, None))(own)


def scores(engine: Spec, lift: Lift, replicas: Replicas, examples: PyTree) -> dict[str, Float[Array, " M"]]:
    """Returns the energy and the metrics of each replica of one seed, averaged over the examples."""
    return mean_scores(engine.problem, lift.replicas, replicas, examples, engine.evaluation_batch)


def _respawned(
    energy: Float[Array, " M"], rung: dict[str, Int[Array, " M"]], move: Move, info: Info, now: Bool[Array, ""] | bool
) -> tuple[Move, Info]:
    """Returns the move, changed so that diverged replicas take the weights of the nearest healthy replica.

    Nearest on the first ladder; of two at the same distance the colder. Rungs and hyperparameters do not change.
    Nothing is copied if `now` is false.
    """
    healthy, own = jnp.isfinite(energy), jnp.arange(energy.shape[0])
    place = next(iter(rung.values())).astype(jnp.float32)
    # Half a rung more for hotter ones, so that the colder of two neighbours is the nearest.
    away = jnp.abs(place[:, None] - place) + 0.5 * (place > place[:, None])
    nearest = jnp.argmin(jnp.where(healthy, away, jnp.inf), -1)
    parents = own if move.parents is None else move.parents
    # A rule that copies weights may already have replaced a diverged replica. Without a healthy one nothing is copied.
    parents = jnp.where(~healthy & healthy.any() & (parents == own) & now, nearest, parents)
    return move._replace(parents=parents), info._replace(parents=parents)


def _searched(
    search: Search,
    energy: Float[Array, " M"],
    rung: dict[str, Int[Array, " M"]],
    hyper: dict[str, Float[Array, " M"]],
    ladders: dict[str, Ladder],
    ends: Bool[Array, ""],
) -> tuple[dict[str, Ladder], dict[str, Float[Array, " M"]]]:
    """Returns ladders and hyperparameters; where the search ends, contracted around the best rung."""
    spread, made, hyper = energy_spread(energy), {}, dict(hyper)
    for name, ladder in ladders.items():
        new = contracted(ladder, best_place(energy, rung[name], spread), search.factor)
        made[name] = jax.tree.map(lambda new, old: jnp.where(ends, new, old), new, ladder)
        hyper |= {key: jnp.where(ends, value[rung[name]], hyper[key]) for key, value in new.values.items()}
    return made, hyper


def _apply(engine: Spec, replicas: Replicas, move: Move, step: Int[Array, ""]) -> Replicas:
    """Returns the replicas of one seed after a move: new hyperparameters, and new weights if the move has parents."""
    if move.parents is not None:
        mine = (*replicas[:3], replicas.hyper)
        # A parent may be on another device: weights are gathered whole, and each device takes its own rows.
        params, model_state, opt_state, hyper = tree.take(
            engine.placed.all_gather(mine), engine.placed.local_rows(move.parents)
        )
        replicas = replicas._replace(params=params, model_state=model_state, opt_state=opt_state, hyper=hyper)
    rung, hyper = engine.placed.local_rows((move.rung, move.hyper))
    moved = replicas._replace(rung=rung, hyper=hyper)
    if engine.rescale_momentum is None:
        return moved
    # Rates in force. After a copy `before` is the parent's, under which the copied momentum arose.
    before, after = (
        jax.vmap(partial(scheduled, engine.schedule), (0, None))(r.hyper, step)[engine.rescale_momentum]
        for r in (replicas, moved)
    )
    # A schedule or a cooldown may have brought both to 0; a rate of 0 moves nothing, whatever the momentum.
    stays = (before == after) | (after == 0)
    factor = jnp.where(stays, 1.0, before / jnp.where(stays, 1.0, after))
    return moved._replace(opt_state=rescale_momentum(moved.opt_state, factor))
