"""Log evidence: the ratio of the normalisations of a ladder's rungs, from the energies of a sampler's run."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxpt.core.state import Trace
from jaxpt.diagnostics.exchanges import exchanges
from jaxpt.diagnostics.index import samples

_BATCHES = 20  # stretches of one ladder's run whose spread gives the error


class LogEvidence(NamedTuple):
    """The log of Z(beta) / Z(the hottest rung's beta) for each rung, Z(beta) = integral of prior(W) exp(-beta E).

    The last rung's are 0. Errors are standard errors: of the mean over seeds, or with one seed of a mean over 20
    stretches of the run, which must be longer than the draws are correlated.

    Attributes:
        bridge: by Bennett's acceptance ratio, which uses the energies of both rungs of a pair (Bennett 1976).
        bridge_error: its standard error.
        stepping_stone: from the hotter rung of each pair, log mean exp(-(beta_i - beta_{i+1}) E) (Xie et al. 2011).
        stepping_stone_error: its standard error.
        thermodynamic: the integral of the mean energy over beta by the trapezoidal rule with the variances' correction
            (Friel, Hurn and Wyse 2014). On a coarse ladder the rule's own error comes on top.
        thermodynamic_error: its standard error.
    """

    bridge: Float[np.ndarray, " M"]
    bridge_error: Float[np.ndarray, " M"]
    stepping_stone: Float[np.ndarray, " M"]
    stepping_stone_error: Float[np.ndarray, " M"]
    thermodynamic: Float[np.ndarray, " M"]
    thermodynamic_error: Float[np.ndarray, " M"]


def log_evidence(trace: Trace, ladder: str | None = None) -> LogEvidence:
    """Returns log Z of each rung relative to the hottest, by three methods, with errors.

    With a normalised prior and a hottest rung of beta = 0, the first entry is the log evidence. If the estimates differ
    by more than their errors, neighbouring rungs overlap too little: add rungs. The ladder must be that of a sampler.

    Args:
        trace: the whole trace or a stretch; exchanges after burn-in count.
        ladder: the ladder's name; needed if there are several.

    Raises:
        ValueError: there are fewer than 40 exchanges.
    """
    energy = samples(trace, "energy", ladder)
    made = exchanges(trace, ladder).info.beta
    if made is None or len(energy) < 2 * _BATCHES:
        raise ValueError(
            f"log evidence needs {2 * _BATCHES} exchanges of a tempering run after burn-in, but there are {len(energy)}"
        )
    beta = np.asarray(made, np.float64)
    if energy.ndim == 2:  # one seed: stretches take the place of seeds
        whole = _estimates(beta[-1], energy)
        each = [_estimates(beta[-1], part) for part in np.array_split(energy, _BATCHES)]
    else:
        each = [_estimates(beta[-1, seed], energy[:, seed]) for seed in range(energy.shape[1])]
        whole = np.mean(each, 0)
    error = np.std(each, 0, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.full_like(whole, np.nan)
    bridge, stone, thermodynamic = whole
    return LogEvidence(bridge, error[0], stone, error[1], thermodynamic, error[2])


def _estimates(beta: Float[np.ndarray, " M"], energy: Float[np.ndarray, "N M"]) -> Float[np.ndarray, "3 M"]:
    """Returns the three estimates of one ladder's log Z relative to the hottest rung."""
    step = beta[:-1] - beta[1:]
    cold, hot = -step * energy[:, :-1], -step * energy[:, 1:]  # log ratios of the two densities, colder over hotter
    stone = _log_mean_exp(hot)
    mean, variance = energy.mean(0), energy.var(0, ddof=1)
    area = -step * (mean[:-1] + mean[1:]) / 2 - step**2 * (variance[:-1] - variance[1:]) / 12
    bridge = stone.copy()
    for _ in range(200):  # fixed point of Bennett's equation for equally many draws
        top = _log_mean_exp(hot - np.logaddexp(hot, bridge))
        bottom = _log_mean_exp(-np.logaddexp(cold, bridge))
        new = top - bottom
        if np.allclose(new, bridge, rtol=0, atol=1e-10):
            break
        bridge = new
    return np.stack([np.append(np.cumsum(pairs[::-1])[::-1], 0.0) for pairs in (bridge, stone, area)])


def _log_mean_exp(values: Float[np.ndarray, "N P"]) -> Float[np.ndarray, " P"]:
    top = values.max(0)
    return np.asarray(top + np.log(np.exp(values - top).mean(0)))
