"""Which hyperparameters an optimiser and a schedule read, and whether a swapped value reaches the update."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal
from jaxtyping import Array, Key, PyTree

from jaxpt.replicas import update
from jaxpt.types import Hyper, Optimizer, Params, Problem, Schedule


class PassedOn(dict[str, Array]):
    """Hyperparameters that add to `seen` which names are read by themselves; `{**h}` and `h | {...}` read none."""

    def __init__(self, hyper: Mapping[str, Array], seen: set[str]):
        super().__init__(hyper)
        self.seen = seen

    def __getitem__(self, name: str) -> Array:
        self.seen.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As for any dict; counts as read."""
        self.seen |= {name} & set(self)
        return super().get(name, default)

    def values(self) -> Any:
        """As for any dict; all count as read."""
        self.seen |= set(self)
        return super().values()

    def items(self) -> Any:
        """As for any dict; all count as read."""
        self.seen |= set(self)
        return super().items()


class Reads(PassedOn):
    """The same, with `**h` counted as reading everything; copies go on counting."""

    def __iter__(self) -> Iterator[str]:  # with an iterator of its own, `**h` asks for each item
        return super().__iter__()

    def copy(self) -> "Reads":
        """As for any dict."""
        return Reads(dict(dict.items(self)), self.seen)

    def __or__(self, other: Any) -> "Reads":  # type: ignore[override]
        return Reads({**dict(dict.items(self)), **other}, self.seen)

    def __ror__(self, other: Any) -> "Reads":  # type: ignore[override]
        return Reads({**other, **dict(dict.items(self))}, self.seen)


def has_state(opt_state: PyTree, kinds: tuple[type, ...]) -> bool:
    """Whether an optimiser's state holds a state of one of these kinds, `optax.TraceState` (momentum) say."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    return any(isinstance(node, kinds) for node in nodes)


def reads(problem: Problem, optimizer: Optimizer, schedule: Schedule | None, hyper: Mapping[str, Any]) -> set[str]:
    """Returns the names that the optimiser and the schedule read, found by tracing one update; computes nothing.

    Args:
        problem: its weights' shapes are what the update is traced on.
        optimizer: what is traced.
        schedule: what is traced before it, or None.
        hyper: {name: abstract scalar}.

    Raises:
        KeyError: a name is not in `hyper`.
        ValueError: what they return is no transformation, or no hyperparameters; they look at a value, which is traced;
            the update lacks an argument.
    """
    seen: set[str] = set()
    _trace(problem, optimizer, schedule, hyper, seen)
    return seen


def never_updated(
    problem: Problem, optimizer: Optimizer, schedule: Schedule | None, hyper: Mapping[str, Any]
) -> set[str]:
    """Returns the names on which an optimiser's state depends when it begins, but no update does.

    A swap, a copy or a schedule would change such a hyperparameter without any effect. Arguments as in `reads`.
    """
    begin, step = _trace(problem, optimizer, schedule, hyper, set())
    names = sorted(hyper)
    at_start, later = (dict(zip(names, _used(program)[: len(names)], strict=True)) for program in (begin, step))
    return {name for name in names if at_start[name] and not later[name]}


def _trace(
    problem: Problem, optimizer: Optimizer, schedule: Schedule | None, hyper: Mapping[str, Any], seen: set[str]
) -> tuple[Jaxpr, Jaxpr]:
    """Returns an optimiser's init and its update as programs of (hyperparameters, ...)."""

    def made(hyper: Hyper) -> Any:
        scheduled = hyper if schedule is None else schedule(PassedOn(hyper, seen), jnp.zeros((), jnp.int32))
        if not hasattr(scheduled, "keys"):
            raise ValueError(f"schedule must return all hyperparameters, {{**h, ...}}, but it returns {scheduled!r}")
        found = optimizer(Reads(dict(scheduled), seen))
        if not (hasattr(found, "init") and hasattr(found, "update")):
            raise ValueError(
                'optimizer must return an optax transformation, e.g. optax.sgd(h["learning_rate"]), but it returns '
                f"{found!r}"
            )
        return found

    def begin(hyper: Hyper, params: Params) -> PyTree:
        return made(hyper).init(params)

    def step(hyper: Hyper, params: Params, state: PyTree, key: Key[Array, ""]) -> PyTree:
        loss = jnp.zeros(()) + sum(jnp.sum(jnp.real(leaf)) for leaf in jax.tree.leaves(params))
        offered = {"key": key, "value": loss, "grad": params, "value_fn": lambda params, key=None: loss}
        return update(made(hyper), params, state, params, offered)

    params = jax.eval_shape(lambda key: problem.init(key)[0], jax.random.key(0))
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        first, state = jax.make_jaxpr(begin, return_shape=True)(dict(hyper), params)
        return first.jaxpr, jax.make_jaxpr(step)(dict(hyper), params, state, key).jaxpr
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError(
            "the optimizer or schedule looks at the value of a hyperparameter in Python, but in the compiled step each "
            "replica has another. Schedules of optax look at their peak, so make one with peak 1 outside and "
            "multiply: unit = optax.warmup_cosine_decay_schedule(0.0, 1.0, 100, 1000); optimizer=lambda h: "
            'optax.adam(lambda step: h["learning_rate"] * unit(step)). JAX says: ' + str(error).splitlines()[0]
        ) from error
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ValueError(
            f"the optimizer fails: {error}; its update is given gradient, state and weights, and key, value, grad and "
            "value_fn if it takes them"
        ) from error


def _used(program: Jaxpr) -> list[bool]:
    """Returns which arguments of a program its outputs depend on, equation by equation."""
    wanted = {v for v in program.outvars if not isinstance(v, Literal)}
    for eqn in reversed(program.eqns):
        if wanted & set(eqn.outvars):
            wanted |= {v for v in eqn.invars if not isinstance(v, Literal)}
    return [v in wanted for v in program.invars]
