"""The arm of `peers` in the public code of Non-reversible Parallel Tempering for Deep Posterior Approximation.

That is arXiv 2211.10837. The folder of a clone is given, of
github.com/WayneDW/Non-reversible-Parallel-Tempering-for-Deep-Posterior-Approximation. Its own program, bayes_cnn.py,
wants CUDA ("CUDA does not exist!!!") and Python 2 (its ResNet counts blocks by `/`, its tools import each other without
a package). Its function `trainer.trainer`, which trains and swaps, runs as it stands, in a process of its own, on the
benchmark's networks and minibatches. Set from outside are: its folder `tools` is on the path of modules, `Tensor.cuda`
leaves tensors where they are if there is no GPU, and networks are not scored during the run. Its options are the
defaults of its command line but for network, data, the ladder's ends, momentum, weight decay (none) and the window
between swaps, which is a period. It compares losses of single minibatches, moves weights, and forgets the momentum of
those that it moves.
"""

import argparse
import importlib.util
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import peers_torch
from benchmarks.peers_task import Task, Trained, in_process


def missing(folder: Path | None, replicas: int) -> str | None:
    """Returns why the code cannot be measured, or None."""
    if replicas < 3:
        return "it needs three replicas at least"
    if folder is None:
        return "--deo FOLDER says where the code is"
    if not (folder / "trainer.py").is_file():
        return f"{folder} has no trainer.py"
    return None if importlib.util.find_spec("torchvision") else "its imports need torchvision, which is not installed"


def published(task: Task, folder: Path) -> Trained:
    """Trains all replicas by the published trainer, on as many threads as are fastest.

    Raises:
        RuntimeError: it failed.
    """
    settings = peers_torch.fastest(task)
    begun = time.time()
    (weights, started, ended), said = in_process(train, folder.resolve(), task, settings, path=[folder / "tools"])
    rates = re.findall(r"Chain \d+ lr: (\S+)", said)[::-1]  # it names the last chain first
    how = f"{settings}; {said.count('Swap chain')} swaps, learning rates at the end {' '.join(rates)}"
    return Trained(weights, ended - started, started - begun, how)


def train(folder: Path, task: Task, settings: peers_torch.Settings) -> tuple[dict[str, np.ndarray], float, float]:
    """Returns the weights, and when the first step began and the last ended; in a process of its own."""
    torch.set_num_threads(settings.threads)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(task.seed)
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self: self
    sys.path.insert(0, str(folder))
    trainer = importlib.import_module("trainer")
    peers_torch.Replica(task, 0, settings.layout).train(task.rows[: peers_torch.WARM])
    nets = [peers_torch.Replica(task, m, settings.layout).model for m in range(len(task.rates))]
    options = {"sn": 1, "wdecay": 0.0, "momentum": task.momentum, "data": "", "chains": len(nets), "swap_rate": 5e-3}
    options |= {"lr_min": float(task.rates[0]), "lr_max": float(task.rates[-1]), "window_custom": task.every}
    options |= {"correction": 0.1, "gamma": 600.0, "scale": 10.0}
    minibatches = Minibatches(task, settings.layout)
    trainer.trainer(nets, minibatches, NoExamples(), argparse.Namespace(**options))
    return peers_torch.stacked(nets), minibatches.started, minibatches.ended


class Minibatches:
    """What the trainer takes for a DataLoader: the task's minibatches, timed."""

    def __init__(self, task: Task, layout: str):
        self.rows, self.layout, self.scaled = peers_torch.tensor(task.rows).long(), layout, peers_torch.scaled
        self.images, self.labels = peers_torch.tensor(task.image), peers_torch.tensor(task.label).long()
        self.started = self.ended = 0.0

    def __iter__(self) -> Iterator[Any]:
        self.started = time.time()
        for row in self.rows:
            yield self.scaled(self.images[row], self.layout), self.labels[row]
        self.ended = time.time()  # each step reads its loss, so nothing is under way


class NoExamples(list):
    """A test split without minibatches."""

    dataset = (None,)  # its length is divided by
