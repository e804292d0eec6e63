"""Parallel tempering of neural networks: many replicas train as one JAX program and exchange hyperparameters.

A problem (`nnx_problem`, `linen_problem`, `equinox_problem`, `energy_problem`), a `Ladder` of hyperparameters and a
rule (`Tempering`, `Independent`, `PBT`, `CopyBest`) make an `Engine`; `fit` runs it and returns a `Result`.

The examples continue a smaller version of the README's first script: `problem`, `loss`, `engine`, `train`, `valid` and
`result` come from it, and `dataclasses`, `jax`, `jnp`, `np`, `optax`, `nnx` and `linen` are imported.
"""

from jaxpt import diagnostics
from jaxpt.core import __version__ as __version__
from jaxpt.core.cooldown import Cooldown
from jaxpt.core.data import Batches, Data
from jaxpt.core.errors import CheckpointError, Diverged, Interrupted
from jaxpt.core.grid import product
from jaxpt.core.ladder import Ladder, geometric, linear
from jaxpt.core.search import Search
from jaxpt.core.state import RunState, Trace
from jaxpt.core.types import Info, Move, Observation, Problem
from jaxpt.devices import allocator, placement
from jaxpt.devices.placement import use_all_cores
from jaxpt.diagnostics import diagnose, suggest_replicas
from jaxpt.diagnostics.displacement import Diffusion
from jaxpt.diagnostics.lineage import Lineage, lineage
from jaxpt.engine.engine import Engine
from jaxpt.lowering.convolution import conv_by_products, conv_general_dilated, fast_convolutions
from jaxpt.models import equinox, linen
from jaxpt.models.average import with_average
from jaxpt.models.calibration import calibration_error
from jaxpt.models.dtype import with_compute_dtype
from jaxpt.models.energy import energy_problem
from jaxpt.models.equinox import equinox_problem
from jaxpt.models.linen import linen_problem
from jaxpt.models.losses import cross_entropy, label_mean, negative_log_likelihood, zero_one_loss
from jaxpt.models.nnx import Dropout, GaussianNoise, Hyperparameter, nnx_problem
from jaxpt.models.noise import gradient_noise, langevin, with_weight_noise
from jaxpt.models.scores import Metric
from jaxpt.results.comparison import Arm, Comparison
from jaxpt.results.ensemble import ensemble
from jaxpt.results.loading import load_run
from jaxpt.results.members import Ensemble, load_ensemble
from jaxpt.results.result import Best, Result
from jaxpt.results.summary import Summary
from jaxpt.results.weights import ensemble_weights
from jaxpt.rules import PBT, Choice, CopyBest, Independent, LogUniform, Rule, Tempering, Uniform, exchange
from jaxpt.rules.pairing import deo, random_adjacent, seo
from jaxpt.saving.model_files import load_model
from jaxpt.studies.comparison import compare
from jaxpt.studies.compilation import CompiledFor, compile_for
from jaxpt.studies.diffusion import diffusion
from jaxpt.studies.moves import mala
from jaxpt.studies.replay import replay
from jaxpt.studies.sampling import sampler
from jaxpt.studies.timings import Timing, Tuned
from jaxpt.studies.tune import tune
from jaxpt.training.fit import fit
from jaxpt.training.monitor import Callback, Status
from jaxpt.training.recorders.base import Recorder, Run
from jaxpt.training.recorders.json_lines import JsonLines
from jaxpt.training.recorders.mlflow import MLflow
from jaxpt.training.recorders.tensorboard import TensorBoard
from jaxpt.training.recorders.wandb import WandB
from jaxpt.training.stream import prefetch

allocator.few_arenas()

# Earlier names, kept until 0.1.0 is released.
errors, mixture = zero_one_loss, ensemble

__all__ = [  # noqa: RUF022  in the order in which the pages of the interface show them
    # The problem.
    "nnx_problem",
    "linen_problem",
    "equinox_problem",
    "energy_problem",
    "Problem",
    "Dropout",
    "GaussianNoise",
    "Hyperparameter",
    "linen",
    "equinox",
    "cross_entropy",
    "zero_one_loss",
    "negative_log_likelihood",
    "label_mean",
    "Metric",
    "calibration_error",
    # Ladders of hyperparameters.
    "Ladder",
    "geometric",
    "linear",
    "product",
    "gradient_noise",
    "with_weight_noise",
    "langevin",
    # Rules.
    "Tempering",
    "random_adjacent",
    "seo",
    "deo",
    "Independent",
    "PBT",
    "LogUniform",
    "Uniform",
    "Choice",
    "CopyBest",
    "exchange",
    # The run.
    "Engine",
    "Search",
    "Cooldown",
    "fit",
    "Callback",
    "Status",
    "Recorder",
    "Run",
    "JsonLines",
    "TensorBoard",
    "WandB",
    "MLflow",
    "Result",
    "Best",
    "Summary",
    "load_model",
    "load_ensemble",
    "load_run",
    "Data",
    "RunState",
    "Trace",
    "CheckpointError",
    "Diverged",
    "Interrupted",
    # Results and diagnostics.
    "diagnose",
    "suggest_replicas",
    "diagnostics",
    "lineage",
    "Lineage",
    "replay",
    "ensemble",
    "ensemble_weights",
    "Ensemble",
    "compare",
    "Comparison",
    "Arm",
    "diffusion",
    "Diffusion",
    # Sampling.
    "sampler",
    "mala",
    # Devices and execution.
    "use_all_cores",
    "placement",
    "tune",
    "Tuned",
    "Timing",
    "compile_for",
    "CompiledFor",
    "prefetch",
    "Batches",
    "with_compute_dtype",
    "with_average",
    "fast_convolutions",
    "conv_general_dilated",
    "conv_by_products",
    # For custom rules.
    "Rule",
    "Observation",
    "Move",
    "Info",
]
