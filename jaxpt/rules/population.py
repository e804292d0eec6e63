"""Rules that copy weights: population based training (PBT), and copying the best replica."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxpt.core import tree
from jaxpt.core.ladder import check_values
from jaxpt.core.types import Info, Move, Observation
from jaxpt.rules.rule import Rule
from jaxpt.rules.spaces import Choice, Space, check_space


@tree.register(data=("quantile", "low", "high", "resample", "explore"))
@dataclasses.dataclass(frozen=True)
class PBT(Rule):
    """Population based training (Jaderberg et al. 2017, arXiv 1711.09846) with truncation selection.

    After each period, every replica whose energy is in the highest `quantile` takes the weights and optimiser state of
    a random replica of the lowest `quantile`, copied on the device. It also takes that replica's hyperparameters and
    explores: each is multiplied by `low` or by `high`, or drawn from the ladder's values.

    The ladders give the initial values and the search range: explored values stay between a ladder's ends, and batch
    sizes stay integers. Hyperparameters then belong to replicas, not to rungs. So `rung` never changes (replica k on
    rung k), and `trace.info` records no swaps but `parents`; see `jaxpt.lineage`.

    >>> searching = dataclasses.replace(engine, rule=jaxpt.PBT(quantile=0.25))  # first values and range: its ladder

    `explore` gives single hyperparameters a space of their own, which may be wider than the ladder: bounds on a linear
    or a log scale, or a set of numbers. Draws are then from the space, and a perturbation multiplies by `low` or
    `high`, or steps to a neighbour in the set. The ladder still gives the first values.

    >>> spaces = {"learning_rate": jaxpt.LogUniform(1e-4, 1.0)}
    >>> wider = dataclasses.replace(engine, rule=jaxpt.PBT(explore=spaces))

    Args:
        quantile: share of the replicas that are overwritten, and share that are copied; at least one replica.
        low: one factor of exploration.
        high: the other factor.
        resample: probability that a hyperparameter is drawn from the ladder's values, or from its space, instead.
        explore: {hyperparameter: `jaxpt.LogUniform`, `jaxpt.Uniform` or `jaxpt.Choice`}; their numbers are traced. By
            default, and for names that it leaves out, the ladder's values and ends.

    Raises:
        ValueError: quantile is not in (0, 0.5], a factor is not positive, resample is not a probability, or explore
            holds no spaces. The engine also raises it for a name in `explore` that is on no ladder, a space beyond the
            hyperparameter's domain, and a first value outside of its space.
    """

    quantile: Float[Array, ""] | float = 0.25
    low: Float[Array, ""] | float = 0.8
    high: Float[Array, ""] | float = 1.2
    resample: Float[Array, ""] | float = 0.25
    explore: Mapping[str, Space] | None = None
    needs_beta: ClassVar[bool] = False
    moves_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("quantile", "low", "high", "resample"):
            value = getattr(self, name)
            if np.ndim(value) or not isinstance(value, int | float | np.number | np.ndarray | Array):
                raise ValueError(f"{name} must be a number, but it is of {type(value)}")
        if not 0 < self.quantile <= 0.5:
            raise ValueError(f"quantile must lie in (0, 0.5], the share that is replaced, but it is {self.quantile!r}")
        if not (0 < self.low < np.inf and 0 < self.high < np.inf):
            raise ValueError(f"low and high must be positive factors, but they are {self.low!r} and {self.high!r}")
        if not 0 <= self.resample <= 1:
            raise ValueError(f"resample must be a probability, but it is {self.resample!r}")
        if self.explore is None:
            return
        if not isinstance(self.explore, Mapping) or not all(isinstance(v, Space) for v in self.explore.values()):
            raise ValueError(
                'explore must be {name: space}, e.g. {"learning_rate": jaxpt.LogUniform(1e-4, 1.0)}, with spaces of '
                f"LogUniform, Uniform or Choice, but it is {self.explore!r}"
            )
        object.__setattr__(self, "explore", dict(self.explore))

    def check(self, engine: Any) -> None:
        """Raises ValueError if a space does not fit the engine's ladders (see `jaxpt.Rule`)."""
        values = {name: row for ladder in engine.ladders.values() for name, row in ladder.values.items()}
        for name, space in (self.explore or {}).items():
            if name not in values:
                raise ValueError(
                    f"explore names {name!r}, but the ladders hold {', '.join(values)}; put its first values on a "
                    "ladder, or leave it out"
                )
            check_space(name, space, values[name], check_values)
            if name == "batch_size" and space.ends()[1] > engine.batch_size:
                raise ValueError(
                    f"explore['batch_size'] reaches {space.ends()[1]:g}, but the engine draws minibatches of "
                    f"batch_size={engine.batch_size}; give Engine(batch_size={space.ends()[1]:g})"
                )
            if isinstance(space, Choice) and engine.search is not None:
                raise ValueError(
                    f"the search moves the values of {name} between those of explore[{name!r}] = {space!r}; give "
                    "bounds instead of a Choice, or leave search out"
                )

    def propose(self, key: Key[Array, ""], seen: Observation) -> tuple[Move, "PBT", Info]:
        """Replaces the worst replicas by explored copies of the best (see `jaxpt.Rule`)."""
        key_parent, key_explore = jax.random.split(key)
        replicas, hyper = seen.energy.shape[0], seen.hyper
        ranked, place, healthy = _rank(seen.energy)
        count = jnp.maximum(1, jnp.floor(jnp.asarray(self.quantile) * replicas + 1e-6)).astype(jnp.int32)
        donor = ranked[jax.random.randint(key_parent, (replicas,), 0, count)]
        replaced = (place >= replicas - count) & healthy[donor] & seen.allowed
        parents = jnp.where(replaced, donor, jnp.arange(replicas))
        names = [(name, ladder.values[name]) for ladder in seen.ladders.values() for name in ladder.values]
        explored = {
            name: jnp.where(replaced, self._explored(k, hyper[name][parents], values, name), hyper[name])
            for k, (name, values) in zip(jax.random.split(key_explore, len(names)), names, strict=True)
        }
        return Move(seen.rung, {**hyper, **explored}, parents), self, Info.none(replicas, parents)

    def _explored(
        self, key: Key[Array, ""], value: Float[Array, " M"], values: Float[Array, " M"], name: str
    ) -> Float[Array, " M"]:
        """Returns the values, perturbed or drawn, within their space or the ladder's ends."""
        key_anew, key_draw, key_factor = jax.random.split(key, 3)
        shape = value.shape
        up = jax.random.bernoulli(key_factor, shape=shape)
        factor = jnp.where(up, self.high, self.low)
        anew = jax.random.bernoulli(key_anew, self.resample, shape)
        if self.explore is not None and name in self.explore:
            space = self.explore[name]
            explored = jnp.where(anew, space.draw(key_draw, shape), space.perturb(value, factor, up))
            return (jnp.round(explored) if name == "batch_size" else explored).astype(value.dtype)
        explored = jnp.where(anew, jax.random.choice(key_draw, values, shape), value * factor)
        explored = jnp.round(explored) if name == "batch_size" else explored
        return jnp.clip(explored, values.min(), values.max()).astype(value.dtype)


