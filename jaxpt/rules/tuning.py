"""Automatic tuning by a tempering rule: the factor C, and the positions of the rungs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxpt.core.ladder import Ladder, respaced

_LOW, _HIGH = -60.0, 60.0  # bounds of the search for log C


def balanced_acceptance(
    log_ratio: Float[Array, "..."], variance: Float[Array, "..."], C: Float[Array, "..."] | float
) -> Float[Array, "..."]:
    """Returns the mean acceptance probability, in equilibrium, of a pair with these two energies in either order.

    Let x = |C dbeta dE|. Once swaps are in balance, the colder rung has the lower energy with probability
    1 / (1 + exp(-x)); the pair then swaps with probability exp(-x). In the opposite order it always swaps. The mean
    acceptance is therefore 2 / (1 + exp(x)). It depends on |dE| only, so it falls from 1 to 0 as C grows, and it holds
    before the first swap, when energies may be in either order. It is exact if rungs sample exp(-C beta E), and if
    energies belong to replicas and change slowly.

    Args:
        log_ratio: (beta_i - beta_j)(E_i - E_j), without C. Infinite or NaN for a diverged replica, which gives 0.
        variance: variance of `log_ratio` due to noisy energies, whose correction lowers both probabilities; 0 without.
        C: the factor.
    """
    x = jnp.abs(C * log_ratio)
    penalty = C**2 * variance / 2
    stays = jnp.exp(-x)
    accepted = (stays * jnp.exp(-penalty) + stays * jnp.minimum(1.0, jnp.exp(x - penalty))) / (1 + stays)
    return jnp.where(jnp.isfinite(x), accepted, 0.0)


def solve_C(
    log_ratio: Float[Array, "*shape"],
    variance: Float[Array, "*shape"],
    target: Float[Array, ""] | float,
    otherwise: Float[Array, ""],
    where: Bool[Array, "*shape"],
) -> Float[Array, ""]:
    """Returns the C at which the mean of `balanced_acceptance` is the target, by bisection of its logarithm.

    Args:
        log_ratio: as in `balanced_acceptance`; values that are not finite do not count.
        variance: likewise.
        target: the target mean acceptance, in (0, 1).
        otherwise: returned if no two energies differ, so that no C is better than another.
        where: which of the log ratios count.
    """
    where = where & jnp.isfinite(log_ratio) & jnp.isfinite(variance)
    log_ratio, variance = jnp.where(where, log_ratio, 0.0), jnp.where(where, variance, 0.0)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        accepted = jnp.mean(balanced_acceptance(log_ratio, variance, jnp.exp(middle)), where=where)
        return jnp.where(accepted > target, middle, low), jnp.where(accepted > target, high, middle)

    low, high = jax.lax.fori_loop(0, 40, halve, (jnp.float32(_LOW), jnp.float32(_HIGH)))
    return jnp.where(jnp.any(log_ratio != 0), jnp.exp((low + high) / 2), otherwise)


def equal_rejection(beta: Float[Array, " M"], rejection: Float[Array, " P"]) -> Float[Array, " M"]:
    """Returns inverse temperatures with equal rejections between neighbours, estimated from the current ones.

    Rung k moves to where the cumulative barrier is k / (M - 1) of the whole (algorithm 4 of Syed et al., arXiv
    1905.02939), with the barrier linear in beta between the current rungs. Repeated, it converges to equal rejections.

    Args:
        beta: current inverse temperatures, descending.
        rejection: mean rejection probability of each pair; NaN (nothing known of the pair) counts as 0.5.
    """
    known = jnp.where(jnp.isnan(rejection), 0.5, rejection)
    barrier = jnp.concatenate([jnp.zeros(1), jnp.cumsum(known + 1e-6)])
    return jnp.interp(jnp.linspace(0, 1, beta.shape[0]) * barrier[-1], barrier, beta)


class Tuning(NamedTuple):
    """A rule's observations of a run, for its tuning: L ladders, W periods, P pairs."""

    log_ratio: Float[Array, "L W P"]
    """(beta_i - beta_{i+1})(E_i - E_{i+1}) of each pair in the last periods of burn-in, a ring buffer."""
    variance: Float[Array, "L W P"]
    """Variance of `log_ratio` due to noise; 0 if the rule does not correct for it."""
    rows: Int[Array, " L"]
    """Periods written into the ring buffer since the ladder last changed."""
    exchanges: Int[Array, " L"]
    """Exchanges after burn-in."""
    C: Float[Array, " L"] | None = None
    """The factor of each ladder as tuned so far; None if the rule's C is a fixed number."""


