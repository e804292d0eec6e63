"""The arm of `peers` in Ray Tune: population based training, one trial for each replica, all of them at once."""

import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # workers take this environment as it is
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # nobody reads Tune's own logs here
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # whose tables cannot be turned off

import numpy as np
import ray
import torch
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from benchmarks import peers_torch
from benchmarks.peers_task import Task, Trained, cores, probe_rows

_FILE = "replica.pt"
_ROOT = str(Path(__file__).resolve().parents[1])


class Trial(tune.Trainable):
    """One replica; an iteration is a period."""

    def setup(self, config: dict[str, Any], task: Task, threads: int, layout: str) -> None:
        """Called once in the trial's process."""
        torch.set_num_threads(threads)
        torch.manual_seed((task.seed << 16) + config["replica"])
        self.task, self.layout, self.steps = task, layout, 0
        peers_torch.Replica(task, 0, layout).train(task.rows[: peers_torch.WARM])
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Lets a process go on as another trial; a checkpoint is loaded next, if there is one."""
        self.run = peers_torch.Replica(self.task, new_config["replica"], self.layout)
        self.steps = 0
        self._use(new_config["learning_rate"])
        return True

    def step(self) -> dict[str, Any]:
        """Trains for a period and returns the energy on the period's probe."""
        started = time.time()
        self.run.train(self.task.rows[self.steps : self.steps + self.task.every])
        self.steps += self.task.every
        energy = self.run.energy(probe_rows(self.task, self.steps // self.task.every))
        return {"steps": self.steps, "energy": energy, "started": started}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves weights and velocities."""
        state = {"model": self.run.model.state_dict(), "optimizer": self.run.optimizer.state_dict()}
        torch.save({**state, "steps": self.steps}, Path(checkpoint_dir, _FILE))

    def load_checkpoint(self, checkpoint: str) -> None:
        """Goes on from a checkpoint, with this trial's own learning rate."""
        state = torch.load(Path(checkpoint, _FILE))
        self.run.model.load_state_dict(state["model"])
        self.run.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
        self._use(self.config["learning_rate"])

    def _use(self, rate: float) -> None:
        for group in self.run.optimizer.param_groups:
            group["lr"] = rate


class Periods(tune.Callback):
    """Counts the periods that trials trained, and knows when the first began."""

    def __init__(self) -> None:
        self.count, self.started = 0, float("inf")

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Called by Tune."""
        self.count += 1
        self.started = min(self.started, result["started"])


def population(task: Task) -> Trained:
    """Trains all replicas by `tune.Tuner`.

    Raises:
        RuntimeError: a trial failed.
    """
    replicas, rates = len(task.rates), [float(rate) for rate in task.rates]
    share = cores() / replicas if cores() < replicas else cores() // replicas  # above one Ray wants whole numbers
    threads = max(1, int(share))
    how = peers_torch.fastest(task, threads=[threads])
    for seed in (random.seed, np.random.seed):  # the scheduler explores by both
        seed(task.seed)
    begun = time.time()
    folder = tempfile.mkdtemp()
    # The processes talk to each other on this machine only.
    ray.init(
        "local",
        num_cpus=cores(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": _ROOT}},
    )
    try:
        periods = Periods()
        resources = {"cpu": share} | ({"gpu": 1 / replicas} if peers_torch.device() == "cuda" else {})
        trainable = tune.with_parameters(Trial, task=task, threads=threads, layout=how.layout)
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={"replica": tune.grid_search(list(range(replicas))), "learning_rate": _own_rate(rates)},
            tune_config=tune.TuneConfig(
                metric="energy",
                mode="min",
                reuse_actors=True,  # else each copy starts a process
                scheduler=PopulationBasedTraining(
                    time_attr="steps",
                    perturbation_interval=task.every,
                    hyperparam_mutations={"learning_rate": tune.choice(rates)},
                ),
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                stop={"steps": len(task.rows)},
                callbacks=[periods],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
                verbose=0,
            ),
        )
        fitting = time.time()
        results = tuner.fit()
        ended = time.time()
        if results.errors:
            raise RuntimeError(f"a trial of Ray Tune failed: {results.errors[0]}")
        weights = _final(results, task)
    finally:
        ray.shutdown()
        shutil.rmtree(folder)
    return Trained(
        weights,
        ended - periods.started,
        periods.started - begun,
        f"{replicas} trials of {share:g} cores, {how}; Tuner.fit took {ended - fitting:.1f} s, trials' start included",
        task.rows.shape[1] * task.every * periods.count,
    )


def _own_rate(rates: list[float]) -> Any:
    """The rung of each replica's own number."""
    return tune.sample_from(lambda config: rates[config["replica"]])


def _final(results: tune.ResultGrid, task: Task) -> dict[str, np.ndarray]:
    """Returns the trials' last weights, stacked."""
    states = [torch.load(Path(result.checkpoint.path, _FILE), map_location="cpu")["model"] for result in results]
    return {name: np.stack([state[name].numpy() for state in states]) for name in task.weights}
