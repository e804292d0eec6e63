"""Files with the weights of a replica or an ensemble, by Orbax or as safetensors, with a description."""

import contextlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from jaxpt.core import tree
from jaxpt.core.extras import extra
from jaxpt.core.types import ModelState, Params, Problem
from jaxpt.devices.processes import is_first, refuse_together
from jaxpt.saving import files

FORMAT = 1
"""Format version of model files; other versions cannot be read."""


def save_model(
    path: str | os.PathLike[str],
    params: Params,
    model_state: ModelState,
    about: Mapping[str, Any],
    frozen: PyTree = None,
) -> None:
    """Writes one replica's weights, or the stacked ones of an ensemble; see `Result.save_model` and `Ensemble.save`.

    Args:
        path: a folder, or a file NAME.safetensors.
        params: trained weights of one replica, or stacked.
        model_state: its model's other state.
        about: the description written beside the weights, ready for JSON.
        frozen: weights that the replicas of an ensemble share, not stacked.
    """
    file = files.local_path("path", path).absolute()
    leaves = jax.tree.leaves_with_path(_all(params, model_state, frozen))
    places = [[_key(part) for part in place] for place, _ in leaves]
    names = list(map(_flat_name, places))
    _require_different(names)
    arrays = [np.asarray(leaf) for _, leaf in leaves]
    described = [
        {"path": place, "shape": list(array.shape), "dtype": str(array.dtype)}
        for place, array in zip(places, arrays, strict=True)
    ]
    content = json.dumps({"format": FORMAT, **about, "arrays": described}, indent=1, allow_nan=False)
    if file.suffix == ".safetensors":
        _save_flat(file, dict(zip(names, arrays, strict=True)), content)
    else:
        _save_nested(file, _nested(described, arrays, str), content)


def check_names(problem: Problem) -> None:
    """Raises ValueError if two arrays of a model would share a name in a file of weights, or in a checkpoint.

    Args:
        problem: the problem of one replica.
    """
    own = jax.eval_shape(problem.init, jax.random.key(0))
    whole = own if problem.complete is None else jax.eval_shape(problem.complete, *own)
    places = [place for place, _ in jax.tree.leaves_with_path(_weights(*whole))]
    _require_different([_flat_name([_key(part) for part in place]) for place in places])
    _require_different([tree.name(path) for path, _ in jax.tree.leaves_with_path(own)])


def _require_different(names: Sequence[str]) -> None:
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"two arrays would share a name in the file: {', '.join(twice)}; rename the parameters")


def load_model(path: str | os.PathLike[str]) -> PyTree:
    """Returns the weights that `Result.save_model` wrote, as a tree of arrays, ready to load into a model.

        nnx.update(model, jaxpt.load_model("best"))            # Flax NNX
        module.apply(jaxpt.load_model("best"), x)              # Flax Linen, whose variables it returns
        jaxpt.equinox.update(model, jaxpt.load_model("best"))  # Equinox; returns a model
        jaxpt.load_model("best")                               # of an `energy_problem`: its parameters

    Containers are returned as dicts; lists and tuples become dicts with keys 0, 1, ...

    Args:
        path: path of the folder, or of the file NAME.safetensors.

    Raises:
        ValueError: path is a URL; there is no such model, it is incomplete, or it has the format of another release.
        ModuleNotFoundError: the path ends in .safetensors, and safetensors is not installed.
    """
    about, arrays = _read(path)
    if "ensemble" in about:
        raise ValueError(f"{path} holds an ensemble; read it by jaxpt.load_ensemble(path, problem)")
    return _nested(about["arrays"], arrays)


