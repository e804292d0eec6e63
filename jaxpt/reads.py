"""Which hyperparameters an optimiser and a schedule read, found by tracing them; computes nothing."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from jaxpt.types import Hyper, Optimizer, Problem, Schedule


def has_state(opt_state: PyTree, kinds: tuple[type, ...]) -> bool:
    """Whether an optimiser's state holds a state of one of these kinds, `optax.TraceState` (momentum) say."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    return any(isinstance(node, kinds) for node in nodes)


class Reads(Mapping[str, Array]):
    """Hyperparameters that add to `seen` which names are read, `**h` included."""

    def __init__(self, hyper: Mapping[str, Array], seen: set[str]):
        self.hyper, self.seen = hyper, seen

    def __getitem__(self, name: str) -> Array:
        self.seen.add(name)
        return self.hyper[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.hyper)

    def __len__(self) -> int:
        return len(self.hyper)


class _PassedOn(dict[str, Array]):
    """The same for schedules: what `{**h, ...}` merely passes on does not count as read."""

    def __init__(self, hyper: Mapping[str, Array], seen: set[str]):
        super().__init__(hyper)
        self.seen = seen

    def __getitem__(self, name: str) -> Array:
        self.seen.add(name)
        return super().__getitem__(name)


def reads(problem: Problem, optimizer: Optimizer, schedule: Schedule | None, hyper: Mapping[str, Any]) -> set[str]:
    """Returns the names that the optimiser and the schedule read, found by tracing one update; computes nothing.

    Args:
        problem: its weights' shapes are what the update is traced on.
        optimizer: what is traced.
        schedule: what is traced before it, or None.
        hyper: {name: abstract scalar}.

    Raises:
        KeyError: a name is not in `hyper`.
        ValueError: what they return is no transformation, or no hyperparameters.
    """
    seen: set[str] = set()

    def update(key: Key[Array, ""], hyper: Hyper) -> PyTree:
        params, _ = problem.init(key)
        scheduled = hyper if schedule is None else schedule(_PassedOn(hyper, seen), jnp.zeros((), jnp.int32))
        if not hasattr(scheduled, "keys"):
            raise ValueError(f"schedule must return all hyperparameters, {{**h, ...}}, but it returns {scheduled!r}")
        made = optimizer(Reads(scheduled, seen))
        if not (hasattr(made, "init") and hasattr(made, "update")):
            raise ValueError(
                'optimizer must return an optax transformation, e.g. optax.sgd(h["learning_rate"]), but it returns '
                f"{made!r}"
            )
        transform = optax.with_extra_args_support(made)
        return transform.update(params, transform.init(params), params, key=key)

    jax.eval_shape(update, jax.random.key(0), dict(hyper))
    return seen
