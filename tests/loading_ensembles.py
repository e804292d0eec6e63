"""Loads ensembles in a process that never saw their runs, and saves their predictions; see `tests/test_members.py`."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxpt
from tests import conftest


def logits(model, batch):
    return model(batch["x"])


def line_energy(w, batch):
    return jaxpt.cross_entropy(batch["x"] @ w[0] + w[1], batch["y"])


def line_init(key):
    return [0.1 * jax.random.normal(key, (conftest.FEATURES, conftest.CLASSES)), jnp.zeros(conftest.CLASSES)]


def line_predict(params, rest, batch):
    return jax.nn.softmax(batch["x"] @ params[0] + params[1])


def problems():
    """{name: problem}: NNX and Linen with batch statistics, a bare energy whose parameters are a list."""
    example = np.zeros((1, conftest.FEATURES), np.float32)
    return {
        "nnx": jaxpt.nnx_problem(conftest.NnxNet, conftest.loss, predict=logits),
        "linen": jaxpt.linen_problem(conftest.LinenNet(), conftest.loss, example=example, predict=logits),
        "energy": jaxpt.energy_problem(line_energy, line_init)._replace(predict=line_predict),
    }


def main(folder):
    """Loads every ensemble in a folder, named after its problem, and saves its predictions of the test split."""
    known = problems()
    for path in sorted(folder.glob("*.saved*")):
        name = path.name.split(".")[0]
        found = jaxpt.load_ensemble(path, known[name])
        np.save(folder / f"{path.name}.npy", found(conftest.examples().test))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
