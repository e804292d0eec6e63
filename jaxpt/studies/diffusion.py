"""Diffusion of replicas from common weights at several values of a hyperparameter: does it act like a temperature?"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree
from tqdm.auto import tqdm

from jaxpt.core import tree
from jaxpt.core.data import Data
from jaxpt.core.decimals import shortest
from jaxpt.core.ladder import BETA, Ladder
from jaxpt.core.seeds import keys
from jaxpt.core.state import RunState
from jaxpt.core.types import Batch, ModelState, Optimizer, Params, Problem, Schedule
from jaxpt.devices.placement import Placement, single
from jaxpt.devices.processes import is_first
from jaxpt.diagnostics.displacement import Diffusion
from jaxpt.engine.axes import state_axes
from jaxpt.engine.engine import Engine
from jaxpt.rules import Independent


def diffusion(
    problem: Problem,
    optimizer: Optimizer,
    train: PyTree = None,
    *,
    name: str,
    values: Sequence[float] | np.ndarray,
    steps: int,
    every: int,
    burn_in: int = 0,
    own_burn_in: bool = False,
    seeds: Sequence[int] = range(5),
    beta: Callable[[np.ndarray], np.ndarray] | None = None,
    batch_size: int = 128,
    fixed: Mapping[str, float] | None = None,
    schedule: Schedule | None = None,
    own_batches: bool = False,
    drop_remainder: bool = False,
    placement: Placement | Literal["auto"] = "auto",
    progress: bool | None = None,
) -> Diffusion:
    """Trains replicas at different values of ONE hyperparameter from the same weights and records their displacement.

    Figure 1 of arXiv 1909.04013: |W(t) - W(t0)|. The replicas of a seed share W(t0), the optimiser's state and the
    minibatches; each has separate dropout and noise. It is a run of `Engine` with `Independent`.

        >>> sgd = lambda h: optax.sgd(h["learning_rate"])
        >>> found = jaxpt.diffusion(problem, sgd, train, name="learning_rate", values=[0.01, 0.02, 0.04],
        ...                         steps=100, every=10, batch_size=32)
        >>> found.displacement.shape, found.verdict().answer  # [records, seeds, values]
        ((10, 5, 3), 'temperature-like')

    Args:
        problem: the problem; its energy and metrics are not computed.
        optimizer: {name: scalar} -> optax transformation.
        train: training split, leaves [N, ...]; None for a problem without data.
        name: the hyperparameter's name.
        values: its values, monotone in beta. Results list them coldest first.
        steps: steps of each replica after t0, a multiple of `every`.
        every: steps between records.
        burn_in: t0, the number of steps that lead to the common weights W(t0), at the first of the given values.
        own_burn_in: let each replica do the burn-in at its own value, so that only the initial weights are common.
            From common weights, a value with another equilibrium first drifts there, which is not diffusion: a strong
            weight decay, for example, looks hot until it has arrived.
        seeds: seeds of the runs; each has a set of M replicas, all in one program.
        beta: function from values to inverse temperatures; only their order counts. By default the entry in
            `core.ladder.BETA`; for other names larger values are hotter.
        batch_size: examples in a minibatch; if it is the hyperparameter, the largest value.
        fixed: the other hyperparameters, {name: value}.
        schedule: as in `Engine`; its step counts from the first step of the burn-in.
        own_batches: each replica draws separate minibatches.
        drop_remainder: leave out an epoch's short last minibatch.
        placement: as in `Engine`.
        progress: show a progress bar on stderr; by default if stderr is a terminal.

    Raises:
        ValueError: steps is not a positive multiple of every; burn_in is negative, or 0 with own_burn_in; no seeds, or
            duplicate seeds; values are not monotone in beta; otherwise as for `Engine`.
    """
    if steps < 1 or every < 1 or steps % every:
        raise ValueError(f"steps must be a positive multiple of every, but steps={steps} and every={every}")
    if burn_in < 0:
        raise ValueError(f"burn_in must be at least 0, but it is {burn_in}")
    if own_burn_in and not burn_in:
        raise ValueError("own_burn_in=True asks for a burn-in; give burn_in, its steps")
    if not isinstance(seeds, Sequence | np.ndarray) or not len(seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more different integers, e.g. range(5), but they are {seeds!r}")
    make = partial(
        Engine,
        _from_start(problem),
        optimizer,
        rule=Independent(),
        batch_size=batch_size,
        fixed=fixed or {},
        schedule=schedule,
        own_batches=own_batches,
        drop_remainder=drop_remainder,
    )
    engine = make(_ladder(name, values, beta), every=every, placement=placement)
    # The displacement is the score, so examples do not matter; a single one makes the split non-empty.
    one = jax.tree.map(lambda leaf: leaf[:1], train)
    data = Data(train, one)
    engine.check(data)
    placed = engine.placed.put(data)
    made = keys(0, seeds, None)
    state = common = engine.init(made)
    if burn_in and not own_burn_in:
        first = make(Ladder(**{name: [values[0]]}, beta=[1.0], name=name), every=burn_in, placement=single())
        common, _ = first.run(first.init(made), data, periods=1)
    # Each process has its own copy of the common weights and puts it on its devices.
    state = engine.placed.put(_same_weights(state._replace(step=common.step), common), state_axes(1))
    if burn_in and own_burn_in:
        state, _ = dataclasses.replace(engine, every=burn_in).run(state, placed, periods=1)
        state = _start_here(state)

    records = []
    hidden = None if progress is None else not progress  # None: tqdm shows the bar on a terminal only
    hidden = hidden if is_first() else True
    with tqdm(total=steps, desc="diffusion", unit="step", disable=hidden, dynamic_ncols=True) as bar:
        for _ in range(steps // every):
            state, trace = engine.run(state, placed, periods=1)
            records.append(np.asarray(trace.valid["energy"][0]))
            bar.update(every)
    ladder = engine.ladders[name]
    displacement = np.sqrt(np.stack(records).astype(np.float64))
    return Diffusion(name, np.asarray(ladder.values[name]), np.arange(every, steps + 1, every), displacement)


def _ladder(name: str, values: Sequence[float] | np.ndarray, beta: Callable[[np.ndarray], np.ndarray] | None) -> Ladder:
    """Returns the values as a ladder whose betas are ranks, which also works for an infinite beta (dropout 0)."""
    values = np.asarray(values, np.float64)
    with np.errstate(divide="ignore"):
        inverse = np.asarray((beta or BETA.get(name, np.negative))(values))
    ranks = np.argsort(np.argsort(inverse)) if len(np.unique(inverse)) == values.size else np.empty(0)
    if values.ndim != 1 or not ranks.size:
        raise ValueError(f"values must be different numbers with different beta, but {name} has {shortest(values)}")
    return Ladder(**{name: values}, beta=ranks, name=name)


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
