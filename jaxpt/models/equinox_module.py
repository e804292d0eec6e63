"""The arrays of an Equinox module: taken out by name, and put back; and a constructor as shapes."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxpt.core import tree
from jaxpt.core.types import ModelState, Params
from jaxpt.models.constructor import HiddenArrayError, holds_traced, shapes_of

Place = tuple[str, ...]
"""Where a module keeps an array: names of fields, and indices."""


@tree.register(data=("value",), meta=("name",))
@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """A number in a model that the engine fills by name before each step.

        self.scale = jaxpt.equinox.Hyperparameter("scale")  # then read self.scale.value

    It is neither trained nor part of a replica's weights, so a swap changes it like any other hyperparameter. Read it
    in training only: in evaluation, where all rungs are scored by the same function, it is NaN.

    Attributes:
        name: the hyperparameter.
        value: its value, traced; NaN outside of a step.
    """

    name: str
    value: Float[Array, ""] | float = math.nan

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(
                f"name must be a hyperparameter's, such as 'dropout_rate', but it is {self.name!r}; the number itself "
                "goes on a ladder or into Engine(fixed={name: number})"
            )


class Traced(NamedTuple):
    """What a constructor makes, as shapes, and how its arrays are taken out and put back.

    Attributes:
        eqx: the package equinox.
        make: from a key to a module and its state, or None.
        training: the module as made, with shapes in place of arrays.
        inference: the same in inference mode.
        state: the state as shapes; None if the module has none.
        trained: places of the trained arrays.
        hyperparameters: names that the module reads.
    """

    eqx: Any
    make: Callable[[Key[Array, ""]], tuple[Any, Any]]
    training: Any
    inference: Any
    state: Any
    trained: frozenset[Place]
    hyperparameters: frozenset[str]

    def init(self, key: Key[Array, ""]) -> tuple[Params, ModelState]:
        """Returns fresh weights, and buffers and state by their names, those that there are."""
        module, state = self.make(key)
        arrays = {place: jnp.asarray(leaf) for place, leaf in arrays_of(self.eqx, module).items()}
        rest = {"buffers": _nested({place: leaf for place, leaf in arrays.items() if place not in self.trained})}
        rest = rest if rest["buffers"] else {}
        params = _nested({place: leaf for place, leaf in arrays.items() if place in self.trained})
        return params, rest if state is None else {**rest, "state": entries(state)}

    def filled(self, like: Any, params: Params, rest: ModelState, hyper: Mapping[str, Array]) -> Any:
        """Returns a module of the form of `training` or `inference`, with arrays and hyperparameters."""
        return filled(self.eqx, like, {**places(params), **places(rest.get("buffers", {}))}, hyper)

    def filled_state(self, rest: ModelState) -> Any:
        """Returns a new `State`, None if there is none: setting a value in one makes the old one unusable."""
        if self.state is None:
            return None
        _, markers = self.state.tree_flatten()
        return type(self.state).tree_unflatten(markers, tuple(rest["state"][marker] for marker in markers))


def traced(eqx: Any, call: Callable[[Key[Array, ""]], Any], wrt: PyTree) -> Traced:
    """Returns what a constructor makes, which is traced, not computed."""

    def made(key: Key[Array, ""], eager: bool) -> tuple[Any, Any]:
        with jax.ensure_compile_time_eval() if eager else contextlib.nullcontext():
            module, state = _with_state(eqx, call, key)
        _require_found(eqx, module)
        return module, state

    def structures(eager: bool) -> tuple[Any, Any, Any]:
        module, state = made(jax.random.key(0), eager)
        chosen = eqx.is_inexact_array if wrt is None else wrt
        try:
            filtered = eqx.filter(module, chosen)
        except ValueError as error:
            raise ValueError(f"wrt must be a function of a leaf, or a pytree like the model: {error}") from error
        return module, state, eqx.filter(filtered, eqx.is_inexact_array)

    (module, state, trained), eager = shapes_of(structures, ", as an attribute of a module", eqx.filter_eval_shape)
    places = frozenset(arrays_of(eqx, trained))
    if not places:
        raise ValueError(f"nothing of the model is trained: it has no arrays of floats that wrt={wrt!r} takes")
    leaves = jax.tree.leaves(module, is_leaf=_is_hyper)
    names = frozenset(leaf.name for leaf in leaves if _is_hyper(leaf))
    return Traced(eqx, lambda key: made(key, eager), module, eqx.nn.inference_mode(module), state, places, names)


def _with_state(eqx: Any, call: Callable[[Key[Array, ""]], Any], key: Key[Array, ""]) -> tuple[Any, Any]:
    """Returns a module and its state, None if it has no stateful layers."""
    made = call(key)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], eqx.nn.State):
        module, state = made
        if not all(isinstance(marker, str) for marker in state.tree_flatten()[1]):
            raise ValueError(
                "the state that make returns must come from equinox.nn.make_with_state(Net)(...), which names its "
                "entries alike in all replicas"
            )
        return module, state
    if not isinstance(made, eqx.Module):
        raise ValueError(
            "make must return an equinox.Module, or the pair of equinox.nn.make_with_state(Net)(...), but make(key) "
            f"returns {made!r}"
        )

    def is_index(node: Any) -> bool:
        return isinstance(node, eqx.nn.StateIndex)

    if any(map(is_index, jax.tree.leaves(made, is_leaf=is_index))):
        return eqx.nn.make_with_state(lambda: made)()
    return made, None


def _require_found(eqx: Any, module: Any) -> None:
    """Raises an error if a module keeps a random key, or an array that depends on its key where no leaf is."""
    arrays = arrays_of(eqx, module)
    for place, leaf in arrays.items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"the model keeps a random key in {'.'.join(place)}; pass keys on to its calls instead: a loss that "
                "takes `key` gets a new one in each step"
            )
    found = set(map(id, arrays.values()))
    for name, value in vars(module).items():
        if holds_traced(value, found):
            raise HiddenArrayError(
                f"the model keeps an array drawn from its random key below {name}, a {type(value).__name__}, where "
                "Equinox does not find it (in a static field or a function); make it an attribute of a module"
            )


def _is_hyper(node: Any) -> bool:
    return isinstance(node, Hyperparameter)


def place_of(path: Any) -> Place:
    """Returns the place of a leaf, from its path in a pytree."""
    return tuple(tree.name((part,)) for part in path)


def arrays_of(eqx: Any, module: Any) -> dict[Place, Any]:
    """Returns the arrays of a module, or their shapes, by their places."""
    leaves = jax.tree.leaves_with_path(module, is_leaf=_is_hyper)
    return {place_of(path): leaf for path, leaf in leaves if _is_array(eqx, leaf)}


def _is_array(eqx: Any, leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def filled(eqx: Any, like: Any, arrays: Mapping[Place, Any], hyper: Mapping[str, Array] | None) -> Any:
    """Returns a module with other arrays, by their places, and hyperparameters filled by name if any are given."""

    def put(path: Any, leaf: Any) -> Any:
        if _is_hyper(leaf):
            return leaf if hyper is None else dataclasses.replace(leaf, value=hyper[leaf.name])
        return arrays[place_of(path)] if _is_array(eqx, leaf) else leaf

    return jax.tree.map_with_path(put, like, is_leaf=_is_hyper)


def entries(state: Any) -> dict[str, PyTree]:
    """Returns the values in a state by the names of their places."""
    values, markers = state.tree_flatten()
    return dict(zip(markers, values, strict=True))


def _nested(arrays: Mapping[Place, Any]) -> dict[str, Any]:
    """Returns nested dicts from arrays by their places."""
    found: dict[str, Any] = {}
    for place, array in arrays.items():
        node = found
        for name in place[:-1]:
            node = node.setdefault(name, {})
        node[place[-1]] = array
    return found


def places(nested: PyTree) -> dict[Place, Any]:
    """Returns the arrays of nested dicts by their places."""
    return {place_of(path): leaf for path, leaf in jax.tree.leaves_with_path(nested)}
