"""What every arm of `peers` trains, in NumPy alone, and what it gives back."""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_ROOT = Path(__file__).resolve().parents[1]
_CALL = """
import pathlib, pickle, sys
given, made = map(pathlib.Path, sys.argv[1:])
function, arguments = pickle.loads(given.read_bytes())
made.write_bytes(pickle.dumps(function(*arguments)))
"""


class Task(NamedTuple):
    """M replicas, their minibatches, and what they start from."""

    image: np.ndarray
    """Training split [N, 28, 28, 1], uint8."""
    label: np.ndarray
    """[N], int32."""
    valid_image: np.ndarray
    """Validation split, likewise."""
    valid_label: np.ndarray
    rows: np.ndarray
    """[T, B]: which examples each step uses."""
    rates: np.ndarray
    """[M] learning rates, smallest first."""
    weights: dict[str, np.ndarray]
    """{PyTorch's name of a weight: [M, ...]} before the first step."""
    momentum: float
    dropout: float
    every: int
    """Steps in a period."""
    probe: int
    """Validation examples behind an energy."""
    seed: int


class Trained(NamedTuple):
    """What has become of the replicas."""

    weights: dict[str, np.ndarray]
    """Like `Task.weights`, after the last step."""
    seconds: float
    """From the first step to the end of the last, with all energies and exchanges between."""
    startup_seconds: float
    """Before the first step: compilation, the start of processes, warming up."""
    how: str
    """What was chosen, what happened."""
    images: int | None = None
    """Training examples that all replicas used, if not M T B."""


def probe_rows(task: Task, period: int) -> np.ndarray:
    """Returns which validation examples a period's energies are computed on."""
    return np.random.default_rng((task.seed, period)).choice(len(task.valid_label), task.probe, replace=False)


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def in_process(function: Callable[..., Any], *arguments: Any, path: Sequence[Path] = ()) -> tuple[Any, str]:
    """Returns what a function of a module returns in a Python of its own, which imports no more than that module does.

    Args:
        function: of a module that can be imported.
        *arguments: its arguments.
        path: further folders of modules.

    Returns:
        The result, and what was printed.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given"), Path(folder, "made")
        given.write_bytes(pickle.dumps((function, arguments)))
        modules = os.pathsep.join(str(place.resolve()) for place in (_ROOT, *path))
        environment = {**os.environ, "PYTHONPATH": modules}
        command = [sys.executable, "-c", _CALL, str(given), str(made)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{function.__module__}.{function.__name__} failed:\n{done.stderr[-2000:]}")
        return pickle.loads(made.read_bytes()), done.stdout
