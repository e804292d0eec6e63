"""The host's loop around `Engine.run`: chunks of periods, a progress bar, and the result."""

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxpt import tree
from jaxpt.data import Batches, Data, examples_seen
from jaxpt.diagnostics import acceptance_rate
from jaxpt.engine import Engine, RunState, Trace
from jaxpt.stream import is_stream, prefetch

_NEVER = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Best:
    """The replica that did best on validation."""

    replica: int
    """Its slot, 0 .. M - 1."""
    seed: int | None
    """Which seed's ladder it belongs to (an index into `seeds`); None for a run with one seed."""
    valid: dict[str, float]
    """Its energy and metrics on the whole validation split, at the end."""
    test: dict[str, float]
    """The same on the test split; empty without one."""
    model: Any = dataclasses.field(repr=False)
    """The user's model with its weights, in evaluation mode."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a run."""

    engine: Engine = dataclasses.field(repr=False)
    """The engine that ran."""
    state: RunState = dataclasses.field(repr=False)
    """The state after the last step."""
    trace: Trace = dataclasses.field(repr=False)
    """One row per period, as NumPy arrays."""
    valid: dict[str, np.ndarray]
    """{"energy": [M], metric: [M]} on the whole validation split, at the end; [S, M] with seeds."""
    test: dict[str, np.ndarray]
    """The same on the test split; empty without one."""
    seconds: float
    """Wall time of the training, compilation left out."""
    compile_seconds: float
    """Wall time of the compilation."""
    replica_images: int
    """Training examples that all replicas together were trained on, repeats counted."""

    def best(self, on: str = "energy", seed: int | None = None) -> Best:
        """Returns the replica with the lowest score on the validation split (ties: the lower energy).

        Args:
            on: "energy" or one of the problem's metrics.
            seed: which seed's ladder to look at (an index into `seeds`); needed if the run has several.

        Raises:
            ValueError: no such score, or no such seed.
        """
        if on not in self.valid:
            raise ValueError(f"on={on!r} is not a score of this run; there are {', '.join(self.valid)}")
        ladders = self.state.key.ndim and self.state.key.shape[0]
        if ladders and (seed is None or not 0 <= seed < ladders):
            raise ValueError(f"the run has {ladders} seeds; give seed=0 .. {ladders - 1}, not {seed}")
        if seed is not None and not ladders:
            raise ValueError(f"the run has one seed only, so seed={seed} names none; leave it out")
        lead: tuple[int, ...] = () if seed is None else (seed,)
        # A diverged replica has no number to compare: it comes last.
        ranked = [np.where(np.isfinite(v), v, np.inf)[lead] for v in (self.valid["energy"], self.valid[on])]
        index = (*lead, int(np.lexsort(ranked)[0]))
        weights = tree.take((self.state.replicas.params, self.state.replicas.model_state), index)
        build = self.engine.problem.model
        return Best(
            index[-1],
            seed,
            {name: float(v[index]) for name, v in self.valid.items()},
            {name: float(v[index]) for name, v in self.test.items()},
            build(*weights) if build else weights,
        )


