"""What a tempering rule tunes by itself during burn-in: the factor C, and where the rungs stand."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxpt.core.ladder import Ladder, respaced

_LOW, _HIGH = -60.0, 60.0  # log C is sought in between


def balanced_acceptance(
    log_ratio: Float[Array, "..."], variance: Float[Array, "..."], C: Float[Array, "..."] | float
) -> Float[Array, "..."]:
    """Mean acceptance probability of a pair in balance whose energies are these two, whoever stands where.

    Two replicas with x = |C dbeta dE| stand on two rungs the right way round (the colder rung holding the lower energy)
    with probability 1 / (1 + exp(-x)) once swaps are in balance. They swap then with probability exp(-x), and surely
    when they stand the wrong way round, which makes 2 / (1 + exp(x)) in the mean. This looks at |dE| only, so it falls
    from 1 to 0 as C grows, and holds before the first swap, when energies may be sorted either way. It is exact when
    rungs sample exp(-C beta E), and when energies belong to replicas and change slowly.

    Args:
        log_ratio: (beta_i - beta_j)(E_i - E_j), without C. Infinite or NaN for a broken replica: 0 comes out.
        variance: of `log_ratio` due to noisy energies, whose correction lowers both probabilities; 0 without.
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
        log_ratio: as in `balanced_acceptance`; what is not finite does not count.
        variance: likewise.
        target: the mean acceptance wanted, in (0, 1).
        otherwise: what comes back if no two energies differ, so that no C is better than another.
        where: which of them count.
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
    """Returns inverse temperatures between which rejections are equal, as far as the present ones tell.

    Rung k goes where the barrier up to it is k / (M - 1) of the whole (algorithm 4 of Syed et al., arXiv 1905.02939),
    linear in beta between the present rungs; repeated, it settles where all rejections are equal.

    Args:
        beta: at present, falling.
        rejection: mean rejection probability of each pair; NaN, for a pair that nothing is known of, counts as 0.5.
    """
    known = jnp.where(jnp.isnan(rejection), 0.5, rejection)
    barrier = jnp.concatenate([jnp.zeros(1), jnp.cumsum(known + 1e-6)])
    return jnp.interp(jnp.linspace(0, 1, beta.shape[0]) * barrier[-1], barrier, beta)


class Tuning(NamedTuple):
    """What a rule has seen of a run, in order to tune itself: L ladders, W periods, P pairs."""

    log_ratio: Float[Array, "L W P"]
    """(beta_i - beta_{i+1})(E_i - E_{i+1}) of the pairs in the last periods of burn-in, a ring."""
    variance: Float[Array, "L W P"]
    """Of `log_ratio`, due to noise; 0 if the rule does not correct for it."""
    rows: Int[Array, " L"]
    """Periods written into the ring since the ladder last changed."""
    exchanges: Int[Array, " L"]
    """Exchanges after burn-in."""


def begin(num_ladders: int, num_rungs: int, window: int) -> Tuning:
    """Returns the state of somebody who has seen nothing, on the host: a rule may be made before devices are chosen."""
    ring: Any = np.zeros((num_ladders, window, num_rungs - 1), np.float32)
    count: Any = np.zeros(num_ladders, np.int32)
    return Tuning(ring, ring, count, count)


def observe(
    tuning: Tuning, ladder: Int[Array, ""], log_ratio: Float[Array, " P"], variance: Float[Array, " P"]
) -> Tuning:
    """Returns the state after one more period, unless exchanges have begun: then it has seen enough."""
    row = tuning.rows[ladder] % tuning.log_ratio.shape[1]
    seen = tuning._replace(
        log_ratio=tuning.log_ratio.at[ladder, row].set(log_ratio),
        variance=tuning.variance.at[ladder, row].set(variance),
        rows=tuning.rows.at[ladder].add(1),
    )
    begun = tuning.exchanges[ladder] > 0
    return jax.tree.map(lambda new, old: jnp.where(begun, old, new), seen, tuning)


def tune_C(
    tuning: Tuning, ladder: Int[Array, ""], C: Float[Array, " L"], target: Float[Array, ""] | float
) -> Float[Array, " L"]:
    """Returns C with that ladder's solved from what burn-in has shown; unchanged once exchanges have begun."""
    known = jnp.arange(tuning.log_ratio.shape[1])[:, None] < tuning.rows[ladder]
    ring = tuning.log_ratio[ladder], tuning.variance[ladder]
    solved = solve_C(*ring, target, C[ladder], jnp.broadcast_to(known, ring[0].shape))
    return C.at[ladder].set(jnp.where(tuning.exchanges[ladder] > 0, C[ladder], solved))


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
        exchanges: how many there were before; the step falls as 1 / number.
        attempted: which pairs of healthy replicas were offered a swap; without any, C stays.
        probability: with which probability.
        target: their mean that is wanted.
    """
    error = jnp.mean(probability - target, where=attempted)
    # Near one half, acceptance falls by about 0.4 when log C grows by 1; small first steps, since C is about right.
    return C * jnp.exp(jnp.where(jnp.any(attempted), 5 / (10 + exchanges) * error, 0.0))


def tune_ladder(
    tuning: Tuning, index: Int[Array, ""], ladders: Mapping[str, Ladder], C: Float[Array, ""], allowed: Bool[Array, ""]
) -> tuple[Tuning, dict[str, Ladder]]:
    """Returns the ladders with the one whose turn it is respaced, each time the ring has filled up during burn-in.

    A ladder of which a pair had no finite energies at all stays: nobody knows how near its rungs should be.
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
