"""The Metropolis ratio of a swap."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def log_acceptance(
    beta_i: Float[Array, "..."],
    beta_j: Float[Array, "..."],
    energy_i: Float[Array, "..."],
    energy_j: Float[Array, "..."],
    C: Float[Array, "..."] | float = 1.0,
    correction: Float[Array, "..."] | float = 0.0,
) -> Float[Array, "..."]:
    """Logarithm of the probability that rungs i and j swap: min(0, C (beta_i - beta_j)(E_i - E_j) - correction).

    This is algorithm 1 of arXiv 1909.04013 with the sign that detailed balance for exp(-C beta E) demands (the paper
    prints the opposite one for its Delta; its authors' code has this one): the colder rung ends up with the lower
    energy. With C = 1 it is replica exchange of Swendsen and Wang (1986).

    An energy that is not finite counts as +infinity: the replica that holds it is handed to the hotter rung for
    certain and never to the colder one, and two such replicas never swap.

    Args:
        beta_i: inverse temperature of rung i; beta_j that of rung j; any shapes that broadcast.
        beta_j: see `beta_i`.
        energy_i: energy of the replica that stands on rung i.
        energy_j: energy of the replica that stands on rung j.
        C: the factor between energies and inverse temperatures.
        correction: for energies with noise, `noise_correction`.
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
    """Half the variance of the log ratio, (C (beta_i - beta_j))^2 Var(E_i - E_j) / 2.

    Taken off the log ratio of two noisy energies, it makes swaps leave exp(-C beta E) invariant for the energies
    WITHOUT noise: exactly for Gaussian noise of known variance (the penalty method, Ceperley and Dewing 1999; reSGLD,
    Deng et al. 2020). Noise alone would accept too often.

    Args:
        beta_i: inverse temperature of rung i.
        beta_j: that of rung j.
        variance: of the noise in the DIFFERENCE of the two energies; what is not finite (energies near the end of
            float32) counts as none, so that a replica that diverges is not held where it is.
        C: the factor between energies and inverse temperatures.
    """
    correction = (C * (beta_i - beta_j)) ** 2 * variance / 2
    return jnp.where(jnp.isfinite(correction), correction, 0.0)
