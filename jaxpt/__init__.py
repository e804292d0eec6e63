"""Parallel tempering of neural networks: many replicas train as one JAX program and exchange hyperparameters."""

from jaxpt import allocator, diagnostics, linen, placement
from jaxpt.convolution import conv_by_products, conv_general_dilated, fast_convolutions
from jaxpt.data import Batches, Data
from jaxpt.diagnostics import diagnose, suggest_replicas
from jaxpt.diffusion import Diffusion, diffusion
from jaxpt.engine import Engine, RunState, Trace
from jaxpt.failures import CheckpointError, Diverged, Interrupted
from jaxpt.fit import fit
from jaxpt.ladder import Ladder, geometric, linear
from jaxpt.lineage import Lineage, lineage, replay
from jaxpt.losses import cross_entropy, errors, negative_log_likelihood
from jaxpt.mixture import mixture
from jaxpt.nn import Dropout, GaussianNoise, Hyperparameter
from jaxpt.noise import gradient_noise, langevin
from jaxpt.pairing import deo, random_adjacent, seo
from jaxpt.placement import use_all_cores
from jaxpt.precision import with_compute_dtype
from jaxpt.problems import energy_problem, linen_problem, nnx_problem, with_weight_noise
from jaxpt.result import Result
from jaxpt.rules import PBT, CopyBest, Independent, Tempering, exchange
from jaxpt.sampling import mala, sampler
from jaxpt.stream import prefetch
from jaxpt.types import Info, Move, Problem, Rule

__version__ = "0.1.0"

allocator.few_arenas()

__all__ = [
    "PBT",
    "Batches",
    "CheckpointError",
    "CopyBest",
    "Data",
    "Diffusion",
    "Diverged",
    "Dropout",
    "Engine",
    "GaussianNoise",
    "Hyperparameter",
    "Independent",
    "Info",
    "Interrupted",
    "Ladder",
    "Lineage",
    "Move",
    "Problem",
    "Result",
    "Rule",
    "RunState",
    "Tempering",
    "Trace",
    "conv_by_products",
    "conv_general_dilated",
    "cross_entropy",
    "deo",
    "diagnose",
    "diagnostics",
    "diffusion",
    "energy_problem",
    "errors",
    "exchange",
    "fast_convolutions",
    "fit",
    "geometric",
    "gradient_noise",
    "langevin",
    "lineage",
    "linear",
    "linen",
    "linen_problem",
    "mala",
    "mixture",
    "negative_log_likelihood",
    "nnx_problem",
    "placement",
    "prefetch",
    "random_adjacent",
    "replay",
    "sampler",
    "seo",
    "suggest_replicas",
    "use_all_cores",
    "with_compute_dtype",
    "with_weight_noise",
]
