"""Finds which hyperparameters an optimiser and a schedule read, and when, by tracing; computes nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Literal
from jaxtyping import Array, Int, Key, PyTree

from jaxpt.core.types import Hyper, Optimizer, Problem, Schedule
from jaxpt.engine.replica import scheduled
from jaxpt.engine.tracked import PassedOn, Reads, plain
from jaxpt.engine.updates import extra_arguments, updated
from jaxpt.lowering import rewrite


class Reading(NamedTuple):
    """The result of tracing an optimiser and a schedule."""

    names: set[str]
    """Hyperparameters that they read, or that the update depends on."""
    opt_state: PyTree
    """The optimiser's state, as shapes."""
    kept: dict[str, set[str]]
    """{name: set of names} for values in force that the optimiser keeps from its init on. The set holds what the value
    depends on: names of hyperparameters, and "" for the step."""


def hyperparameters_read(
    problem: Problem, optimizer: Optimizer, schedule: Schedule | None, hyper: Mapping[str, Any]
) -> set[str]:
    """Returns the names that the optimiser and the schedule read (see `reading`)."""
    return reading(problem, optimizer, schedule, hyper).names


def reading(problem: Problem, optimizer: Optimizer, schedule: Schedule | None, hyper: Mapping[str, Any]) -> Reading:
    """Returns what the optimiser and the schedule read; traces init and one update, computes nothing.

    Args:
        problem: gives the shapes of the weights.
        optimizer: the optimiser to trace.
        schedule: the schedule to trace before it, or None.
        hyper: {name: abstract scalar}.

    Raises:
        KeyError: a name is not in `hyper`.
        ValueError: the optimiser does not return a transformation, or the schedule does not return hyperparameters;
            one of them cannot be traced.
    """
    seen: set[str] = set()
    key = jax.random.key(0)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    params = jax.eval_shape(lambda key: problem.init(key)[0], key)

    def scheduled(hyper: Hyper, step: Int[Array, ""]) -> Hyper:
        given = hyper if schedule is None else schedule(PassedOn(hyper, seen), step)
        if not hasattr(given, "keys"):
            raise ValueError(f"schedule must return all hyperparameters, {{**h, ...}}, but it returns {given!r}")
        return {name: jnp.asarray(value) for name, value in plain(given).items()}

    def made(hyper: Hyper) -> Any:
        transform = optimizer(Reads(hyper, seen))
        if not (hasattr(transform, "init") and hasattr(transform, "update")):
            raise ValueError(
                'optimizer must return an optax transformation, e.g. optax.sgd(h["learning_rate"]), but it returns '
                f"{transform!r}"
            )
        return transform

    def update(hyper: Hyper, state: PyTree, params: PyTree, value: Array, key: Array) -> tuple[PyTree, PyTree]:
        def value_fn(params: PyTree) -> Array:  # any function of the weights will do
            return value + sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(params))

        return updated(made(hyper), params, state, params, extra_arguments(key, value, params, value_fn))

    program, force = _traced("schedule", scheduled, dict(hyper), step)
    origins = _sources(program, [1 << place for place in range(len(hyper) + 1)])
    starting, opt_state = _traced("optimizer", lambda hyper, params: made(hyper).init(params), force, params)
    if has_state(opt_state, (optax.LookaheadState,)):
        raise ValueError(
            "optax.lookahead trains pairs of weights (optax.LookaheadParams), but a problem has one set of weights; "
            "take its inner optimizer alone"
        )
    loss = jax.ShapeDtypeStruct((), jnp.float32)
    training, _ = _traced("optimizer", update, force, opt_state, params, loss, key)
    kept, used = _kept(starting, training, len(force), len(jax.tree.leaves(opt_state)))
    names = [*sorted(hyper), ""]
    depends = {
        name: {names[place] for place in range(len(names)) if origin >> place & 1}
        for name, origin in zip(sorted(force), origins, strict=True)
    }
    for place, name in enumerate(sorted(force)):
        seen |= depends[name] - {""} if used >> place & 1 else depends[name] - {"", name}
    return Reading(
        seen, opt_state, {name: depends[name] for place, name in enumerate(sorted(force)) if kept >> place & 1}
    )


def check_kept(found: Reading, moving: set[str]) -> None:
    """Raises ValueError if the optimiser keeps the first value of a hyperparameter that changes during a run.

    Args:
        found: the reading of the engine's optimiser and schedule.
        moving: hyperparameters that change, or whose replica receives another replica's optimiser state.
    """
    for name, sources in found.kept.items():
        if stuck := sorted({name} if "" in sources else sources & moving):
            raise ValueError(
                f"the optimizer reads {', '.join(stuck)} when it begins and never again (it keeps the first value in "
                "its state, as optax.rprop does), so no exchange, copy, schedule, search or cooldown would reach "
                "it; take another optimizer, or rule=Independent() without any of them"
            )


