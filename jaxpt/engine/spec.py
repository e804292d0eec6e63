"""The fields of an engine, as a record that every module of this room may read."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jaxpt.core.cooldown import Cooldown, in_force
from jaxpt.core.ladder import Ladder
from jaxpt.core.search import Search
from jaxpt.core.types import Optimizer, Params, Problem, Schedule
from jaxpt.devices import fitting
from jaxpt.devices.execution import Lift, ReplicaAxis
from jaxpt.devices.placement import Placement
from jaxpt.devices.precision import Precision
from jaxpt.rules import Rule, Tempering


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """The fields of an engine; `jaxpt.Engine` documents and checks them."""

    problem: Problem
    optimizer: Optimizer
    ladder: Ladder | Sequence[Ladder]
    rule: Rule = dataclasses.field(default_factory=Tempering)
    every: int = dataclasses.field(kw_only=True)
    burn_in: int = dataclasses.field(default=0, kw_only=True)
    batch_size: int = dataclasses.field(default=128, kw_only=True)
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict, kw_only=True)
    schedule: Schedule | None = dataclasses.field(default=None, kw_only=True)
    search: Search | float | None = dataclasses.field(default=None, kw_only=True)
    cooldown: Cooldown | float | None = dataclasses.field(default=None, kw_only=True)
    own_batches: bool = dataclasses.field(default=False, kw_only=True)
    drop_remainder: bool = dataclasses.field(default=False, kw_only=True)
    probe: int | None = dataclasses.field(default=None, kw_only=True)
    evaluation_batch: int = dataclasses.field(default=128, kw_only=True)
    rescale_momentum: str | None = dataclasses.field(default=None, kw_only=True)
    replica_axis: ReplicaAxis = dataclasses.field(default="auto", kw_only=True)
    replicas_at_once: int = dataclasses.field(default=1, kw_only=True)
    placement: Placement | Literal["auto"] = dataclasses.field(default="auto", kw_only=True)
    precision: Precision = dataclasses.field(default="highest", kw_only=True)
    diverged: Literal["keep", "stop", "respawn"] = dataclasses.field(default="keep", kw_only=True)
    draws: Callable[[Params], PyTree] | None = dataclasses.field(default=None, kw_only=True)

    @property
    def ladders(self) -> dict[str, Ladder]:
        """{name: ladder}, as given; ladders are exchanged in the order of their sorted names."""
        given = (self.ladder,) if isinstance(self.ladder, Ladder) else self.ladder
        return {ladder.name: ladder for ladder in given}

    @property
    def num_replicas(self) -> int:
        """M, the number of replicas and of rungs."""
        return next(iter(self.ladders.values())).num_rungs

    @property
    def batch_axes(self) -> int:
        """The number of leading axes of given `Batches` before that of the examples: 2, or 3 with `own_batches`."""
        return 3 if self.own_batches else 2

    @property
    def ending(self) -> Cooldown | None:
        """The cooldown: `Engine` turns a number into one."""
        return self.cooldown if isinstance(self.cooldown, Cooldown) else None

    @property
    def beginning(self) -> Search | None:
        """The search: `Engine` turns a number into one."""
        return self.search if isinstance(self.search, Search) else None

    @property
    def in_force(self) -> Schedule | None:
        """The schedule of a step: the engine's, followed by search and cooldown; None if it has none of them."""
        return in_force(self.schedule, (self.beginning, self.ending))

    def lift(self, key: Key[Array, "..."]) -> Lift:
        """Returns how functions of one replica and one seed are executed, given the run's key or keys."""
        placed = self.placed
        return Lift(self.replica_axis, placed.platform, placed.num_devices, self.replicas_at_once, bool(key.ndim))

    @property
    def placed(self) -> Placement:
        """The placement of the replicas: the given one, or the resolved "auto"."""
        return fitting.automatic(self.num_replicas) if isinstance(self.placement, str) else self.placement


def abstract_hyper(spec: Spec) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of one replica's hyperparameters, {name: f32[]}."""
    names = [*spec.fixed, *(name for ladder in spec.ladders.values() for name in ladder.values)]
    return {name: jax.ShapeDtypeStruct((), jnp.float32) for name in names}
