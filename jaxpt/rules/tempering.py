"""Parallel tempering: adjacent rungs swap by the Metropolis rule."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxpt import tree
from jaxpt.ladder import Ladder
from jaxpt.metropolis import log_acceptance
from jaxpt.pairing import Pairing, random_adjacent
from jaxpt.types import Info, Move


@partial(jax.jit, static_argnames="pairing")
def exchange(
    key: Key[Array, ""],
    beta: Float[Array, " M"],
    energy: Float[Array, " M"],
    rung: Int[Array, " M"],
    *,
    C: Float[Array, ""] | float = 1.0,
    pairing: Pairing = random_adjacent,
    turn: Int[Array, ""] | int = 0,
    allowed: Bool[Array, ""] | bool = True,
) -> tuple[Int[Array, " M"], Info]:
    """Offers swaps to adjacent pairs and returns who stands where afterwards.

    Each offered pair (i, i + 1) swaps with probability min(1, exp(C (beta_i - beta_{i+1})(E_i - E_{i+1}))), E_i the
    energy of the replica on rung i (algorithm 1 of arXiv 1909.04013; `log_acceptance` settles its sign). The
    hyperparameters follow by `values[rung]`, so they are permuted and never changed.

    Args:
        key: for this exchange only.
        beta: inverse temperature of each RUNG, coldest first.
        energy: energy of each REPLICA.
        rung: the rung of each replica, a permutation of 0 .. M-1.
        C: the factor between energies and inverse temperatures.
        pairing: which pairs are offered a swap (static).
        turn: the how many-th exchange of this ladder, for pairings that alternate.
        allowed: false during burn-in: no pair is offered a swap.

    Returns:
        The new rung of each replica, and what happened.
    """
    key_pair, key_swap = jax.random.split(key)
    on_rung = energy[jnp.argsort(rung)]
    log_alpha = log_acceptance(beta[:-1], beta[1:], on_rung[:-1], on_rung[1:], C)
    attempted = pairing(key_pair, jnp.asarray(turn), beta.shape[0]) & allowed
    uniform = jax.random.uniform(key_swap, log_alpha.shape, log_alpha.dtype)
    accepted = attempted & (jnp.log(uniform) < log_alpha)
    closed = jnp.zeros(1, bool)
    up, down = jnp.concatenate([accepted, closed]), jnp.concatenate([closed, accepted])
    moved = rung + up[rung].astype(rung.dtype) - down[rung].astype(rung.dtype)
    return moved, Info(jnp.zeros((), jnp.int32), attempted, accepted, jnp.exp(log_alpha))


@tree.register(data=("C",), meta=("pairing",))
@dataclasses.dataclass(frozen=True)
class Tempering:
    """Replica exchange over one ladder, or over several in turn (period t: ladder t modulo their number).

    Args:
        C: the factor between energies and inverse temperatures; its value is traced, a new one compiles nothing.
            1 samples exp(-beta E) exactly when replicas sample exp(-beta E) between exchanges (Langevin noise); for
            training losses it is a free parameter (arXiv 1909.04013 takes 20 to 300,000).
        pairing: which adjacent pairs are offered a swap.

    Raises:
        ValueError: C is not a positive finite number.
    """

    C: Float[Array, ""] | float = 1.0
    pairing: Pairing = random_adjacent
    exchanges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (np.ndim(self.C) == 0 and 0 < float(self.C) <= float(np.finfo(np.float32).max)):
            raise ValueError(f"C must be a positive finite number, but it is {self.C!r}")

    def propose(
        self,
        key: Key[Array, ""],
        turn: Int[Array, ""],
        energy: Float[Array, " M"],
        rung: dict[str, Int[Array, " M"]],
        hyper: dict[str, Float[Array, " M"]],
        ladders: Mapping[str, Ladder],
        allowed: Bool[Array, ""],
    ) -> tuple[Move, "Tempering", Info]:
        """Exchanges the ladder whose turn it is (see `jaxpt.types.Rule`)."""
        names, ladder = list(ladders), turn % len(ladders)
        beta = jnp.stack([ladders[name].beta for name in names])[ladder]
        before = jnp.stack([rung[name] for name in names])
        after, info = exchange(
            key,
            beta,
            energy,
            before[ladder],
            C=self.C,
            pairing=self.pairing,
            turn=turn // len(ladders),
            allowed=allowed,
        )
        rungs = before.at[ladder].set(after)
        rung = {name: rungs[i] for i, name in enumerate(names)}
        permuted = {key: v[rung[name]] for name in names for key, v in ladders[name].values.items()}
        return Move(rung, {**hyper, **permuted}), self, info._replace(ladder=ladder)
