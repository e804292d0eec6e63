"""Problems with given weights in nested dicts, of which a part may be frozen."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jaxpt.core.types import Batch, Given, ModelState, Params, Problem, with_given
from jaxpt.models.given import Path, check_selected, flat, matched

Select = Callable[[Path, Any], bool] | str | Sequence[str] | None
"""Which weights are trained: a function (path, array) -> bool, or the names of modules; None: all."""


def with_parts(problem: Problem, wrt: Select, start: Mapping[str, PyTree] | None) -> Problem:
    """Returns the problem started from given weights, with only the selected ones trained.

    Args:
        problem: a problem whose weights and state are nested dicts.
        wrt: which weights are trained.
        start: given variables by collection, {"params": ..., ...}.

    Raises:
        ValueError: see `matched`; `wrt` selects nothing, or names what the model does not have.
    """
    if wrt is None and start is None:
        return problem
    params, rest = jax.eval_shape(problem.init, jax.random.key(0))
    weights = flat(params)
    trained = _selected(wrt, weights)
    frozen = [("params", *path) for path in weights if path not in trained]
    wanted = flat({"params": params, **rest})
    given = Given(*map(_nested, matched({} if start is None else flat(start), wanted, frozen)))
    names = _nested(dict.fromkeys(path[1:] for path in frozen))
    kinds = _kinds({path: weights[path] for path in trained})
    return with_given(partial(_over, problem, kinds, names), given)


def _over(problem: Problem, kinds: frozenset[Any], names: Mapping[str, Any], given: Given) -> Problem:
    """Returns the problem with given weights, which are only passed on.

    Args:
        problem: the problem of all weights.
        kinds: the types of the trained weights.
        names: the names of the frozen weights, nested.
        given: the weights, by collection.
    """

    def init(key: Key[Array, ""]) -> tuple[Params, ModelState]:
        params, rest = problem.init(key)
        begun = _put({"params": params, **rest}, given.start)
        return _without(begun.pop("params"), names), begun

    def whole(params: Params) -> Params:
        frozen = jax.tree.map(jnp.asarray, given.frozen.get("params", {}))
        for kind in _kinds(params) - kinds:  # what `with_compute_dtype` has cast the trained ones to
            frozen = jax.tree.map(lambda leaf: leaf.astype(kind) if _is_float(leaf) else leaf, frozen)  # noqa: B023
        return _put(params, frozen)

    def loss(params: Params, rest: ModelState, batch: Batch, hyper: Any, key: Any) -> tuple[Array, ModelState]:
        return problem.loss(whole(params), rest, batch, hyper, key)

    def evaluate(params: Params, rest: ModelState, batch: Batch) -> dict[str, Array]:
        return problem.evaluate(whole(params), rest, batch)

    def of_whole(function: Any) -> Any:
        return function and (lambda params, *args: function(whole(params), *args))

    return problem._replace(
        init=init,
        loss=loss,
        evaluate=evaluate,
        model=of_whole(problem.model),
        predict=of_whole(problem.predict),
        trained_on=of_whole(problem.trained_on),
        complete=lambda params, rest: (whole(params), rest),
    )


def _selected(wrt: Select, weights: Mapping[Path, Any]) -> set[Path]:
    """Returns the paths of the trained weights."""
    if wrt is None:
        return set(weights)
    if callable(wrt):
        found = {path for path, leaf in weights.items() if wrt(path, leaf)}
        check_selected(wrt, found, weights)
        return found
    names = [wrt] if isinstance(wrt, str) else wrt
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            "wrt must be names of modules, such as ['Dense_1', 'encoder/Dense_0'], or a function (path, array) -> "
            f"bool, but it is {wrt!r}"
        )
    found = set()
    for name in names:
        start = tuple(name.split("/"))
        below = {path for path in weights if path[: len(start)] == start}
        check_selected(name, below, weights)
        found |= below
    check_selected(wrt, found, weights)
    return found


def _nested(arrays: Mapping[Path, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, leaf in arrays.items():
        node = nested
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = leaf
    return nested


def _put(tree: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts with more or other arrays in them."""
    made = dict(tree)
    for name, value in arrays.items():
        made[name] = _put(made.get(name, {}), value) if isinstance(value, Mapping) else jnp.asarray(value)
    return made


def _without(tree: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts without the arrays of these names, and without dicts that are then empty."""
    made = {}
    for name, value in tree.items():
        if name not in names:
            made[name] = value
        elif isinstance(value, Mapping) and (left := _without(value, names[name])):
            made[name] = left
    return made


def _kinds(weights: PyTree) -> frozenset[Any]:
    return frozenset(leaf.dtype for leaf in jax.tree.leaves(weights) if _is_float(leaf))


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))
