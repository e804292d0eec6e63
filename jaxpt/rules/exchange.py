"""The exchange: the Metropolis ratio of a swap, and swaps of adjacent pairs."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxpt.core.types import Info
from jaxpt.rules.pairing import Pairing, named, offered, random_adjacent

_COMPARED_AT_MOST = 64  # rungs; beyond, a sort instead of M^2 comparisons


def log_acceptance(
    beta_i: Float[Array, "..."],
    beta_j: Float[Array, "..."],
    energy_i: Float[Array, "..."],
    energy_j: Float[Array, "..."],
    C: Float[Array, "..."] | float = 1.0,
    correction: Float[Array, "..."] | float = 0.0,
) -> Float[Array, "..."]:
    """Returns log of the probability that rungs i and j swap: min(0, C (beta_i - beta_j)(E_i - E_j) - correction).

    This is algorithm 1 of arXiv 1909.04013, with the sign that detailed balance for exp(-C beta E) requires: the colder
    rung ends up with the lower energy. (The paper prints the opposite sign for its Delta; its authors' code has this
    one.) With C = 1 it is the replica exchange of Swendsen and Wang (1986).

    An energy that is not finite counts as +infinity: its replica always moves to the hotter rung and never to the
    colder one, and two such replicas never swap.

    Args:
        beta_i: inverse temperature of rung i. Shapes of all arguments must broadcast.
        beta_j: inverse temperature of rung j.
        energy_i: energy of the replica on rung i.
        energy_j: energy of the replica on rung j.
        C: the factor between energies and inverse temperatures.
        correction: for noisy energies, the result of `noise_correction`.
    """
    energy_i, energy_j = (jnp.where(jnp.isfinite(e), e, jnp.inf) for e in (energy_i, energy_j))
    log_ratio = C * (beta_i - beta_j) * (energy_i - energy_j)
    log_ratio = jnp.where(jnp.isfinite(log_ratio), log_ratio - correction, log_ratio)
    return jnp.where(jnp.isnan(log_ratio), -jnp.inf, jnp.minimum(log_ratio, 0.0))


def noise_correction(
    beta_i: Float[Array, "..."],
    beta_j: Float[Array, "..."],
    variance: Float[Array, "..."],
    C: Float[Array, "..."] | float = 1.0,
) -> Float[Array, "..."]:
    """Returns half the variance of the log ratio, (C (beta_i - beta_j))^2 Var(E_i - E_j) / 2.

    Subtracted from the log ratio of two noisy energies, it makes swaps leave exp(-C beta E) invariant for the energies
    WITHOUT noise. This is exact for Gaussian noise of known variance (the penalty method, Ceperley and Dewing 1999;
    reSGLD, Deng et al. 2020). Without the correction, noise makes swaps too frequent.

    Args:
        beta_i: inverse temperature of rung i.
        beta_j: inverse temperature of rung j.
        variance: variance of the noise in the DIFFERENCE of the two energies. A value that is not finite (energies near
            the limit of float32) counts as 0, so that a diverging replica is not kept on its rung.
        C: the factor between energies and inverse temperatures.
    """
    correction = (C * (beta_i - beta_j)) ** 2 * variance / 2
    return jnp.where(jnp.isfinite(correction), correction, 0.0)


def energy_spread(energy: Float[Array, " M"]) -> Float[Array, ""]:
    """Returns the median absolute deviation of the energies that are finite, in the energies' own units.

    If half of them or more are equal, that is zero, and the mean absolute deviation from the median is returned; if all
    are equal, or none is finite, 1. It is the same for every order of the replicas. So for given energies, swaps whose
    log ratio is divided by it leave a law of the orders invariant, as they do with a fixed factor.
    """
    known = jnp.where(jnp.isfinite(energy), energy, jnp.nan)
    away = jnp.abs(known - jnp.nanmedian(known))
    median, mean = jnp.nanmedian(away), jnp.nanmean(away)
    return jnp.where(median > 0, median, jnp.where(mean > 0, mean, 1.0))


def replicas_on(rung: Int[Array, " M"]) -> Int[Array, " M"]:
    """Returns the replica on each rung: the inverse of `rung`, a permutation of 0 .. M-1."""
    count = rung.shape[0]
    if count > _COMPARED_AT_MOST:
        return jnp.argsort(rung)
    numbers = jnp.arange(count, dtype=rung.dtype)
    return jnp.sum(jnp.where(rung == numbers[:, None], numbers, 0), -1, dtype=rung.dtype)


@partial(jax.jit, static_argnames="pairing")
def exchange(
    key: Key[Array, ""],
    beta: Float[Array, " M"],
    energy: Float[Array, " M"],
    rung: Int[Array, " M"],
    *,
    C: Float[Array, ""] | float = 1.0,
    pairing: Pairing | str = random_adjacent,
    turn: Int[Array, ""] | int = 0,
    allowed: Bool[Array, ""] | bool = True,
    variance: Float[Array, "M M"] | None = None,
) -> tuple[Int[Array, " M"], Info]:
    """Offers swaps to adjacent pairs of rungs and returns each replica's new rung.

    Each offered pair (i, i + 1) swaps with probability min(1, exp(C (beta_i - beta_{i+1})(E_i - E_{i+1}))), where E_i
    is the energy of the replica on rung i (algorithm 1 of arXiv 1909.04013; for its sign see `log_acceptance`). The
    hyperparameters follow as `values[rung]`, so they are only permuted.

    >>> beta, energy = jnp.array([3.0, 2.0, 1.0]), jnp.array([0.5, 0.1, 0.7])
    >>> rung, info = jaxpt.exchange(jax.random.key(0), beta, energy, jnp.arange(3), pairing="deo")
    >>> rung.tolist(), info.accepted.tolist()  # the pair (0, 1): the colder rung had the higher energy
    ([1, 0, 2], [True, False])

    Args:
        key: key of this exchange.
        beta: inverse temperature of each RUNG, coldest first.
        energy: energy of each REPLICA.
        rung: the rung of each replica, a permutation of 0 .. M-1.
        C: the factor between energies and inverse temperatures.
        pairing: the pairs that are offered a swap, by name or as a function (static); of two offered pairs that share
            a rung only the lower is used.
        turn: index of this exchange on its ladder, from 0, for pairings that alternate.
        allowed: false during burn-in: no pair is offered a swap.
        variance: variance of the noise in each difference of two replicas' energies; if given, the acceptance is
            corrected for it (see `noise_correction`).

    Returns:
        The new rung of each replica, and the record of the exchange.
    """
    key_pair, key_swap = jax.random.split(key)
    replica = replicas_on(rung)
    on_rung = energy[replica]
    correction = None
    if variance is not None:
        correction = noise_correction(beta[:-1], beta[1:], variance[replica[:-1], replica[1:]], C)
    log_alpha = log_acceptance(
        beta[:-1], beta[1:], on_rung[:-1], on_rung[1:], C, 0.0 if correction is None else correction
    )
    attempted = offered(named(pairing), key_pair, jnp.asarray(turn), beta.shape[0]) & allowed
    uniform = jax.random.uniform(key_swap, log_alpha.shape, log_alpha.dtype)
    accepted = attempted & (jnp.log(uniform) < log_alpha)
    closed = jnp.zeros(1, bool)
    up, down = jnp.concatenate([accepted, closed]), jnp.concatenate([closed, accepted])
    moved = rung + up[rung].astype(rung.dtype) - down[rung].astype(rung.dtype)
    ladder, C = jnp.zeros((), jnp.int32), jnp.asarray(C, beta.dtype)
    return moved, Info(ladder, attempted, accepted, jnp.exp(log_alpha), beta, C, correction)
