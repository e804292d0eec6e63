"""Times the two parts of a run, training steps and evaluations, with given settings on the run's own devices."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxpt.core import tree
from jaxpt.core.data import Data
from jaxpt.core.state import RunState
from jaxpt.devices import memory
from jaxpt.engine.engine import Engine
from jaxpt.training.prepare import compiled

_TRAINING, _EVALUATION = 0.3, 0.1  # seconds of a turn, about
_STEPS = 5  # at most, in a period that is timed
_PROBED = 8  # validation examples at most, in a period that is timed
_PERIODS = 1024  # most in a turn
_EVALUATIONS = 100  # most in a turn


class Timed(NamedTuple):
    """A compiled program that can be timed.

    Attributes:
        turn: runs it for a while; returns the seconds of one training step of all replicas, or of the evaluations of
            one period.
        compile_seconds: the time to trace and compile.
    """

    turn: Callable[[], float]
    compile_seconds: float


class Bench:
    """A run of its own that candidates continue in turn: one state in memory, as in `fit`.

    Args:
        engine: the engine of the run; candidates differ from it in how they execute the replicas.
        data: the splits on the host.
        key: the key of a seed, or the keys of several.
    """

    def __init__(self, engine: Engine, data: Data, key: jax.Array):
        self.engine, self.key = engine, key
        self.form = engine.abstract(key)
        self.data = engine.placed.put(data)
        self.state = engine.init(key)
        self._most = memory.limit(engine.placed)

    def training(self, engine: Engine) -> Timed:
        """Returns the training step of a candidate, timed in short periods with few validation examples.

        Raises:
            MemoryError: it does not fit on the devices.
        """
        data = self.data._replace(test=None)
        short = _shortened(engine, data)
        started = time.perf_counter()
        program = _compiled(short.lower(self.form, data, periods=_PERIODS, donate=True))
        seconds = time.perf_counter() - started
        self._check(program, short, data)

        def dispatch(periods: int) -> RunState:
            self.state, _ = short.run(self.state, data, periods=periods, max_periods=_PERIODS, donate=True)
            return self.state

        return Timed(self._turn(dispatch, _TRAINING, _PERIODS, short.every), seconds)

    def evaluation(self, engine: Engine) -> Timed:
        """Returns the evaluations of a candidate's period: of the validation split or the probe, and of the test split.

        Raises:
            MemoryError: it does not fit on the devices.
        """
        splits = self.data._replace(train=None)

        def scored(engine: Engine, state: RunState, splits: Data) -> Any:
            valid = jax.tree.map(lambda leaf: leaf[: engine.probe], splits.valid)
            parts = [valid] if splits.test is None else [valid, splits.test]
            return [engine.evaluate(state, part) for part in parts]

        started = time.perf_counter()
        program = _compiled(jax.jit(scored).lower(engine, self.form, splits))
        seconds = time.perf_counter() - started
        self._check(program, engine, self.data)

        def evaluate(count: int) -> Any:
            return [program(engine, self.state, splits) for _ in range(count)]

        return Timed(self._turn(evaluate, _EVALUATION, _EVALUATIONS, 1), seconds)

    def _check(self, program: jax.stages.Compiled, engine: Engine, data: Data) -> None:
        execution, shards = engine.execution(data), engine.placed.num_shards
        memory.check(program, self.form.replicas, (data, engine.problem.frozen), execution, self._most, shards)

    def _turn(self, run: Callable[[int], Any], seconds: float, most: int, units: int) -> Callable[[], float]:
        """Returns a function that times so many runs as take about these seconds; warms up meanwhile."""

        def timed(count: int) -> float:
            started = time.perf_counter()
            jax.block_until_ready(run(count))
            return time.perf_counter() - started

        count = 1
        try:
            while (took := timed(count)) < seconds / 2 and count < most:
                count = min(max(int(count * min(seconds / took, 32.0)), count + 1), most)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            self.state = self.engine.init(self.key)  # the run has taken the state with it
            raise MemoryError(_first_line(error)) from error
        return lambda: timed(count) / (count * units)


def _shortened(engine: Engine, data: Data) -> Engine:
    """Returns an engine whose periods are almost training alone, and short: the evaluation is timed by itself."""
    short = dataclasses.replace(engine.over(None), every=min(engine.every, _STEPS), search=None)
    if data.valid is None:
        return short
    probe = min(_PROBED, tree.leading(data.valid), engine.probe or _PROBED)
    return dataclasses.replace(short, probe=probe)


def _compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Returns a compiled program; raises MemoryError if the compiler refuses it for want of memory."""
    try:
        return compiled(lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