def _kept(starting: Any, training: Any, count: int, leaves: int) -> tuple[int, int]:
    """Returns two sets of an optimiser's `count` inputs, as bits: those kept from init, and those with any effect.

    An input is kept if a leaf of the initial state depends on it, an update does not renew the leaf from it, and
    updates depend on the leaf. Examples: rprop's step sizes, the numbers of `inject_hyperparams`.
    """
    bits = [1 << place for place in range(count)]
    begun = _sources(starting, bits)
    after = _sources(training, bits)
    stale = [first & ~renewed for first, renewed in zip(begun, after[-leaves:] if leaves else [], strict=True)]
    reached = 0
    while True:  # a leaf may reach the updates through other leaves
        outputs = _sources(training, [0] * count + stale)
        reached = _union(outputs[: len(outputs) - leaves])
        more = [old | new for old, new in zip(stale, outputs[-leaves:] if leaves else [], strict=True)]
        if more == stale:
            return reached, _union(begun) | _union(after)
        stale = more


def _sources(program: Any, given: Sequence[int]) -> list[int]:
    """Returns for each output of a jaxpr the inputs that it may depend on, as the union of their bits.

    Follows nested jits; each output of any other nested program counts as dependent on all its inputs.
    """
    jaxpr = getattr(program, "jaxpr", program)
    found: dict[Any, int] = dict(zip(jaxpr.invars, given, strict=False))

    def of(var: Any) -> int:
        return 0 if isinstance(var, Literal) else found.get(var, 0)

    for equation in jaxpr.eqns:
        inputs = [of(var) for var in equation.invars]
        if equation.primitive.name in ("jit", "pjit"):
            outputs = _sources(equation.params["jaxpr"], inputs)
        else:
            outputs = [_union(inputs)] * len(equation.outvars)
        found |= zip(equation.outvars, outputs, strict=True)
    return [of(var) for var in jaxpr.outvars]


def _union(bits: Sequence[int]) -> int:
    union = 0
    for each in bits:
        union |= each
    return union


def _traced(what: str, function: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Returns a function's jaxpr and the shapes of its results.

    Raises:
        KeyError: a hyperparameter is not given.
        ValueError: the function needs concrete values where they are traced, or fails otherwise.
    """
    try:
        return jax.make_jaxpr(function, return_shape=True)(*args)
    except (KeyError, ValueError):
        raise
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        raise ValueError(
            f"the {what} looks at the value of a hyperparameter while it is traced ({type(error).__name__}), as "
            "optax.warmup_cosine_decay_schedule does with its peak. Give optax's schedule a peak of 1 and multiply: "
            "unit = optax.warmup_cosine_decay_schedule(0.0, 1.0, 100, 1000) and lambda h: optax.sgd(lambda step: "
            'h["learning_rate"] * unit(step)); in code of your own use jnp.where for `if`'
        ) from error
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ValueError(
            f"the {what} fails: {error}; its update is given gradient, state and weights, and key, value, grad, "
            "value_fn, obj_fn and grad_fn as far as it takes them"
        ) from error
    except Exception as error:
        raise ValueError(
            f"the {what} cannot be traced on this problem's weights: {type(error).__name__}: {error}"
        ) from error


def has_state(opt_state: PyTree, kinds: tuple[type, ...]) -> bool:
    """Returns whether an optimiser's state contains one of these types, such as `optax.TraceState` (momentum)."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    return any(isinstance(node, kinds) for node in nodes)


def convolved_bytes(
    problem: Problem, schedule: Schedule | None, hyper: Mapping[str, Any], train: PyTree, batch_size: int
) -> int:
    """Returns the size of the largest array of a convolution in a problem's training loss; traces it, computes nothing.

    Args:
        problem: the problem.
        schedule: (hyperparameters, step) -> the ones in force, or None.
        hyper: {name: abstract scalar}.
        train: training split, leaves [N, ...], or None.
        batch_size: examples in a minibatch.
    """

    def loss(key: Key[Array, ""], hyper: Hyper, batch: PyTree) -> Any:
        params, state = problem.init(key)
        return problem.loss(params, state, batch, scheduled(schedule, hyper, jnp.zeros((), jnp.int32)), key)

    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), jnp.result_type(leaf)), train)
    return rewrite.convolved_bytes(jax.make_jaxpr(loss)(jax.random.key(0), dict(hyper), batch).jaxpr)