def load_weights(path: str | os.PathLike[str], problem: Problem) -> tuple[dict[str, Any], Params, ModelState, PyTree]:
    """Returns the description of an ensemble, its weights in the form that the problem takes, and its frozen weights.

    Leaves of params and model_state are [K, ...]; the K replicas share the frozen ones.

    Args:
        path: as in `load_model`.
        problem: the problem of one replica; its `init` tells names, shapes and types.

    Raises:
        ValueError: the file holds one model, or an ensemble of another problem; otherwise as in `load_model`.
        ModuleNotFoundError: as in `load_model`.
    """
    about, arrays = _read(path)
    if "ensemble" not in about:
        raise ValueError(f"{path} holds the model of one replica, not an ensemble; read it by jaxpt.load_model(path)")
    found = {tuple(entry["path"]): array for entry, array in zip(about["arrays"], arrays, strict=True)}
    begun = jax.eval_shape(problem.init, jax.random.key(0))
    shapes, structure = jax.tree.flatten((*begun, problem.frozen))
    # Numbers in place of the arrays show where `_weights` puts each of them.
    numbered = jax.tree.unflatten(structure, [np.array(number) for number in range(len(shapes))])
    order = {int(n): tuple(map(_key, place)) for place, n in jax.tree.leaves_with_path(_all(*numbered))}
    replicas = len(about["ensemble"]["replicas"])
    leads = [(replicas,)] * len(jax.tree.leaves(begun)) + [()] * len(jax.tree.leaves(problem.frozen))
    wanted = {
        order[n]: (str(s.dtype), (*lead, *s.shape)) for n, (lead, s) in enumerate(zip(leads, shapes, strict=True))
    }
    _require_same({place: (str(array.dtype), array.shape) for place, array in found.items()}, wanted, path)
    return about, *jax.tree.unflatten(structure, [found[order[n]] for n in range(len(shapes))])


def _require_same(found: Mapping[tuple[Any, ...], Any], wanted: Mapping[tuple[Any, ...], Any], path: Any) -> None:
    """Raises ValueError unless the arrays of a file, {place: (type, shape)}, are those of a problem."""
    differences = [
        f"{_flat_name(list(place))}: {_shown(place, found)} in the file, {_shown(place, wanted)} in the problem"
        for place in dict.fromkeys((*wanted, *found))
        if found.get(place) != wanted.get(place)
    ]
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ValueError(
            f"{path} holds an ensemble of another problem; give the problem of the run, with a model of the same size. "
            f"{'; '.join(differences[:5])}{more}"
        )


def _shown(place: tuple[Any, ...], kinds: Mapping[tuple[Any, ...], Any]) -> str:
    """Returns an array's type and its shape without the replicas, such as float32[6,16]."""
    if place not in kinds:
        return "none"
    kind, shape = kinds[place]
    return f"{kind}[{','.join(map(str, shape if place[:1] == ('frozen',) else shape[1:]))}]"


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Any]]:
    """Returns the description of a model file, and the arrays in the order of its entries."""
    file = files.local_path("path", path).absolute()
    if not file.exists():
        raise ValueError(f"{file} does not exist; give the path that was given to save_model")
    if file.suffix == ".safetensors":
        with extra("safetensors", "safetensors", "a .safetensors file").safe_open(file, framework="flax") as opened:
            about = _checked(file, (opened.metadata() or {}).get("jaxpt"))
            arrays = [opened.get_tensor(_flat_name(entry["path"])) for entry in about["arrays"]]
        return about, arrays
    described = file / "model.json"
    about = _checked(file, described.read_text() if described.exists() else None)
    like = [np.zeros(entry["shape"], jnp.dtype(entry["dtype"])) for entry in about["arrays"]]
    with _quietly() as ocp:
        nested = ocp.load_pytree(file / "weights", _nested(about["arrays"], like, str))
    found = {tuple(str(_key(part)) for part in place): leaf for place, leaf in jax.tree.leaves_with_path(nested)}
    names = [tuple(map(str, entry["path"])) or ("value",) for entry in about["arrays"]]
    # Arrays without elements are in no file.
    arrays = [jnp.asarray(found[name] if empty.size else empty) for name, empty in zip(names, like, strict=True)]
    return about, arrays


def _all(params: Params, model_state: ModelState, frozen: PyTree) -> PyTree:
    """Returns the weights of an ensemble with those that its replicas share, if there are any."""
    stacked = _weights(params, model_state)
    if not jax.tree.leaves(frozen):
        return stacked
    return {"replicas": stacked, "frozen": nnx.to_pure_dict(frozen) if isinstance(frozen, nnx.State) else frozen}


