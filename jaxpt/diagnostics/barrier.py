"""The communication barrier: the difficulty of travel from one end of a ladder to the other (arXiv 1905.02939)."""

import dataclasses
import warnings
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxpt.core.state import Trace
from jaxpt.core.types import AnyArray
from jaxpt.diagnostics.exchanges import exchanges, rejection

if TYPE_CHECKING:
    from scipy.interpolate import PchipInterpolator


@dataclasses.dataclass(frozen=True)
class Barrier:
    """The barrier Lambda, and its cumulative values along the ladder.

    Attributes:
        beta: inverse temperatures of the rungs, descending.
        cumulative: the barrier between the coldest rung and each rung: sums of rejection probabilities.
    """

    beta: Float[np.ndarray, " M"]
    cumulative: Float[np.ndarray, " M"]

    @property
    def total(self) -> float:
        """Lambda, the barrier of the whole ladder; exact in the limit of many rungs."""
        return float(self.cumulative[-1])

    def density(self, beta: Float[AnyArray, "*grid"]) -> Float[np.ndarray, "*grid"]:
        """Returns lambda(beta), the barrier per unit of beta: the slope of a monotone cubic through the sums.

        Where it is high, rungs should be close together. NaN outside the ladder.
        """
        return np.asarray(self._cubic()(np.asarray(beta), 1))

    def rungs(self, number: int) -> Float[np.ndarray, " number"]:
        """Returns inverse temperatures of `number` rungs for which all neighbours would reject equally often."""
        edges = np.linspace(0, self.total, number)
        fine = np.linspace(self.beta[-1], self.beta[0], 10_001)
        up_to = self.total + self._cubic()(fine)  # 0 at the hottest rung, increasing with beta
        return np.interp(edges, up_to, fine)[::-1]

    def _cubic(self) -> "PchipInterpolator":
        from scipy import interpolate  # takes a second to import

        beta, first = np.unique(self.beta, return_index=True)
        return interpolate.PchipInterpolator(beta, -self.cumulative[first], extrapolate=False)


def barrier(trace: Trace, ladder: str | None = None, seed: int | None = None) -> Barrier:
    """Returns the barrier of a ladder, from its mean rejection probabilities (a pair without offers counts as 0.5).

    Args:
        trace: the whole trace or a stretch.
        ladder: the ladder's name; needed if there are several.
        seed: an index into the run's seeds; by default rejections are averaged over seeds.

    Raises:
        ValueError: the trace holds no exchange of that ladder, or each seed has adapted its ladder separately.
    """
    made = exchanges(trace, ladder)
    if not len(made.step) or made.info.beta is None:
        raise ValueError("the trace holds no exchange of this ladder, so nothing is known of its barrier")
    rejected, beta = np.nan_to_num(rejection(trace, ladder), nan=0.5), np.asarray(made.info.beta, np.float64)[-1]
    if rejected.ndim > 1:
        if seed is not None:
            rejected, beta = rejected[seed], beta[seed]
        elif not np.allclose(beta, beta[:1], rtol=1e-5):
            raise ValueError(f"each of the {len(beta)} seeds has adapted its ladder for itself; give seed=0, 1, ...")
        else:
            rejected, beta = rejected.mean(0), beta[0]
    return Barrier(beta, np.concatenate([[0.0], np.cumsum(rejected)]))


def round_trip_rate(
    rejection: Float[AnyArray, "*S pairs"], offered: Float[AnyArray, "*S pairs"] | str = "deo"
) -> Float[np.ndarray, "*S"]:
    """Returns the expected round trips of all replicas together per exchange, if energies mix between exchanges.

    DEO: 1 / (2 + 2 sum r / (1 - r)); SEO: 1 / (2 sum 1 / (1 - r)) (arXiv 1905.02939). For a pairing that offers each
    pair with probability o, independently of earlier offers: 1 / sum 1 / (o (1 - r)), from the commute time of a
    reversible walk.

    Args:
        rejection: mean rejection probability r of each pair.
        offered: "deo", "seo", "random_adjacent", or the share o of exchanges in which each pair is offered a swap.
    """
    r = np.asarray(rejection, np.float64)
    with np.errstate(divide="ignore"):
        if isinstance(offered, str) and offered == "deo" and r.shape[-1] == 1:  # two rungs: offered in every exchange
            return np.asarray(1 - r[..., 0])
        if isinstance(offered, str) and offered == "deo":
            return np.asarray(1 / (2 + 2 * np.sum(r / (1 - r), -1)))
        shares = {"seo": 0.5, "random_adjacent": 1 / r.shape[-1]}
        share = shares[offered] if isinstance(offered, str) else np.asarray(offered)
        return np.asarray(1 / np.sum(1 / (share * (1 - r)), -1))


def suggest_replicas(trace: Trace, ladder: str | None = None) -> int:
    """Returns the suggested number of replicas between a ladder's ends: 2 Lambda pairs, each accepting about half.

    Uses the mean over seeds, if there are several. If a pair rejects nearly everything, the barrier is underestimated
    (no pair can count for more than 1); repeat with the suggested number of replicas.

    >>> bool(2 <= jaxpt.suggest_replicas(result.trace) <= 7)  # with 4 rungs the barrier is at most 3
    True

    Args:
        trace: the whole trace or a stretch; energies change in training, so the last stretch is the most relevant.
        ladder: the ladder's name; needed if there are several.

    Raises:
        ValueError: the trace holds no exchange of that ladder.
    """
    made = rejection(trace, ladder)
    if not len(exchanges(trace, ladder).step):
        raise ValueError("the trace holds no exchange of this ladder, so nothing is known of its barrier")
    total = float(np.mean(np.sum(np.nan_to_num(made, nan=0.5), -1)))
    if np.max(made, initial=0, where=np.isfinite(made)) > 0.95:
        warnings.warn("a pair rejects more than 95 % of its swaps, so the barrier is underestimated", stacklevel=2)
    return max(2, round(2 * total) + 1)
