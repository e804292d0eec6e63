"""The host's loop around `Engine.run`: chunks of periods, a progress bar, and the result."""

import dataclasses
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxpt import tree
from jaxpt.data import Batches, Data, examples_seen
from jaxpt.engine import Engine, RunState, Trace
from jaxpt.processes import clear_errors, is_first
from jaxpt.replica_axis import Execution
from jaxpt.stream import is_stream, prefetch

_NEVER = np.iinfo(np.int32).max
_GENERATORS = ("threefry2x32", "rbg", "unsafe_rbg")


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
    """What came of a run.

    result.best("error").model(x)                # the replica that is best on validation, ready to call
    result.trace.valid["energy"]                 # [periods, replicas], or [periods, seeds, replicas]
    result.trace.rung["learning_rate"]           # where each replica stood, period by period
    """

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
    """Training examples that all replicas were trained on, repeats counted; batch sizes as in `trace.hyper`."""
    execution: Execution
    """How the replica axis was executed and on how many devices; `str` says it in words."""

    def best(self, on: str = "energy", seed: int | None = None) -> Best:
        """Returns the replica with the lowest score on the validation split (ties: the lower energy).

        In a run of several processes all of them must call it.

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
        # A diverged replica comes last, whatever its other scores say.
        healthy = np.isfinite(self.valid["energy"])
        ranked = [np.where(healthy, self.valid[name], np.inf)[lead] for name in ("energy", on)]
        index = (*lead, int(np.lexsort(ranked)[0]))
        if not np.isfinite(ranked[0]).any():
            warnings.warn(f"all {len(ranked[0])} replicas have diverged; none is the best", stacklevel=2)
        weights = tree.take((self.state.replicas.params, self.state.replicas.model_state), index)
        weights = self.engine.placed.gathered(weights)
        build = self.engine.problem.model
        return Best(
            index[-1],
            seed,
            {name: float(v[index]) for name, v in self.valid.items()},
            {name: float(v[index]) for name, v in self.test.items()},
            build(*weights) if build else weights,
        )


@clear_errors()
def fit(
    engine: Engine,
    train: PyTree | Iterable[PyTree] = None,
    valid: PyTree = None,
    *,
    steps: int,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    test: PyTree = None,
    prng: str | None = None,
    progress: bool | None = None,
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
        seeds: several seeds instead: as many whole ladders in one run, each equal, up to rounding, to a run with that
            seed alone.
        test: test split; recorded each period, nothing depends on it.
        prng: the generator behind all that is random, "threefry2x32", "rbg" or "unsafe_rbg"; by default JAX's own
            (`jax_default_prng_impl`, threefry). The two others are faster at dropout, and what they draw depends on
            `Engine.replica_axis` and on the number of devices.
        progress: show a progress bar on stderr; by default if that is a terminal. Of several processes only the first
            does.
        description: what the bar is called.

    Returns:
        The final state, the trace as NumPy arrays, the final scores and how long it took; see `Result`.

    Raises:
        ValueError: steps is not a positive integer, seeds are not distinct integers, prng is unknown, or the data does
            not fit the engine, see `Engine.check`; a stream ends early or changes its shapes, see
            `jaxpt.stream.prefetch`.
        ProcessLost: another process of the run is gone, see `jaxpt.placement.clear_errors`.
    """
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, but it is {steps!r}")
    key = _keys(seed, seeds, prng)
    streaming = is_stream(train)
    plan = _plan(engine, steps, streaming)
    feed: Iterator[Batches | None] = itertools.repeat(None)
    if streaming:
        feed, train = prefetch(train, [part.every for part, _ in plan], engine.batch_size), None
    batches = next(feed)
    engine.check(Data(train if batches is None else tree.take(batches.examples, (0, 0)), valid, test))
    data = engine.placed.put(Data(train, valid, test))  # once, to every device
    execution = engine.execution(data if batches is None else data._replace(train=tree.take(batches.examples, (0, 0))))
    state = engine.init(key)
    early = getattr(engine.rule, "swap_while_tuning", False)
    if engine.rule.exchanges and not early and engine.every * (steps // engine.every) <= engine.burn_in:
        warnings.warn(
            f"no exchange will happen: {steps} steps hold no whole period of {engine.every} steps that ends after the "
            f"burn-in of {engine.burn_in}",
            stacklevel=2,
        )

    started = time.perf_counter()
    for part, periods in dict.fromkeys(plan):
        part.lower(state, data, periods=periods, batches=_shapes(batches, part.every), donate=True).compile()
    compile_seconds = time.perf_counter() - started

    traces: list[Trace] = []
    accepted = offered = images = 0
    started = time.perf_counter()
    hidden = None if progress is None else not progress  # None: tqdm shows the bar on a terminal only
    hidden = hidden if is_first() else True
    with tqdm(total=steps, desc=description, unit="step", disable=hidden, dynamic_ncols=True) as bar:
        for part, periods in plan:
            state, trace = part.run(state, data, periods=periods, batches=batches, donate=True)
            traces.append(jax.tree.map(np.asarray, trace))
            seconds = time.perf_counter() - started
            accepted += int(traces[-1].info.accepted.sum())
            offered += int(traces[-1].info.attempted.sum())
            if batches is not None:
                images += _replica_images(part, traces[-1], partial(_counted, np.asarray(batches.counts)))
            elif train is not None:
                images += _replica_images(part, traces[-1], partial(_drawn, part, traces[-1], tree.leading(train)))
            bar.set_postfix(_postfix(traces[-1], accepted, offered, images / seconds), refresh=False)
            bar.update(part.every * periods)
            batches = next(feed, None)
    seconds = time.perf_counter() - started
    trace = jax.tree.map(lambda *rows: np.concatenate(rows), *traces)
    last_valid, last_test = tree.take((trace.valid, trace.test), -1)
    if (parents := trace.info.parents) is not None:  # the last copies carry their scores with them
        last_valid, last_test = jax.tree.map(
            lambda score: np.take_along_axis(score, parents[-1], -1), (last_valid, last_test)
        )
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
        execution=execution,
    )


