"""Rules: they change the replicas' hyperparameters after each period. All rules run in the same engine."""

from jaxpt.rules.exchange import exchange
from jaxpt.rules.independent import Independent
from jaxpt.rules.population import PBT, CopyBest
from jaxpt.rules.replay import Replay
from jaxpt.rules.rule import Rule
from jaxpt.rules.spaces import Choice, LogUniform, Uniform
from jaxpt.rules.tempering import Tempering

__all__ = [
    "PBT",
    "Choice",
    "CopyBest",
    "Independent",
    "LogUniform",
    "Replay",
    "Rule",
    "Tempering",
    "Uniform",
    "exchange",
]
