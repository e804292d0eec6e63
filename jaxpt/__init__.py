"""Parallel tempering of neural networks: many replicas train as one JAX program and exchange hyperparameters.

A problem (`nnx_problem`, `linen_problem`, `energy_problem`), a `Ladder` of hyperparameters and a rule (`Tempering`,
`Independent`, `PBT`, `CopyBest`) make an `Engine`; `fit` runs it and returns a `Result`.

The examples go on from the README's first script, made smaller: `problem`, `loss`, `engine`, `train`, `valid` and
`result` are its own, and `dataclasses`, `jax`, `jnp`, `np`, `optax`, `nnx` and `linen` are imported.
"""

from jaxpt import allocator, diagnostics, linen, placement
from jaxpt.convolution import conv_by_products, conv_general_dilated, fast_convolutions
from jaxpt.data import Batches, Data
from jaxpt.diagnostics import diagnose, suggest_replicas
from jaxpt.diffusion import Diffusion, diffusion
from jaxpt.engine import Engine, RunState, Trace
from jaxpt.failures import CheckpointError, Diverged, Interrupted
from jaxpt.fit import fit
from jaxpt.from_linen import linen_problem
from jaxpt.from_nnx import nnx_problem
from jaxpt.ladder import Ladder, geometric, linear
from jaxpt.lineage import Lineage, lineage, replay
from jaxpt.loading import load_run
from jaxpt.losses import cross_entropy, errors, label_mean, negative_log_likelihood
from jaxpt.mixture import Mixture, mixture
from jaxpt.model_files import load_model
from jaxpt.monitor import Callback, Status
from jaxpt.nn import Dropout, GaussianNoise, Hyperparameter
from jaxpt.noise import gradient_noise, langevin, with_weight_noise
from jaxpt.pairing import deo, random_adjacent, seo
from jaxpt.placement import use_all_cores
from jaxpt.precision import with_compute_dtype
from jaxpt.problems import energy_problem
from jaxpt.result import Best, Result
from jaxpt.rules import PBT, CopyBest, Independent, Tempering, exchange
from jaxpt.sampling import mala, sampler
from jaxpt.scores import Metric
from jaxpt.stream import prefetch
from jaxpt.summary import Summary
from jaxpt.types import Info, Move, Problem, Rule

__version__ = "0.1.0"

allocator.few_arenas()

__all__ = [  # noqa: RUF022  in the order in which the pages of the interface show them
    # What to train.
    "nnx_problem",
    "linen_problem",
    "energy_problem",
    "Problem",
    "Dropout",
    "GaussianNoise",
    "Hyperparameter",
    "linen",
    "cross_entropy",
    "errors",
    "negative_log_likelihood",
    "label_mean",
    "Metric",
    # On which hyperparameters.
    "Ladder",
    "geometric",
    "linear",
    "gradient_noise",
    "with_weight_noise",
    "langevin",
    # By which rule.
    "Tempering",
    "random_adjacent",
    "seo",
    "deo",
    "Independent",
    "PBT",
    "CopyBest",
    "exchange",
    # The run.
    "Engine",
    "fit",
    "Callback",
    "Status",
    "Result",
    "Best",
    "Summary",
    "load_model",
    "load_run",
    "Data",
    "RunState",
    "Trace",
    "CheckpointError",
    "Diverged",
    "Interrupted",
    # What it says.
    "diagnose",
    "suggest_replicas",
    "diagnostics",
    "lineage",
    "Lineage",
    "replay",
    "mixture",
    "Mixture",
    "diffusion",
    "Diffusion",
    # Sampling.
    "sampler",
    "mala",
    # Where and how it runs.
    "use_all_cores",
    "placement",
    "prefetch",
    "Batches",
    "with_compute_dtype",
    "fast_convolutions",
    "conv_general_dilated",
    "conv_by_products",
    # For rules of one's own.
    "Rule",
    "Move",
    "Info",
]
