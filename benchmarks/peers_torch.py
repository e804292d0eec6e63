"""The arms of `peers` in plain PyTorch: replicas one after another, in one process per core, and by torch.func."""

import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import torch_networks
from benchmarks.peers_task import Task, Trained, cores, in_process

WARM, _TRIED = 3, 10  # steps before the clock starts; by which settings are compared
_LAYOUTS = {"channels-last": torch.channels_last, "channels-first": torch.contiguous_format}


class Settings(NamedTuple):
    """How PyTorch runs."""

    threads: int
    layout: str

    def __str__(self) -> str:
        return f"{self.threads} {'thread' if self.threads == 1 else 'threads'}, {self.layout}"


def device() -> str:
    """Returns where PyTorch trains, having asked for float32 everywhere, as jaxpt does."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    return "cuda" if torch.cuda.is_available() else "cpu"


def tensor(array: np.ndarray) -> Tensor:
    """Returns an array on the device; on the CPU it stays where it is."""
    with warnings.catch_warnings():  # shared memory cannot be written to, and nobody does
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device())


def scaled(images: Tensor, layout: str = "channels-first") -> Tensor:
    """Returns uint8 pixels [B, 28, 28, 1] as floats [B, 1, 32, 32] in [0, 1]."""
    floats = images.permute(0, 3, 1, 2).float() / 255
    return nn.functional.pad(floats, (2, 2, 2, 2)).contiguous(memory_format=_LAYOUTS[layout])


def network(task: Task, replica: int) -> nn.Module:
    """Returns a replica's network with its first weights, on the device."""
    model = torch_networks.lenet(task.dropout)
    model.load_state_dict({name: torch.tensor(leaf[replica]) for name, leaf in task.weights.items()})
    return model.to(device())


def stacked(models: Sequence[nn.Module]) -> dict[str, np.ndarray]:
    """Returns {name: [M, ...]} of so many networks' weights."""
    states = [model.state_dict() for model in models]
    return {name: np.stack([state[name].cpu().numpy() for state in states]) for name in states[0]}


class Replica:
    """A network, its optimiser and the data.

    Args:
        task: what to train.
        replica: which one, 0 .. M - 1.
        layout: of the images, "channels-last" or "channels-first".
    """

    def __init__(self, task: Task, replica: int, layout: str):
        self.layout = layout
        self.model = network(task, replica).to(memory_format=_LAYOUTS[layout])
        self.optimizer = torch.optim.SGD(self.model.parameters(), float(task.rates[replica]), task.momentum, fused=True)
        self.train_split = tensor(task.image), tensor(task.label).long()
        self.valid_split = tensor(task.valid_image), tensor(task.valid_label).long()

    def train(self, rows: np.ndarray) -> None:
        """Takes a step on each of these minibatches, [T, B]; on a GPU they may be under way still."""
        self.model.train()
        images, labels = self.train_split
        for row in tensor(rows).long():
            self.optimizer.zero_grad(set_to_none=True)
            out = self.model(scaled(images[row], self.layout))
            nn.functional.cross_entropy(out, labels[row]).backward()
            self.optimizer.step()

    def energy(self, rows: np.ndarray) -> float:
        """Returns the mean loss on these validation examples, in evaluation mode."""
        self.model.eval()
        images, labels = self.valid_split
        row = tensor(rows).long()
        with torch.inference_mode():
            return nn.functional.cross_entropy(self.model(scaled(images[row], self.layout)), labels[row]).item()


def one_after_another(task: Task) -> Trained:
    """Trains each replica to its end, then the next, each on all the cores that help."""
    settings = fastest(task)
    part = train_in_a_row(task, range(len(task.rates)), settings)
    return Trained(part.weights, part.ended - part.started, part.started - part.begun, str(settings))


def in_processes(task: Task) -> Trained:
    """Trains as many replicas at a time as there are cores, one after another in each process."""
    settings = fastest(task, [1])
    workers = min(cores(), len(task.rates))
    shares = np.array_split(np.arange(len(task.rates)), workers)
    begun = time.time()
    with ThreadPoolExecutor(workers) as pool:
        parts = [part for part, _ in pool.map(lambda own: in_process(train_in_a_row, task, own, settings), shares)]
    weights = {name: np.concatenate([part.weights[name] for part in parts]) for name in task.weights}
    first, last = min(part.started for part in parts), max(part.ended for part in parts)
    return Trained(weights, last - first, first - begun, f"{workers} processes, {settings}")