def fit(
    engine: Engine,
    train: PyTree | Iterable[PyTree] = None,
    valid: PyTree = None,
    *,
    steps: int,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    test: PyTree = None,
    progress: bool = True,
    description: str = "training",
) -> Result:
    """Trains all replicas for so many steps and shows how far it is.

    Data goes to the device once. Whole chunks of periods are dispatched at a time; steps that do not fill a last
    period are done without an exchange.

    A training split that does not fit on the device is given as a stream, an iterator of minibatches on the host (a
    Grain loader, say): a thread reads, stacks and copies the next period's while the device trains (`jaxpt.stream`).
    All replicas, and with `seeds` all ladders, share its minibatches. The order of examples being the same, the bits
    are those of a split on the device.

    Args:
        engine: what to run.
        train: training split, leaves [N, ...]; or a stream of minibatches, leaves [batch_size, ...], of which exactly
            `steps` are taken; None for a problem without data.
        valid: validation split.
        steps: optimiser steps of each replica.
        seed: the seed of a run with one ladder.
        seeds: several seeds: as many whole ladders in one run, each equal to a run with that seed.
        test: test split; recorded each period, nothing depends on it.
        progress: show a progress bar (on a terminal; it writes to stderr).
        description: what the bar is called.

    Raises:
        ValueError: steps is not positive, or the data does not fit the engine, see `Engine.check`; a stream ends early
            or changes its shapes, see `jaxpt.stream.prefetch`.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but it is {steps}")
    whole, rest = divmod(steps, engine.every)
    feed: Iterator[Batches | None] = itertools.repeat(None)
    if streaming := is_stream(train):
        feed = prefetch(train, [engine.every] * whole + [rest] * (rest > 0), engine.batch_size)
        train = None
    batches = next(feed)
    engine.check(Data(train if batches is None else tree.take(batches.examples, (0, 0)), valid, test))
    data = jax.device_put(Data(train, valid, test))
    state = engine.init(jax.random.key(seed) if seeds is None else jax.vmap(jax.random.key)(jnp.asarray(seeds)))
    ladders = 1 if seeds is None else len(seeds)
    chunk = min(whole, 1) if streaming else _chunk(whole)
    plan = [(engine, chunk)] * (whole // chunk if whole else 0)
    if rest:
        plan.append((dataclasses.replace(engine, every=rest, burn_in=_NEVER), 1))
    started = time.perf_counter()
    for part, periods in dict(plan).items():
        part.lower(state, data, periods=periods, batches=_shapes(batches, part.every)).compile()
    compile_seconds = time.perf_counter() - started

    traces: list[Trace] = []
    seen = 0
    started = time.perf_counter()
    with tqdm(total=steps, desc=description, unit="step", disable=not progress, dynamic_ncols=True) as bar:
        for part, periods in plan:
            state, trace = part.run(state, data, periods=periods, batches=batches)
            traces.append(jax.tree.map(np.asarray, trace))
            seconds = time.perf_counter() - started
            if batches is not None:
                seen += int(np.asarray(batches.counts).sum())
            elif train is not None:
                done = int(trace.step[-1])
                seen = examples_seen(done, tree.leading(train), engine.batch_size, engine.drop_remainder)
            images = engine.num_replicas * ladders * seen
            bar.set_postfix(_postfix(traces, images / seconds), refresh=False)
            bar.update(part.every * periods)
            batches = next(feed, None)
    seconds = time.perf_counter() - started
    trace = jax.tree.map(lambda *rows: np.concatenate(rows), *traces)
    last_valid, last_test = tree.take((trace.valid, trace.test), -1)
    if engine.probe is not None:
        last_valid = jax.tree.map(np.asarray, engine.evaluate(state, data.valid))
    return Result(
        engine,
        state,
        trace,
        valid=last_valid,
        test=last_test,
        seconds=seconds,
        compile_seconds=compile_seconds,
        replica_images=images,
    )


def _chunk(periods: int) -> int:
    """Returns how many periods to dispatch at a time: a divisor, so one program serves; about 40 dispatches a run."""
    return max((d for d in range(1, periods // 40 + 2) if periods % d == 0), default=1)


def _shapes(batches: Batches | None, every: int) -> PyTree:
    """Returns one period's minibatches as shapes, for a period of so many steps."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, every, *leaf.shape[2:]), leaf.dtype), batches)


def _postfix(traces: list[Trace], rate: float) -> dict[str, str]:
    """What the progress bar says behind the steps."""
    info = [trace.info for trace in traces]
    accepted = acceptance_rate(np.concatenate([i.attempted for i in info]), np.concatenate([i.accepted for i in info]))
    shown = {"best": f"{np.nanmin(traces[-1].valid['energy'][-1]):.4g}"}
    if np.isfinite(accepted):
        shown["accepted"] = f"{accepted:.0%}"
    if rate:
        shown["replica-images/s"] = f"{rate:,.0f}"
    return shown
