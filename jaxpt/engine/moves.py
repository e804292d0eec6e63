"""Checks what a rule proposes, by shapes, before the first step."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxpt.core.ladder import Ladder
from jaxpt.core.types import Info, Move, Observation
from jaxpt.engine.spec import Spec
from jaxpt.rules import Rule


def check_move(engine: Spec, rule: Rule, ladders: Mapping[str, Ladder], reports: Collection[str] | None = None) -> None:
    """Traces `rule.propose` once; computes nothing. Values, such as whether rungs are a permutation, it cannot see.

    Args:
        engine: the engine.
        rule: its rule at the start of a run.
        ladders: {name: Ladder} as arrays.
        reports: names of the numbers that the optimiser reports; None: it reports none.

    Raises:
        ValueError: `propose` does not return (Move, rule, Info); names, shapes or types differ from those that the run
            carries; rungs move but the hyperparameters do not.
    """
    M, name = engine.num_replicas, f"propose of {type(rule).__name__}"

    def proposed(key: Any, rule: Rule, seen: Observation) -> Any:
        found = rule.propose(key, seen)
        if not isinstance(found, tuple) or len(found) != 3:
            raise ValueError(
                f"{name} must return (jaxpt.Move, the rule, jaxpt.Info), but it returns {_in_words(found)}"
            )
        move, after, info = found
        for part, kind in ((move, Move), (after, type(rule)), (info, Info)):
            if not isinstance(part, kind):
                raise ValueError(
                    f"{name} must return (jaxpt.Move, the rule, jaxpt.Info), but in place of the {kind.__name__} it "
                    f"returns {_in_words(part)}"
                )
        _check_names(name, move, seen)
        if not rule.moves_values:
            _check_moved(name, move, seen)
        return move, after, info

    seen = _observation(engine, rule, ladders, reports)
    move, after, info = jax.eval_shape(proposed, jax.random.key(0), rule, seen)
    for ladder, rung in move.rung.items():
        _check_leaf(f"rung[{ladder!r}] of the move", name, rung, (M,), jnp.integer)
    for key, value in move.hyper.items():
        _check_leaf(f"hyper[{key!r}] of the move", name, value, (M,), jnp.floating)
    if move.parents is not None:
        _check_leaf("parents of the move", name, move.parents, (M,), jnp.integer)
        if info.parents is None:
            raise ValueError(
                f"{name} copies weights (parents of the move), but does not record it; return jaxpt.Info.none("
                f"{M}, parents=...), or info._replace(parents=...)"
            )
    _check_same("the rule", name, after, rule)
    if move.ladders is not None:
        _check_same("ladders of the move", name, dict(move.ladders), dict(ladders))
    _check_info(name, info, M)


def _observation(
    engine: Spec, rule: Rule, ladders: Mapping[str, Ladder], reports: Collection[str] | None
) -> Observation:
    """Returns what the rule sees, as shapes."""

    def shape(lead: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(lead, dtype)

    M = engine.num_replicas
    hyper = {key: shape((M,), jnp.float32) for key in engine.fixed}
    hyper |= {key: shape((M,), v.dtype) for ladder in ladders.values() for key, v in ladder.values.items()}
    flag = shape((), jnp.bool_)
    return Observation(
        shape((), jnp.int32),
        shape((M,), jnp.float32),
        {name: shape((M,), jnp.int32) for name in ladders},
        hyper,
        jax.tree.map(lambda leaf: shape(jnp.shape(leaf), jnp.asarray(leaf).dtype), dict(ladders)),
        flag,
        shape((M, M), jnp.float32) if rule.noise_corrected else None,
        None if engine.ending is None else flag,
        None if engine.beginning is None else flag,
        None if reports is None else {name: shape((M,), jnp.float32) for name in reports},
    )


def _check_names(name: str, move: Move, seen: Observation) -> None:
    """Raises ValueError unless rungs and hyperparameters have the names that the rule sees."""
    for part, expected in (("rung", seen.rung), ("hyper", seen.hyper)):
        given = getattr(move, part)
        if not isinstance(given, Mapping) or set(given) != set(expected):
            held = ", ".join(given) or "none" if isinstance(given, Mapping) else _in_words(given)
            raise ValueError(
                f"{part} of the move that {name} returns must be a dict with {', '.join(expected)}, but it has {held}; "
                f"begin with {{**seen.{part}}}"
            )


def _check_moved(name: str, move: Move, seen: Observation) -> None:
    """Raises ValueError if the rungs of a ladder may be others, and all its hyperparameters are what they were."""
    for ladder, held in seen.ladders.items():
        stayed = all(move.hyper[key] is seen.hyper[key] for key in held.values)
        if move.rung[ladder] is not seen.rung[ladder] and stayed and move.parents is None:
            raise ValueError(
                f"{name} moves the rungs of {ladder}, but returns the hyperparameters as they were; give each replica "
                f"those of its rung: {{key: value[rung] for key, value in seen.ladders[{ladder!r}].values.items()}}"
            )


def _check_leaf(what: str, name: str, found: Any, shape: tuple[int, ...], kind: Any) -> None:
    """Raises ValueError unless an array has this shape and kind of numbers."""
    if found.shape != shape or not jnp.issubdtype(found.dtype, kind):
        wanted = {jnp.integer: "integers", jnp.floating: "floats"}.get(kind, str(kind))
        raise ValueError(
            f"{what} that {name} returns must be {wanted} of shape {shape}, but it is {found.dtype} of shape "
            f"{found.shape}"
        )


def _check_info(name: str, info: Info, M: int) -> None:
    """Raises ValueError unless a record has the shapes that the trace holds."""
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("attempted", "accepted", "probability", "correction"), (M - 1,)),
        **dict.fromkeys(("beta", "parents"), (M,)),
        **dict.fromkeys(("ladder", "C"), ()),
    }
    for part, value in info._asdict().items():
        if value is not None and value.shape != shapes[part]:
            raise ValueError(
                f"{part} of the Info that {name} returns must have shape {shapes[part]} for {M} replicas, but its "
                f"shape is {value.shape}; jaxpt.Info.none(len(seen.energy)) records a period without swaps"
            )


def _check_same(what: str, name: str, found: PyTree, expected: PyTree) -> None:
    """Raises ValueError unless a pytree has the structure, shapes and types of another one."""
    structures: list[Any] = [jax.tree.structure(one) for one in (found, expected)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"{what} that {name} returns must have the structure of the one it was given, {structures[1]}, but it has "
            f"{structures[0]}"
        )
    leaves = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, leaf), before in leaves:
        given = jnp.asarray(before)
        kind = next((kind for kind in (jnp.integer, jnp.floating) if jnp.issubdtype(given.dtype, kind)), given.dtype)
        _check_leaf(f"{what}{jax.tree_util.keystr(path)}", name, leaf, given.shape, kind)


def _in_words(value: Any) -> str:
    many = f" of {len(value)}" if isinstance(value, tuple | list | dict) else ""
    return f"a {type(value).__name__}{many}"