def at_once(task: Task) -> Trained:
    """Trains all replicas as one, by vmap over their stacked weights."""
    settings = fastest(task, stacked=True)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(task.seed)
    begun = time.perf_counter()
    Stacked(task).train(task.rows[:WARM])
    replicas = Stacked(task)
    _wait()
    started = time.perf_counter()
    replicas.train(task.rows)
    _wait()
    ended = time.perf_counter()
    weights = {name: weight.cpu().numpy() for name, weight in replicas.weights.items()}
    return Trained(weights, ended - started, started - begun, str(settings))


class Stacked:
    """All replicas' weights and velocities, one tensor each."""

    def __init__(self, task: Task):
        self.skeleton, self.momentum = network(task, 0), task.momentum
        self.images, self.labels = tensor(task.image), tensor(task.label).long()
        self.weights = {name: torch.tensor(leaf).to(device()) for name, leaf in task.weights.items()}
        self.velocity = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.rates = torch.tensor(task.rates, dtype=torch.float32).to(device())

        def loss(weights: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(torch.func.functional_call(self.skeleton, weights, (images,)), labels)

        self.gradients = torch.func.vmap(torch.func.grad(loss), (0, None, None), randomness="different")

    def train(self, rows: np.ndarray) -> None:
        """Takes a step of all replicas on each of these minibatches."""
        names = list(self.weights)
        rates = [self.rates.view(-1, *[1] * (self.weights[name].ndim - 1)) for name in names]
        for row in tensor(rows).long():
            gradients = self.gradients(self.weights, scaled(self.images[row]), self.labels[row])
            with torch.no_grad():
                velocity = [self.velocity[name] for name in names]
                torch._foreach_mul_(velocity, self.momentum)
                torch._foreach_add_(velocity, [gradients[name] for name in names])
                steps = torch._foreach_mul(velocity, rates)
                torch._foreach_sub_([self.weights[name] for name in names], steps)


def fastest(task: Task, threads: Sequence[int] | None = None, *, stacked: bool = False) -> Settings:
    """Returns the settings with which a few steps take least; they are thrown away, and nobody's time counts them.

    Args:
        task: what to train.
        threads: numbers of threads to compare; by default one, two, and one for each core.
        stacked: compare them for all replicas at once instead of one.
    """
    threads = sorted({1, min(2, cores()), cores()}) if threads is None else threads
    times = {}
    for settings in [Settings(count, layout) for layout in list(_LAYOUTS)[stacked:] for count in threads]:
        torch.set_num_threads(settings.threads)
        run = Stacked(task) if stacked else Replica(task, 0, settings.layout)
        run.train(task.rows[:WARM])
        _wait()
        started = time.perf_counter()
        run.train(task.rows[:_TRIED])
        _wait()
        times[settings] = time.perf_counter() - started
    return min(times, key=times.__getitem__)


class Part(NamedTuple):
    """What has become of some replicas, and when (seconds since 1970, which all processes agree on)."""

    weights: dict[str, np.ndarray]
    begun: float
    """Called."""
    started: float
    """Warm, the first step is next."""
    ended: float


def train_in_a_row(task: Task, replicas: Sequence[int], settings: Settings) -> Part:
    """Trains these replicas one after another."""
    begun = time.time()
    torch.set_num_threads(settings.threads)
    torch.manual_seed((task.seed << 16) + int(replicas[0]))
    Replica(task, 0, settings.layout).train(task.rows[:WARM])
    _wait()
    started = time.time()
    models = []
    for replica in replicas:
        run = Replica(task, replica, settings.layout)
        run.train(task.rows)
        models.append(run.model)
    _wait()
    return Part(stacked(models), begun, started, time.time())


def _wait() -> None:
    if device() == "cuda":
        torch.cuda.synchronize()