def _weights(params: Params, model_state: ModelState) -> PyTree:
    """Returns weights and batch statistics in the form that the model's library accepts."""
    if isinstance(params, nnx.State) and isinstance(model_state, nnx.State):
        return nnx.to_pure_dict(nnx.merge_state(params, model_state))
    is_state = lambda node: isinstance(node, nnx.State)  # noqa: E731
    params, model_state = jax.tree.map(
        lambda node: nnx.to_pure_dict(node) if is_state(node) else node, (params, model_state), is_leaf=is_state
    )
    if not jax.tree.leaves(model_state):
        return {"params": params} if isinstance(model_state, dict) else params
    if isinstance(model_state, dict):
        return {"params": params, **model_state}
    return {"params": params, "model_state": model_state}


def _key(part: Any) -> str | int:
    """Returns a dict's key, a list's index or an attribute's name."""
    if isinstance(part, jax.tree_util.DictKey):
        return part.key if isinstance(part.key, int) else str(part.key)
    if isinstance(part, jax.tree_util.GetAttrKey):
        return part.name
    return getattr(part, "idx", getattr(part, "key", str(part)))


def _flat_name(place: list[str | int]) -> str:
    return ".".join(map(str, place)) or "value"


def _nested(entries: list[dict[str, Any]], arrays: list[Any], key: Any = lambda part: part) -> Any:
    """Returns arrays as nested dicts; for Orbax (keys made strings) without arrays that have no elements."""
    if [entry["path"] for entry in entries] == [[]]:
        return {"value": arrays[0]} if key is str else arrays[0]
    tree: dict[Any, Any] = {}
    for entry, array in zip(entries, arrays, strict=True):
        if key is str and not array.size:  # Orbax cannot save arrays without elements
            continue
        node = tree
        for part in entry["path"][:-1]:
            node = node.setdefault(key(part), {})
        node[key(entry["path"][-1])] = array
    return tree


def _save_nested(file: Path, arrays: PyTree, content: str) -> None:
    _by_first(lambda: _make_room(file))
    with _quietly() as ocp:
        ocp.save_pytree(file / "weights", arrays, overwrite=True)
    _by_first(lambda: files.write(file / "model.json", content + "\n"))  # last: it marks the weights as complete


def _make_room(file: Path) -> None:
    def taken() -> bool:
        return not file.is_dir() or not all(files.is_stray(found.name) for found in file.iterdir())

    if file.exists() and not (file / "model.json").exists() and taken():
        raise ValueError(f"{file} exists and is no model that save_model wrote, so it stays; give another path")
    file.mkdir(parents=True, exist_ok=True)
    files.write(file / "model.json", json.dumps({"format": FORMAT}))  # marks the folder as ours, not yet complete


def _save_flat(file: Path, arrays: dict[str, np.ndarray], content: str) -> None:
    save = extra("safetensors.flax", "safetensors", "a .safetensors file").save_file

    def write() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.unlink(missing_ok=True)  # of a save that was cut off
        part.touch()
        mode = part.stat().st_mode  # as the user's mask has it; safetensors makes files that only their owner may read
        save({name: jnp.asarray(array) for name, array in arrays.items()}, part, {"jaxpt": content})
        part.chmod(mode)
        part.replace(file)

    _by_first(write)


def _by_first(act: Callable[[], None]) -> None:
    """Runs `act` in the first process; the others wait for it, and its error is raised in all of them."""
    refused: Exception | None = None
    if is_first():
        try:
            act()
        except (OSError, ValueError) as error:
            refused = error
    refuse_together(refused, ValueError)


def _checked(file: Path, content: str | None) -> dict[str, Any]:
    try:
        about = json.loads(content or "")
        release, _ = about["format"], about["arrays"]
    except (ValueError, KeyError, TypeError) as error:
        how = ""
        if (file / "_CHECKPOINT_METADATA").exists():
            how = "; it is a checkpoint of Orbax: restore it with orbax.checkpoint, and give its arrays as the weights"
        elif (file / "checkpoints").is_dir():
            how = "; it is the directory of a run: use jaxpt.load_run"
        raise ValueError(f"{file} holds no model as save_model writes it, or not all of it{how}") from error
    if release != FORMAT:
        raise ValueError(f"{file} is in format {release}, but this release reads format {FORMAT}")
    return about


@contextlib.contextmanager
def _quietly() -> Iterator[Any]:
    """Yields Orbax, which takes a second to import, with its warnings for developers suppressed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from orbax.checkpoint import v1 as ocp

        yield ocp