def _keys(seed: int, seeds: Sequence[int] | None, prng: str | None) -> jax.Array:
    """Returns the key of one seed, or those of several."""
    if prng not in (None, *_GENERATORS):
        raise ValueError(f"prng must be one of {', '.join(_GENERATORS)}, or None for JAX's own, but it is {prng!r}")
    wanted = [seed] if seeds is None else list(seeds) if isinstance(seeds, Sequence | np.ndarray) else None
    if not wanted or not all(isinstance(s, int | np.integer) for s in wanted) or len(set(wanted)) < len(wanted):
        raise ValueError(
            "seed must be an integer, and seeds a sequence of one or more different integers, e.g. range(5), but they "
            f"are seed={seed!r}, seeds={seeds!r}"
        )
    if seeds is not None and seed != 0:
        raise ValueError(f"give seed={seed!r} or seeds={seeds!r}, not both")
    make = partial(jax.random.key, impl=prng)
    return make(seed) if seeds is None else jax.vmap(make)(jnp.asarray(wanted))


def _plan(engine: Engine, steps: int, streaming: bool = False) -> list[tuple[Engine, int]]:
    """Returns what to dispatch: (engine, periods), about 40 times, with as few different programs as possible.

    A stream's minibatches are put on the device period by period, so its periods are dispatched one at a time.
    """
    whole, rest = divmod(steps, engine.every)
    # A divisor near whole / 40 needs one program; else the remainder needs a second one.
    divisors = [d for d in range(-(-whole // 80), -(-whole // 20) + 1) if d and whole % d == 0]
    chunk = 1 if streaming else divisors[-1] if divisors else max(1, whole // 40)
    plan = [(engine, chunk)] * (whole // chunk)
    if whole % chunk:
        plan.append((engine, whole % chunk))
    if rest:
        plan.append((dataclasses.replace(engine, every=rest, burn_in=_NEVER), 1))
    return plan


def _shapes(batches: Batches | None, every: int) -> PyTree:
    """Returns one period's minibatches as shapes, for a period of so many steps."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, every, *leaf.shape[2:]), leaf.dtype), batches)


def _postfix(trace: Trace, accepted: int, offered: int, rate: float) -> dict[str, str]:
    """What the progress bar says behind the steps."""
    energy = trace.valid["energy"][-1]
    shown = {"best": f"{np.min(energy, where=np.isfinite(energy), initial=np.inf):.4g}"}
    if offered:
        shown["accepted"] = f"{accepted / offered:.0%}"
    if rate:
        shown["replica-images/s"] = f"{rate:,.0f}"
    return shown


def _replica_images(engine: Engine, trace: Trace, count: Callable[[int, int], int]) -> int:
    """Returns how many training examples counted, all replicas of all seeds together.

    Args:
        engine: with which these periods ran.
        trace: their rows.
        count: (period, batch size) -> examples that count for one replica.
    """
    sizes = trace.hyper.get("batch_size", np.full(trace.loss.shape, engine.batch_size))
    return sum(
        int(number) * count(period, int(size))
        for period, row in enumerate(sizes)
        for size, number in zip(*np.unique(row, return_counts=True), strict=True)
    )


def _drawn(engine: Engine, trace: Trace, num_examples: int, period: int, limit: int) -> int:
    """Returns how many examples of minibatches drawn from the split count, if at most `limit` of each do."""
    split = num_examples, engine.batch_size, engine.drop_remainder
    end = int(trace.step[period])
    return examples_seen(end, *split, limit) - examples_seen(end - engine.every, *split, limit)


def _counted(counts: np.ndarray, period: int, limit: int) -> int:
    """Returns how many examples of given minibatches [P, T, B] count, if at most the first `limit` of each do."""
    return int(counts[period, :, :limit].sum())
