"""The record of a finished run, and the selection of its replicas."""

import dataclasses
import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core import tree
from jaxpt.core.decimals import shortest
from jaxpt.core.state import RunState, Trace
from jaxpt.core.types import ModelState, Params, Problem, with_frozen
from jaxpt.devices.execution import Execution
from jaxpt.diagnostics.lineage import Lineage, lineage
from jaxpt.engine.engine import Engine
from jaxpt.models.scores import is_higher_better
from jaxpt.results.ensemble import ladder_of
from jaxpt.saving.keeping import Kept, best_kept


@dataclasses.dataclass(frozen=True)
class Best:
    """One replica at the end of a run: for example the best on validation, or one of the coldest.

    Attributes:
        replica: its slot, 0 .. M - 1.
        seed: the seed whose ladder it belongs to (an index into `seeds`); None for a run with one seed.
        valid: its energy and metrics on the whole validation split, at the end.
        test: the same on the test split; empty without one.
        model: the user's model with its weights, in evaluation mode.
        rung: {ladder: its rung after the last exchange}.
        hyper: {name: its hyperparameter there}.
        step: the optimiser step to which all of this refers; None: the run's last step.
    """

    replica: int
    seed: int | None
    valid: dict[str, float]
    test: dict[str, float]
    model: Any = dataclasses.field(repr=False)
    rung: dict[str, int] = dataclasses.field(default_factory=dict)
    hyper: dict[str, float] = dataclasses.field(default_factory=dict)
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """The fields of a result, documented in `jaxpt.Result`, and access to its replicas."""

    engine: Engine = dataclasses.field(repr=False)
    state: RunState = dataclasses.field(repr=False)
    trace: Trace = dataclasses.field(repr=False)
    valid: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    seconds: float
    compile_seconds: float
    replica_images: int
    execution: Execution
    stopped: Literal["callback", "patience"] | None = None
    kept: tuple[Kept | None, ...] | None = dataclasses.field(default=None, repr=False)

    @property
    def num_seeds(self) -> int | None:
        """Number of seeds, each with a whole ladder; None for a run with one seed."""
        return self.state.key.shape[0] if self.state.key.ndim else None

    def lineage(self, replica: int | None = None, seed: int | None = None) -> Lineage:
        """Returns the path of hyperparameters that led to a replica's weights, see `jaxpt.lineage`.

        Args:
            replica: which one; by default `best()`.
            seed: as in `best`.

        Raises:
            ValueError: no such replica or seed.
        """
        chosen = pick(self, "energy", seed) if replica is None else replica
        return lineage(self.trace, chosen, seed, schedule=self.engine.in_force)


def best_ever(record: Record, on: str, seed: int | None) -> Best:
    """Returns the best replica of all periods, see `best`."""
    if on not in ("energy", "validation"):
        raise ValueError(f"ever=True goes by the energy, but on={on!r}; leave it out")
    kept = best_kept(record.kept, record.trace, lead_of(record, seed))
    build, weights = alone(record.engine).model, jax.tree.map(jnp.asarray, kept.weights)
    return Best(
        int(kept.replica),
        seed,
        {name: shortest(v) for name, v in kept.valid.items()},
        {name: shortest(v) for name, v in kept.test.items()},
        build(*weights) if build else weights,
        {name: int(v) for name, v in kept.rung.items()},
        {name: shortest(v) for name, v in kept.hyper.items()},
        int(kept.step),
    )


def pick(record: Record, on: str, seed: int | None) -> int:
    """Returns the slot of the best replica, see `best`."""
    on = "energy" if on == "validation" and on not in record.valid else on
    if on not in record.valid:
        raise ValueError(f"on={on!r} is not a score of this run; there are {', '.join(record.valid)}")
    lead = lead_of(record, seed)
    # A diverged replica comes last, whatever its other scores are.
    healthy = np.isfinite(record.valid["energy"])
    sign = -1 if is_higher_better(record.engine.problem, on) else 1
    ranked = [np.where(healthy, scores, np.inf)[lead] for scores in (record.valid["energy"], sign * record.valid[on])]
    if not np.isfinite(ranked[0]).any():
        warnings.warn(f"all {len(ranked[0])} replicas have diverged; none is the best", stacklevel=3)
    return int(np.lexsort(ranked)[0])


def lead_of(record: Record, seed: int | None) -> tuple[int, ...]:
    """Returns the leading index of a seed; raises ValueError if there is no such seed."""
    ladders = record.num_seeds
    if ladders and (seed is None or not 0 <= seed < ladders):
        raise ValueError(f"the run has {ladders} seeds; give seed=0 .. {ladders - 1}, not {seed}")
    if seed is not None and not ladders:
        raise ValueError(f"the run has one seed only, so seed={seed} names none; leave it out")
    return () if seed is None else (seed,)


def on_rungs(record: Record, k: int, seed: int | None, ladder: str | None) -> list[int]:
    """Returns the replicas on the k coldest rungs."""
    lead, name = lead_of(record, seed), ladder_of(record.engine, ladder, k)
    rung = record.engine.placed.to_host(record.state.replicas.rung[name])
    return np.argsort(rung[lead])[:k].tolist()


def last_scores(trace: Trace) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns {score: [*S, M]} at the end of a run, on the validation and on the test split, from its last period."""
    last: Any = jax.tree.map(lambda leaf: np.asarray(leaf)[-1], (trace.valid, trace.test))
    if trace.info.parents is None:
        return last
    parents = np.asarray(trace.info.parents)[-1]  # a copy of weights takes their scores along
    return jax.tree.map(lambda score: np.take_along_axis(score, parents, -1), last)


def alone(engine: Engine) -> Problem:
    """Returns the problem of an engine with its frozen weights on one device, where `gathered` puts replicas."""
    return with_frozen(engine.problem, engine.placed.gathered)


def complete(engine: Engine, params: Params, model_state: ModelState) -> tuple[Params, ModelState]:
    """Returns the weights of one replica, on one device, as they are saved: those of the whole model."""
    whole = alone(engine).complete
    return (params, model_state) if whole is None else whole(params, model_state)


def all_weights(record: Record) -> tuple[Any, Any]:
    """Returns (params, model_state) of all replicas, on their devices."""
    return record.state.replicas.params, record.state.replicas.model_state


def replicas_of(record: Record, chosen: list[int], seed: int | None, models: bool = True) -> list[Best]:
    """Returns replicas of one seed, with their models unless `models` is false."""
    lead = lead_of(record, seed)
    rung, hyper = record.engine.placed.to_host((record.state.replicas.rung, record.state.replicas.hyper))
    build = alone(record.engine).model if models else None
    found = []
    for replica in chosen:
        index = (*lead, replica)
        weights = record.engine.placed.gathered(tree.take(all_weights(record), index)) if models else None
        found.append(
            Best(
                replica,
                seed,
                {name: shortest(v[index]) for name, v in record.valid.items()},
                {name: shortest(v[index]) for name, v in record.test.items()},
                build(*weights) if build and weights else weights,
                {name: int(v[index]) for name, v in rung.items()},
                {name: shortest(v[index]) for name, v in hyper.items()},
            )
        )
    return found
