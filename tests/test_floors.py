"""Imports point down only: a module may import from floors below its own, or from its own floor if listed before."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxpt

ROOT = Path(jaxpt.__file__).parent
FLOORS = [
    ["types", "tree", "arguments", "files", "decimals", "extras", "seeds", "ranges", "labels"],
    ["ladder", "metropolis", "pairing", "noise", "losses", "data", "stream"],
    [
        "convolution.geometry",
        "convolution.choice",
        "convolution.direct",
        "convolution.products",
        "convolution.rules",
        "convolution.general",
        "convolution.layers",
        "convolution",
        "vectors",
        "pooling",
        "narrow",
        "canonical",
    ],
    ["nn", "linen"],
    [*(f"rules.{name}" for name in ("independent", "population", "replay", "tuning", "tempering")), "rules"],
    ["scores", "asked", "from_nnx", "from_linen", "problems", "updates", "tracked", "replicas", "reads"],
    ["company", "processes", "placement", "state", "precision", "replica_axis"],
    ["period", "names", "checks", "engine"],
    [*(f"diagnostics.{name}" for name in ("counts", "exchanges", "barrier", "index", "report")), "diagnostics"],
    [
        *("failures", "settings", "lock", "allocator", "keeping", "checkpoint", "memory", "waiting", "interruption"),
        *("divergence", "mixture", "model_files", "result", "loading", "summary", "progress", "job", "recorders"),
        *("monitor", "fit"),
        *("lineage", "diffusion", "sampling"),
        *("plots.style", "plots.curves", "plots.exchanges", "plots.diffusion", "plots", "pictures", "report"),
    ],
    [""],
]
ORDER = {name: (floor, place) for floor, names in enumerate(FLOORS) for place, name in enumerate(names)}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in ROOT.rglob("*.py")
}


def imports(path):
    """The modules of jaxpt that a file imports when it runs; those for the type checker only do not count."""
    module = ast.parse(path.read_text())
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxpt":
            inside = node.module.removeprefix("jaxpt").lstrip(".")
            for alias in node.names:
                name = f"{inside}.{alias.name}".lstrip(".")
                yield name if name in MODULES else inside


def test_every_module_has_its_floor():
    assert set(ORDER) == set(MODULES)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down_only(name):
    for other in imports(MODULES[name]):
        assert ORDER[other] < ORDER[name], f"{name or 'jaxpt'} imports {other}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_package_needs_only_its_core_dependencies(name):
    """matplotlib is an extra that only pictures may need; nothing in jaxpt may need the experiments."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        tops = {n.split(".")[0] for n in names}
        assert not tops & {"experiments", "tests", "benchmarks", "sklearn", "tyro"}
        assert not tops & {"tensorboardX", "pandas", "safetensors"}, "extras are imported by `extra`"
        assert name.split(".")[0] in ("plots", "pictures", "report", "result") or "matplotlib" not in tops


def test_importing_it_imports_nothing_slow_that_few_need():
    code = "import sys, jaxpt; print(*{name.split('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"jax", "flax", "optax", "tqdm"} <= set(found)
    assert not {"scipy", "orbax", "matplotlib", "pandas", "tensorboardX", "sklearn"} & set(found)
