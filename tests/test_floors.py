"""Rooms: a module may import from rooms below its own, wherever in the file the import is, and never in a circle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxpt

ROOT = Path(jaxpt.__file__).parent
ROOMS = {
    name: floor
    for floor, name in enumerate(
        (
            "core",
            "lowering",
            "rules",
            "models",
            "devices",
            "engine",
            "diagnostics",
            "saving",
            "results",
            "training",
            "studies",
            "",  # the face: the package's own __init__
            "__main__",  # Python's name for the module of `python -m jaxpt`
        )
    )
}
ENTRIES = {*ROOMS, "guide", "__init__.py", "__main__.py", "py.typed"} - {"", "__main__"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in ROOT.rglob("*.py")
}


def imports(path):
    """Yields the modules of jaxpt that a file imports: at its top, inside functions, and for the type checker."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == "jaxpt")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if (node.module or "").split(".")[0] == "jaxpt":
                inside = node.module.partition(".")[2]
                for alias in node.names:
                    name = f"{inside}.{alias.name}".lstrip(".")
                    yield name if name in MODULES else inside


def room(module):
    return module.split(".")[0]


IMPORTS = {name: set(imports(path)) for name, path in MODULES.items()}


def test_the_package_holds_its_rooms_and_nothing_else():
    filled = {
        path.name for path in ROOT.iterdir() if path.is_file() or any(path.rglob("*.py")) or any(path.rglob("*.md"))
    }
    assert filled == ENTRIES
    assert {room(name) for name in MODULES} == set(ROOMS)
    assert all(len(path.read_text().splitlines()) <= 350 for path in MODULES.values())


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down_only(name):
    up = {other for other in IMPORTS[name] if ROOMS[room(other)] > ROOMS[room(name)]}
    assert not up, f"{name} imports from rooms above its own: {', '.join(sorted(up))}"
    assert not name or "" not in IMPORTS[name], f"{name} imports the face"


def test_no_modules_import_each_other_in_a_circle():
    left = {name: {*others} for name, others in IMPORTS.items()}
    while free := {name for name, others in left.items() if not others & left.keys() - {name}}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left, f"circles among {', '.join(sorted(left))}"


def test_a_circle_and_an_import_inside_a_function_are_seen(tmp_path):
    """The test above looks at whole files."""
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import jaxpt.engine.period\n"
    source += "def f():\n    from jaxpt.core import tree\n    from jaxpt import fit\n"
    path = tmp_path / "module.py"
    path.write_text(source)
    assert set(imports(path)) == {"engine.period", "core.tree", ""}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_package_needs_only_its_core_dependencies(name):
    """Extras are imported by `extra`, but for matplotlib in the room of results; nothing needs the experiments."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        tops = {n.split(".")[0] for n in names}
        assert not tops & {"experiments", "tests", "benchmarks", "sklearn", "tyro"}
        assert not tops & {"tensorboardX", "wandb", "mlflow", "pandas", "safetensors", "equinox"}, (
            "extras are imported by `extra`"
        )
        assert room(name) == "results" or "matplotlib" not in tops


def test_importing_it_imports_nothing_slow_that_few_need():
    code = "import sys, jaxpt; print(*{name.split('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"jax", "flax", "optax", "tqdm"} <= set(found)
    assert not {
        "scipy",
        "orbax",
        "matplotlib",
        "pandas",
        "tensorboardX",
        "wandb",
        "mlflow",
        "sklearn",
        "equinox",
    } & set(found)
