"""The index process: the rung of each replica over time, its travel along the ladder, and its relaxation time."""

import numpy as np
from jaxtyping import Float, Int

from jaxpt.core.state import Trace
from jaxpt.diagnostics.counts import round_trips
from jaxpt.diagnostics.exchanges import exchanges, ladder_name


def index_process(trace: Trace, ladder: str | None = None) -> Int[np.ndarray, "N *S M"]:
    """Returns the rung of each replica before each of the ladder's N exchanges; burn-in is left out."""
    return np.asarray(exchanges(trace, ladder).rung[ladder_name(trace, ladder)])


def round_trips_per_exchange(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S"]:
    """Returns the round trips of all replicas together per exchange; compare `round_trip_rate`.

    Counted from the first exchange on, so a short stretch gives too low a rate: each replica's first trip must begin
    before it can end.
    """
    path = index_process(trace, ladder)
    return np.asarray(round_trips(path).sum(-1) / max(len(path), 1))


def flow(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S M"]:
    """Returns for each rung the share of its visitors whose last end of the ladder was the coldest, not the hottest.

    1 at the coldest rung, 0 at the hottest. A straight line in between indicates a good ladder, a steep step a
    bottleneck (Katzgraber, Trebst, Huse and Troyer 2006, cond-mat/0602085). Under DEO the line has a step at both ends,
    since replicas keep their direction there. NaN for a rung without visitors from either end.
    """
    path = index_process(trace, ladder)
    hottest = path.shape[-1] - 1
    last = np.zeros(path.shape[1:], np.int8)  # end visited last: 1 the coldest, 2 the hottest
    counts = np.zeros((2, *path.shape[1:]))
    for now in path:
        last = np.where(now == 0, 1, np.where(now == hottest, 2, last))
        on_rung = np.argsort(now, -1)
        labels = np.take_along_axis(last, on_rung, -1)
        counts += labels == np.array([1, 2]).reshape(2, *(1,) * labels.ndim)
    total = counts.sum(0)
    return np.where(total > 0, counts[0] / np.maximum(total, 1), np.nan)


def transition_matrix(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S M M"]:
    """Returns the share of exchanges that moved a replica from rung i to rung j, symmetrised.

    T_ij = (n_ij + n_ji) / sum_k (n_ik + n_ki). Rows add up to 1; NaN for fewer than two exchanges.
    """
    path = index_process(trace, ladder)
    rungs = np.arange(path.shape[-1])
    here = (path[:-1, ..., None] == rungs).astype(np.float64)
    there = (path[1:, ..., None] == rungs).astype(np.float64)
    counts = np.einsum("n...ki,n...kj->...ij", here, there)
    counts = counts + np.swapaxes(counts, -1, -2)
    return np.asarray(counts / counts.sum(-1, keepdims=True)) if len(path) > 1 else np.full(counts.shape, np.nan)


def relaxation_time(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S"]:
    """Returns 1 / (1 - lambda_2), in exchanges; lambda_2 is the second eigenvalue of the transition matrix.

    It is roughly the memory of the index process. Infinite if the ladder has parts that never mix. The formula assumes
    a reversible Markov chain; DEO is not one, so there it is only a rough number.
    """
    matrix = transition_matrix(trace, ladder)
    if np.isnan(matrix).any():
        return np.full(matrix.shape[:-2], np.nan)
    second = np.sort(np.linalg.eigvals(matrix).real, -1)[..., -2]
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(second < 1 - 1e-12, 1 / (1 - second), np.inf))


def time_share(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S M M"]:
    """Returns the share of time that each replica (row) spent on each rung (column); 1 / M each if all mix."""
    path = index_process(trace, ladder)
    return np.asarray((path[..., None] == np.arange(path.shape[-1])).mean(0))


def samples(trace: Trace, score: str = "energy", ladder: str | None = None) -> Float[np.ndarray, "N *S M"]:
    """Returns the score of the replica on each rung, one row per exchange, coldest first; burn-in is left out.

    Args:
        trace: the whole trace or a stretch.
        score: "energy" or a metric of `trace.valid`.
        ladder: the ladder's name; needed if there are several.
    """
    on_rung = np.argsort(index_process(trace, ladder), -1)
    return np.take_along_axis(np.asarray(exchanges(trace, ladder).valid[score], np.float64), on_rung, -1)


def move_acceptance(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S M"]:
    """Returns the mean acceptance probability of a sampler's moves on each rung, over the periods of its exchanges.

    Raises:
        ValueError: the optimiser reports no "acceptance", as `jaxpt.mala` does.
    """
    made = exchanges(trace, ladder)
    if made.reported is None or "acceptance" not in made.reported:
        raise ValueError("the optimiser of this run reports no acceptance of its moves; jaxpt.mala does")
    on_rung = np.argsort(made.rung[ladder_name(trace, ladder)], -1)
    return np.asarray(np.take_along_axis(np.asarray(made.reported["acceptance"], np.float64), on_rung, -1).mean(0))


def energy_by_rung(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S M"]:
    """Returns the mean energy of the replicas on each rung; it should increase from the coldest to the hottest."""
    return np.asarray(samples(trace, "energy", ladder).mean(0))