@tree.register(data=())
@dataclasses.dataclass(frozen=True)
class CopyBest(Rule):
    """After each period every replica takes the weights and optimiser state of the replica with the lowest energy.

    Hyperparameters do not move: each period tries a grid of values from one starting point and keeps the best result.
    The rule is greedy: unlike in tempering, the weights of the other replicas are lost.
    """

    needs_beta: ClassVar[bool] = False
    moves_values: ClassVar[bool] = True

    def propose(self, key: Key[Array, ""], seen: Observation) -> tuple[Move, "CopyBest", Info]:
        """Copies the best replica to all (see `jaxpt.Rule`)."""
        del key
        ranked, _, healthy = _rank(seen.energy)
        replicas = seen.energy.shape[0]
        own = jnp.arange(replicas)
        parents = jnp.where(seen.allowed & healthy[ranked[0]], ranked[0], own)
        return Move(seen.rung, seen.hyper, parents), self, Info.none(replicas, parents)


def _rank(energy: Float[Array, " M"]) -> tuple[Int[Array, " M"], Int[Array, " M"], Bool[Array, " M"]]:
    """Returns the replicas in order of energy, each one's place, and whether its energy is finite (else it is last)."""
    healthy = jnp.isfinite(energy)
    ranked = jnp.argsort(jnp.where(healthy, energy, jnp.inf))
    return ranked, jnp.argsort(ranked), healthy
