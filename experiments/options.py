"""The options of every experiment, the presets of the paper's, and how a command line becomes them."""

import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import tyro

import jaxpt
from experiments.datasets import DataError

RuleName = Literal["tempering", "deo", "auto", "pbt", "independent"]
Preset = Literal["quick", "paper"]
PlacementName = Literal["auto", "single", "shard_map", "pmap"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of everything that trains."""

    steps: int
    """Optimiser steps of each replica."""
    every: int
    """Steps in a period, from one record to the next."""
    burn_in: int
    """Steps before anything is exchanged or measured."""
    batch_size: int = 128
    """Examples in a minibatch; all replicas see the same."""
    seeds: int
    """How many seeds; each is a whole ladder with initial weights and data order of its own."""
    directory: Path
    """Where summary.json, trace.npz and the pictures go."""
    progress: bool = True
    """Show a progress bar, if stderr is a terminal."""
    devices: int | None = None
    """Devices of each process that the replicas are spread over; by default as many CPU devices as there are cores, or
    what --placement takes of GPUs."""
    placement: PlacementName = "auto"
    """auto: one device, but all cores of a CPU, and with several processes all devices. single: one device.
    shard_map: all devices. pmap: all devices of one process; the same numbers."""
    coordinator: str | None = None
    """HOST:PORT of process 0, any free port, if several processes share the run; with --processes and --process."""
    processes: int | None = None
    """How many processes share the run."""
    process: int | None = None
    """Which of them this is, 0 to processes - 1; process 0 prints and writes."""
    distributed: bool = False
    """Several processes that JAX finds by itself: on TPU pods, under SLURM, Open MPI, Kubernetes."""

    def check(self) -> None:
        """Raises ValueError for what can be told before any data is read."""
        for name, value in dataclasses.asdict(self).items():
            given = f"--{name.replace('_', '-')} {value}"
            if isinstance(value, float) and not np.isfinite(value):
                raise ValueError(f"{given} is not a finite number")
            if name in ("learning_rate", "later_learning_rate", "save_minutes") and value <= 0:
                raise ValueError(f"{given} must be positive")
            least = dict.fromkeys(("burn_in", "switch", "process", "first_seed"), 0).get(name, 1)
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ValueError(f"{given} must be at least {least}")

    def join(self) -> None:
        """Joins the other processes of the run, if options or the environment say that there are any."""
        given = self.coordinator, self.processes, self.process
        if self.distributed or given != (None, None, None) or os.environ.get("JAX_COORDINATOR_ADDRESS"):
            jaxpt.placement.distributed(*given)

    def placed(self) -> jaxpt.placement.Placement | Literal["auto"]:
        """Returns the chosen placement, over the chosen devices."""
        if self.placement == "single":
            return jaxpt.placement.single()
        if self.placement == "auto" and (self.devices is None or jaxpt.placement.platform() == "cpu"):
            return "auto"
        of_each = itertools.groupby(jax.devices(), lambda device: device.process_index)
        devices = [device for _, own in of_each for device in itertools.islice(own, self.devices)]
        return jaxpt.placement.pmap(devices) if self.placement == "pmap" else jaxpt.placement.shard_map(devices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseOptions(TrainingOptions):
    """Options of every experiment that exchanges."""

    first_seed: int = 0
    """The first of --seeds seeds in a row; others than those by which a setting was chosen are a fair test of it."""
    replicas: int = 8
    """Replicas, one per rung of the ladder."""
    C: float
    """Factor between energies and inverse temperatures in the acceptance probability min(1, exp(C dbeta dE))."""
    rule: tuple[RuleName, ...] = ("tempering", "independent")
    """Arms to run, all behind one --rule. tempering: one random pair a period, as in the paper. deo: all even pairs,
    then all odd ones. auto: the same with C and the ladder found during burn-in. pbt: population based training.
    independent: grid search."""
    probe: int | None = None
    """Energies on this many validation examples, drawn anew each period; the whole split if not given."""
    curve: int | None = None
    """Test examples behind the curves; all if not given. The table says the error on all of them."""
    sample: int | None = None
    """At most so many validation and test examples for everything; all if not given. The summary says so."""
    resume: bool = False
    """Go on with the run in --directory, if there is one; more --steps train on. Every arm keeps checkpoints there.
    Without it a finished run is replaced, and an unfinished one refused."""
    save_minutes: float = 5.0
    """Minutes between checkpoints. SIGTERM and Ctrl-C save as well, and end the run with code 75."""
    coldest_k: int = 3
    """Beside the mixture of all replicas, that of so many on the coldest rungs."""

    def all_seeds(self) -> range:
        """Returns the seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions(TrainingOptions):
    """Options of what runs on the paper's data."""

    preset: Preset = "quick"
    """paper: the paper's settings. quick: the same ladder, all times shortened in proportion, scores on a sample."""
    dataset: str = "emnist_letters"
    """emnist_letters, cifar10, mnist, or any set that tensorflow-datasets has prepared, with `image` and `label`."""
    data_dir: Path | None = None
    """Folder with the official files or with prepared sets; without it the official archive is downloaded once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperOptions(DataOptions, BaseOptions):
    """Options of the experiments of arXiv 1909.04013, figure 2."""

    seeds: int = 1
    switch: int
    """Step at which the learning rate changes."""
    coldest: float
    """Value of the coldest rung."""
    hottest: float
    """Value of the hottest rung."""
    spacing: Literal["linear", "geometric"] = "linear"
    """Of the rungs between: equal differences, as in the paper, or equal ratios."""

    def check(self) -> None:
        """Checks the order of the ladder's ends, too."""
        super().check()
        self.rungs()

    def rungs(self) -> np.ndarray:
        """Returns the ladder's values, coldest first; raises ValueError if they are not in that order."""
        if self.coldest >= self.hottest:
            raise ValueError(f"--coldest {self.coldest} must be below --hottest {self.hottest}")
        spaced = jaxpt.linear if self.spacing == "linear" else jaxpt.geometric
        return np.asarray(spaced(self.coldest, self.hottest, self.replicas))


_FAILURES = (jaxpt.CheckpointError, jaxpt.Diverged, jaxpt.placement.ProcessLost, MemoryError)
T = TypeVar("T", bound=TrainingOptions)
DataT = TypeVar("DataT", bound=DataOptions)


def shorten(options: DataT, factor: int, **others: Any) -> DataT:
    """Returns the quick preset: steps, period, burn-in and switch divided by `factor`.

    Args:
        options: the paper's preset.
        factor: by what all times are divided.
        **others: further fields to be replaced.
    """
    fields = {field.name for field in dataclasses.fields(options)}
    times = fields & {"steps", "every", "burn_in", "switch"}
    shorter = {name: max(1, round(getattr(options, name) / factor)) for name in times}
    return dataclasses.replace(options, preset="quick", **shorter, **others)


def command(main: Callable[[T], Any], options: type[T], arguments: Sequence[str] | None = None) -> None:
    """Runs an experiment from the command line (or from `arguments`).

    On CPUs it lets JAX see every core as a device, so it must come before anything is computed. A mistake in its
    options ends in one line and exit code 2; data that cannot be had, a checkpoint that cannot be written or read, a
    run that does not fit into memory or a lost process in one line and exit code 1.
    """
    _start(main, tyro.cli(options, args=arguments))


def paper_command(
    main: Callable[[DataT], Any], preset: Callable[..., DataT], arguments: Sequence[str] | None = None
) -> None:
    """Runs an experiment that has presets; what else is given goes over the preset.

    Args:
        main: the experiment.
        preset: its arguments, --preset for one, are looked for on the command line; returns the options for them.
        arguments: the command line.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked_for_help = {"-h", "--help"} & set(given)
    chosen, _ = tyro.cli(
        preset,
        args=[argument for argument in given if argument not in asked_for_help],
        return_unknown_args=True,
        add_help=False,
    )
    _start(main, tyro.cli(type(chosen), default=chosen, args=given))


def _start(main: Callable[[T], Any], chosen: T) -> None:
    try:
        chosen.check()
        jaxpt.use_all_cores(chosen.devices)
        chosen.join()
        with jaxpt.placement.clear_errors():
            main(chosen)
    except (ValueError, DataError, *_FAILURES) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = 2 if isinstance(error, ValueError) else 1
        if jax.process_count() > 1:
            os._exit(code)  # an orderly end would wait for the other processes
        raise SystemExit(code) from error
