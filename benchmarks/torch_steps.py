"""M training steps in PyTorch: one replica after another, and by PyTorch's own vmap."""

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

from benchmarks import networks


def missing() -> str | None:
    """Returns why PyTorch cannot be measured, or None."""
    return None if importlib.util.find_spec("torch") else "PyTorch is not installed"


def version() -> str | None:
    """Returns PyTorch's version, or None."""
    if missing():
        return None
    import torch

    return torch.__version__


def _ready(options: argparse.Namespace, layout: Any) -> tuple[Any, str, list[tuple[Any, Any]]]:
    """Returns torch, the device's name, and the minibatches on it."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.threads:
        torch.set_num_threads(options.threads)
    # As in jaxpt: float32 unless less is asked for.
    torch.set_float32_matmul_precision("highest" if options.precision == "highest" else "high")
    torch.backends.cudnn.allow_tf32 = options.precision != "highest"
    torch.backends.cudnn.benchmark = True
    data = networks.images(options.model, options.batch * options.steps)
    images = torch.from_numpy(data["image"]).permute(0, 3, 1, 2).to(device, memory_format=layout)
    labels = torch.from_numpy(data["label"]).long().to(device)
    return torch, device, list(zip(images.split(options.batch), labels.split(options.batch), strict=True))


def in_a_row(options: argparse.Namespace, replicas: int) -> Callable[[], None]:
    """(e) Returns what trains each replica for a step, then the next."""
    import torch

    torch, device, batches = _ready(options, torch.channels_last)
    models = [
        networks.torch_model(options.model).to(device, memory_format=torch.channels_last) for _ in range(replicas)
    ]
    optimizers = [
        torch.optim.SGD(m.parameters(), networks.LEARNING_RATE, networks.MOMENTUM, foreach=True) for m in models
    ]

    def step(model: Any, image: Any, label: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bfloat16"):
            return torch.nn.functional.cross_entropy(model(image), label)

    if options.compile:
        step = torch.compile(step)

    def run() -> None:
        for image, label in batches:
            for model, optimizer in zip(models, optimizers, strict=True):
                optimizer.zero_grad(set_to_none=True)
                step(model, image, label).backward()
                optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def vmapped(options: argparse.Namespace, replicas: int) -> Callable[[], None]:
    """(f) Returns what trains all replicas at once by torch.func."""
    import torch

    torch, device, batches = _ready(options, torch.contiguous_format)
    models = [networks.torch_model(options.model).to(device) for _ in range(replicas)]
    for model in models:
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.track_running_stats = False  # torch.func.vmap cannot write to them
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    weights, _ = torch.func.stack_module_state(models)
    skeleton = models[0]
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    rates = torch.full((replicas,), networks.LEARNING_RATE, device=device)

    def loss(w: Any, image: Any, label: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bfloat16"):
            out = torch.func.functional_call(skeleton, w, (image,))
            return torch.nn.functional.cross_entropy(out, label)

    gradients = torch.func.vmap(torch.func.grad(loss), (0, None, None), randomness="different")

    def run() -> None:
        for image, label in batches:
            for name, gradient in gradients(weights, image, label).items():
                velocity[name] = networks.MOMENTUM * velocity[name] + gradient.detach()
                rate = rates.view(-1, *[1] * (gradient.ndim - 1))
                weights[name] = (weights[name] - rate * velocity[name]).detach()
        if device == "cuda":
            torch.cuda.synchronize()

    return run
