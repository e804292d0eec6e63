"""The index process: which replica stands on which rung, how far it travels, and how fast it forgets."""

import numpy as np
from jaxtyping import Float, Int

from jaxpt.core.state import Trace
from jaxpt.diagnostics.counts import round_trips
from jaxpt.diagnostics.exchanges import exchanges, ladder_name


def index_process(trace: Trace, ladder: str | None = None) -> Int[np.ndarray, "N *S M"]:
    """Returns the rung of each replica before each of the ladder's N exchanges; burn-in is left out."""
    return np.asarray(exchanges(trace, ladder).rung[ladder_name(trace, ladder)])


def round_trips_per_exchange(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S"]:
    """Returns how many round trips all replicas together made per exchange; compare `round_trip_rate`.

    Counted from the first exchange on, so a short stretch tells too little: the first trip has to begin before it ends.
    """
    path = index_process(trace, ladder)
    return np.asarray(round_trips(path).sum(-1) / max(len(path), 1))


def flow(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S M"]:
    """Returns, for each rung, the share of visits by replicas that were last at the coldest rung, not the hottest.

    1 at the coldest, 0 at the hottest. A straight line in between is a good ladder; a steep step is a bottleneck
    (Katzgraber, Trebst, Huse and Troyer 2006, cond-mat/0602085). Under DEO the line steps off at both ends, since
    replicas keep their direction there. NaN where no such replica came by.
    """
    path = index_process(trace, ladder)
    hottest = path.shape[-1] - 1
    last = np.zeros(path.shape[1:], np.int8)  # 1: from the coldest, 2: from the hottest
    counts = np.zeros((2, *path.shape[1:]))
    for now in path:
        last = np.where(now == 0, 1, np.where(now == hottest, 2, last))
        on_rung = np.argsort(now, -1)
        labels = np.take_along_axis(last, on_rung, -1)
        counts += labels == np.array([1, 2]).reshape(2, *(1,) * labels.ndim)
    total = counts.sum(0)
    return np.where(total > 0, counts[0] / np.maximum(total, 1), np.nan)


def transition_matrix(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S M M"]:
    """Returns the share of exchanges that took a replica from rung i to rung j, made symmetric.

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
    """Returns 1 / (1 - lambda_2), in exchanges: lambda_2 is the second eigenvalue of the transition matrix.

    About how long the index process remembers where it was. Infinite if the ladder falls into parts that never mix. It
    takes the process for a reversible Markov chain; under DEO, which is none, read it as a rough number.
    """
    matrix = transition_matrix(trace, ladder)
    if np.isnan(matrix).any():
        return np.full(matrix.shape[:-2], np.nan)
    second = np.sort(np.linalg.eigvals(matrix).real, -1)[..., -2]
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(second < 1 - 1e-12, 1 / (1 - second), np.inf))


def time_share(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S M M"]:
    """Returns which share of its time each replica (row) spent on each rung (column); 1 / M each if all mix."""
    path = index_process(trace, ladder)
    return np.asarray((path[..., None] == np.arange(path.shape[-1])).mean(0))


def samples(trace: Trace, score: str = "energy", ladder: str | None = None) -> Float[np.ndarray, "N *S M"]:
    """Returns the score of whoever stood on each rung, exchange by exchange, coldest first; burn-in is left out.

    Args:
        trace: all of it or a stretch.
        score: "energy" or a metric of `trace.valid`.
        ladder: which one, if there are several.
    """
    on_rung = np.argsort(index_process(trace, ladder), -1)
    return np.take_along_axis(np.asarray(exchanges(trace, ladder).valid[score], np.float64), on_rung, -1)


def energy_by_rung(trace: Trace, ladder: str | None = None) -> Float[np.ndarray, "*S M"]:
    """Returns the mean energy of whoever stood on each rung: it should rise from the coldest to the hottest."""
    return np.asarray(samples(trace, "energy", ladder).mean(0))
