"""Diagnostics of a trace's exchanges: pure functions of NumPy or JAX arrays; seeds, if any, are the middle axes.

Training is not stationary, so examine stretches of it: every function accepts a part of a trace (`window`, `windows`)
or the whole.
"""

from jaxpt.diagnostics.barrier import Barrier, barrier, round_trip_rate, suggest_replicas
from jaxpt.diagnostics.counts import acceptance_rate, interval, pair_acceptance, round_trips, running_mean
from jaxpt.diagnostics.diagnosis import Diagnosis, diagnose, diagnosis
from jaxpt.diagnostics.evidence import LogEvidence, log_evidence
from jaxpt.diagnostics.exchanges import acceptance, exchanges, offered, rejection, window, windows
from jaxpt.diagnostics.index import (
    energy_by_rung,
    flow,
    index_process,
    move_acceptance,
    relaxation_time,
    round_trips_per_exchange,
    samples,
    time_share,
    transition_matrix,
)

__all__ = [
    "Barrier",
    "Diagnosis",
    "LogEvidence",
    "acceptance",
    "acceptance_rate",
    "barrier",
    "diagnose",
    "diagnosis",
    "energy_by_rung",
    "exchanges",
    "flow",
    "index_process",
    "interval",
    "log_evidence",
    "move_acceptance",
    "offered",
    "pair_acceptance",
    "rejection",
    "relaxation_time",
    "round_trip_rate",
    "round_trips",
    "round_trips_per_exchange",
    "running_mean",
    "samples",
    "suggest_replicas",
    "time_share",
    "transition_matrix",
    "window",
    "windows",
]
