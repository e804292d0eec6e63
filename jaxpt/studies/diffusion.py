"""Diffusion of replicas from common weights at several values of a hyperparameter: does it act like a temperature?"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from tqdm.auto import tqdm

from jaxpt.core import tree
from jaxpt.core.arguments import is_count
from jaxpt.core.data import Data
from jaxpt.core.decimals import shortest
from jaxpt.core.ladder import Ladder
from jaxpt.core.seeds import keys
from jaxpt.core.state import RunState
from jaxpt.core.types import Batch, ModelState, Params, Problem
from jaxpt.devices.placement import single
from jaxpt.devices.processes import is_first
from jaxpt.diagnostics.displacement import Diffusion
from jaxpt.engine.axes import state_axes
from jaxpt.engine.engine import Engine
from jaxpt.rules import Independent


def diffusion(
    engine: Engine,
    train: PyTree = None,
    *,
    steps: int,
    start: float | None = None,
    own_burn_in: bool = False,
    seeds: Sequence[int] = range(5),
    progress: bool | None = None,
) -> Diffusion:
    """Trains replicas at different values of ONE hyperparameter from the same weights and records their displacement.

    Figure 1 of arXiv 1909.04013: |W(t) - W(t0)|. The replicas of a seed share W(t0), the optimiser's state and, unless
    the engine has `own_batches=True`, the minibatches; each has separate dropout and noise. It is a run of the engine
    with `Independent`.

        >>> ladder, sgd = jaxpt.Ladder(learning_rate=[0.01, 0.02, 0.04]), lambda h: optax.sgd(h["learning_rate"])
        >>> engine = jaxpt.Engine(problem, sgd, ladder, every=10, batch_size=32)
        >>> found = jaxpt.diffusion(engine, train, steps=100)
        >>> found.displacement.shape, found.verdict().answer  # [records, seeds, values]
        ((10, 5, 3), 'temperature-like')

    Args:
        engine: has the values on one ladder of one hyperparameter; `every` is the number of steps between records, and
            `burn_in` is t0, the number of steps that lead to the common weights W(t0). Its rule is replaced by
            `Independent`, and `probe`, `rescale_momentum` and `diverged` are ignored: nothing is exchanged, and a
            diverged replica keeps training. The problem's energy and metrics are not computed. The step of a schedule
            counts from the first step of the burn-in.
        train: training split, leaves [N, ...]; None for a problem without data.
        steps: steps of each replica after t0, a multiple of `engine.every`.
        start: the value at which the burn-in to the common weights runs, on the ladder or not; by default that of the
            coldest rung.
        own_burn_in: let each replica do the burn-in at its own value, so that only the initial weights are common.
            From common weights, a value with another equilibrium first drifts there, which is not diffusion: a strong
            weight decay, for example, looks hot until it has arrived.
        seeds: seeds of the runs; each has a set of M replicas, all in one program.
        progress: show a progress bar on stderr; by default if stderr is a terminal.

    A ladder whose inverse temperatures are unknown or infinite (a weight decay, or a dropout rate of 0) is possible in
    an engine with `rule=Independent()`. Larger values of it count as hotter; results list the values coldest first. If
    smaller values are hotter, give the ladder beta, of which only the order counts: `Ladder(mine=[1, 2], beta=[1, 2])`.

    Raises:
        ValueError: the engine has several ladders, or several hyperparameters on its ladder; the values or their beta
            are not different, or not in order; steps is not a positive multiple of every; own_burn_in or start without
            a burn-in, or both of them; no seeds, or duplicate seeds; otherwise as for `Engine`.
    """
    name, ladder = _ladder(engine)
    burn_in = engine.burn_in
    _check(engine, train, steps, start, own_burn_in, seeds)
    engine = dataclasses.replace(
        engine,
        problem=engine.problem.changed(_from_start),
        ladder=ladder,
        rule=Independent(),
        burn_in=0,
        search=None,
        cooldown=None,
        probe=None,
        rescale_momentum=None,
        diverged="keep",
    )
    # The displacement is the score, so examples do not matter; a single one makes the split non-empty.
    one = jax.tree.map(lambda leaf: leaf[:1], train)
    data = Data(train, one)
    engine.check(data)
    placed = engine.placed.put(data)
    made = keys(0, seeds, None)
    state = common = engine.init(made)
    if burn_in and not own_burn_in:
        value = float(ladder.values[name][0]) if start is None else start
        rung = Ladder(**{name: [value]}, beta=[1.0], name=ladder.name)
        first = dataclasses.replace(engine, ladder=rung, every=burn_in, placement=single())
        common, _ = first.run(first.init(made), data, periods=1)
    # Each process has its own copy of the common weights and puts it on its devices.
    state = engine.placed.put(_same_weights(state._replace(step=common.step), common), state_axes(1))
    if burn_in and own_burn_in:
        state, _ = dataclasses.replace(engine, every=burn_in).run(state, placed, periods=1)
        state = _start_here(state)

    squares = _walk(engine, state, placed, steps // engine.every, progress)
    taken = np.arange(engine.every, steps + 1, engine.every)
    return Diffusion(name, np.asarray(ladder.values[name]), taken, np.sqrt(squares))


def _walk(
    engine: Engine, state: RunState, data: Data, periods: int, progress: bool | None
) -> Float[np.ndarray, "P S M"]:
    """Trains the replicas, shows progress, and returns |W - W(t0)|^2 after each period."""
    records = []
    hidden = None if progress is None else not progress  # None: tqdm shows the bar on a terminal only
    hidden = hidden if is_first() else True
    total = periods * engine.every
    with tqdm(total=total, desc="diffusion", unit="step", disable=hidden, dynamic_ncols=True) as bar:
        for _ in range(periods):
            state, trace = engine.run(state, data, periods=1)
            records.append(np.asarray(trace.valid["energy"][0]))
            bar.update(engine.every)
    return np.stack(records).astype(np.float64)


def _ladder(engine: Engine) -> tuple[str, Ladder]:
    """Returns the engine's only hyperparameter and its ladder, which gets a beta if it has none.

    Raises:
        ValueError: there is more than one; the values or their beta are not different, or not in order.
    """
    if not isinstance(engine, Engine):
        raise ValueError(
            f"diffusion(engine, train, steps=...) takes a jaxpt.Engine first, but it is a {type(engine).__name__}"
        )
    given = [name for ladder in engine.ladders.values() for name in ladder.values]
    if len(given) > 1:
        raise ValueError(
            f"diffusion compares values of one hyperparameter, but the engine's ladders have {', '.join(given)}; leave "
            "one on a ladder and give the others as fixed={name: value}"
        )
    (name,), (ladder,) = given, engine.ladders.values()
    values = np.asarray(ladder.values[name])
    if ladder.missing is not None:
        ladder = Ladder(**{name: values}, beta=-values, name=ladder.name)
    if min(len(np.unique(values)), len(np.unique(ladder.beta))) < len(values):
        raise ValueError(
            f"the ladder needs different values with different beta, but {name} has {shortest(values)} with beta "
            f"{shortest(np.asarray(ladder.beta))}"
        )
    return name, ladder


def _check(engine: Engine, train: PyTree, steps: Any, start: float | None, own_burn_in: bool, seeds: Any) -> None:
    """Raises ValueError if the times do not fit each other, seeds are missing or equal, or train is no split."""
    if isinstance(train, Data):
        raise ValueError("train must be the training split, but it is a jaxpt.Data; give its field train")
    if not is_count(steps) or steps % engine.every:
        raise ValueError(
            f"steps must be an integer, a positive multiple of the engine's every, but steps={steps!r} and "
            f"every={engine.every}"
        )
    if own_burn_in and not engine.burn_in:
        raise ValueError("own_burn_in=True asks for a burn-in; give Engine(burn_in=...), its steps")
    if start is not None and own_burn_in:
        raise ValueError(f"own_burn_in=True has no common burn-in for start={start}; leave out one of them")
    if start is not None and not engine.burn_in:
        raise ValueError(f"start={start} is the value of the burn-in, but there is none; give Engine(burn_in=...)")
    if not isinstance(seeds, Sequence | np.ndarray) or not len(seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more different integers, e.g. range(5), but they are {seeds!r}")


def _from_start(problem: Problem) -> Problem:
    """Returns the problem with W(t0) stored in its model state, and with the energy |W - W(t0)|^2."""

    def init(key: Key[Array, ""]) -> tuple[Params, ModelState]:
        params, rest = problem.init(key)
        return params, (rest, params)

    def loss(
        params: Params, rest: ModelState, batch: Batch, hyper: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[Array, ModelState]:
        value, inner = problem.loss(params, rest[0], batch, hyper, key)
        return value, (inner, rest[1])

    def evaluate(params: Params, rest: ModelState, batch: Batch) -> dict[str, Array]:
        squares = jax.tree.map(lambda w, w0: jnp.sum(jnp.square(jnp.abs(w - w0).astype(jnp.float32))), params, rest[1])
        examples = 1 if batch is None else tree.leading(batch)
        return {"energy": jnp.full(examples, sum(jax.tree.leaves(squares)))}

    plain = problem._replace(model=None, predict=None, metrics=(), trained_on=None)
    return plain._replace(init=init, loss=loss, evaluate=evaluate)


def _start_here(state: RunState) -> RunState:
    """Returns the state with W(t0) set to each replica's current weights."""
    replicas = state.replicas
    rest, _ = replicas.model_state
    return state._replace(replicas=replicas._replace(model_state=(rest, jax.tree.map(jnp.copy, replicas.params))))


def _same_weights(state: RunState, common: RunState) -> RunState:
    """Returns the state with the first replica of `common` in every slot of its seed, and W(t0) set to its weights."""
    replicas = state.replicas.key.shape[1]

    def spread(leaf: Array) -> Array:
        return jnp.broadcast_to(leaf[:, :1], (leaf.shape[0], replicas, *leaf.shape[2:]))

    params, (rest, _), opt_state = jax.tree.map(spread, tuple(common.replicas[:3]))
    start = state.replicas._replace(params=params, model_state=(rest, params), opt_state=opt_state)
    return state._replace(replicas=start)