def begin(num_ladders: int, num_rungs: int, window: int, *, auto: bool = False) -> Tuning:
    """Returns the initial tuning state (no observations), as NumPy arrays: devices may not be chosen yet."""
    ring: Any = np.zeros((num_ladders, window, num_rungs - 1), np.float32)
    count: Any = np.zeros(num_ladders, np.int32)
    C: Any = np.ones(num_ladders, np.float32) if auto else None
    return Tuning(ring, ring, count, count, C)


def observe(
    tuning: Tuning, ladder: Int[Array, ""], log_ratio: Float[Array, " P"], variance: Float[Array, " P"]
) -> Tuning:
    """Returns the state with one more period added; unchanged once exchanges have begun."""
    row = tuning.rows[ladder] % tuning.log_ratio.shape[1]
    seen = tuning._replace(
        log_ratio=tuning.log_ratio.at[ladder, row].set(log_ratio),
        variance=tuning.variance.at[ladder, row].set(variance),
        rows=tuning.rows.at[ladder].add(1),
    )
    begun = tuning.exchanges[ladder] > 0
    return jax.tree.map(lambda new, old: jnp.where(begun, old, new), seen, tuning)


def tune_C(tuning: Tuning, ladder: Int[Array, ""], target: Float[Array, ""] | float) -> Tuning:
    """Returns the state with the ladder's C solved from the burn-in data; unchanged once exchanges have begun."""
    C: Any = tuning.C
    known = jnp.arange(tuning.log_ratio.shape[1])[:, None] < tuning.rows[ladder]
    ring = tuning.log_ratio[ladder], tuning.variance[ladder]
    solved = solve_C(*ring, target, C[ladder], jnp.broadcast_to(known, ring[0].shape))
    return tuning._replace(C=C.at[ladder].set(jnp.where(tuning.exchanges[ladder] > 0, C[ladder], solved)))


def settle_C(
    C: Float[Array, ""],
    exchanges: Int[Array, ""],
    attempted: Bool[Array, " P"],
    probability: Float[Array, " P"],
    target: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Returns C after one step of stochastic approximation towards the target (Robbins and Monro 1951).

    Args:
        C: the factor of this exchange.
        exchanges: number of earlier exchanges; the step size falls as 1 / number.
        attempted: the pairs of healthy replicas that were offered a swap; if there are none, C does not change.
        probability: acceptance probability of each pair.
        target: target mean acceptance.
    """
    error = jnp.mean(probability - target, where=attempted)
    # Near one half, acceptance falls by about 0.4 as log C grows by 1. The first steps are small: C is about right.
    return C * jnp.exp(jnp.where(jnp.any(attempted), 5 / (10 + exchanges) * error, 0.0))


def tune_ladder(
    tuning: Tuning, index: Int[Array, ""], ladders: Mapping[str, Ladder], C: Float[Array, ""], allowed: Bool[Array, ""]
) -> tuple[Tuning, dict[str, Ladder]]:
    """Returns the ladders; during burn-in the current one is respaced each time its ring buffer is full.

    A ladder with a pair that had no finite energies is not changed: the right distance of its rungs is unknown.
    """
    window = tuning.log_ratio.shape[1]
    seen = jnp.isfinite(tuning.log_ratio[index])
    due = ~allowed & (tuning.exchanges[index] == 0) & (tuning.rows[index] >= window) & seen.any(0).all()
    accepted = balanced_acceptance(tuning.log_ratio[index], tuning.variance[index], C)
    rejection = 1 - jnp.mean(accepted, 0, where=seen)
    tuned = {
        name: jax.tree.map(
            lambda new, old, mine=index == i: jnp.where(due & mine, new, old),
            respaced(ladder, equal_rejection(ladder.beta, rejection)),
            ladder,
        )
        for i, (name, ladder) in enumerate(ladders.items())
    }
    return tuning._replace(rows=jnp.where(due, tuning.rows.at[index].set(0), tuning.rows)), tuned
