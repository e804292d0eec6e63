"""Hyperparameters as dicts that record which names are read."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax


class PassedOn(dict[str, Any]):
    """Hyperparameters for a schedule: a dict that adds to `seen` which names are read one by one.

    Values passed on by `{**h, ...}`, `dict(h)` or `h.items()` do not count as read. Copies (`h.copy()`, `h | {...}`,
    `{...} | h`) keep counting. A name that was assigned another value no longer counts.
    """

    def __init__(self, hyper: Mapping[str, Any], seen: set[str], own: Iterable[str] = ()):
        super().__init__(plain(hyper))
        self.seen, self.own = seen, set(own)

    def __getitem__(self, name: str) -> Any:
        """Counts the name as read."""
        self._count((name,))
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        """Assigns a value; reads of the name no longer count."""
        self.own.add(name)
        super().__setitem__(name, value)

    def get(self, name: str, default: Any = None) -> Any:
        """Counts the name as read if it is there."""
        return self[name] if name in self else default  # noqa: SIM401

    def setdefault(self, name: str, default: Any = None) -> Any:
        """The same as `get`, but stores the default."""
        if name not in self:
            self[name] = default
        return self[name]

    def pop(self, name: str, *default: Any) -> Any:
        """Counts the name as read if it is there."""
        if name in self:
            self._count((name,))
        return super().pop(name, *default)

    def update(self, *others: Any, **more: Any) -> None:
        """Assigns values; reads of these names no longer count."""
        for name, value in dict(*map(_as_plain, others), **more).items():
            self[name] = value

    def copy(self) -> Any:
        """Returns a copy that records reads in the same set."""
        return type(self)(self, self.seen, self.own)

    __copy__ = copy

    def __or__(self, other: Any) -> Any:
        """Returns a copy with the other's values."""
        merged = self.copy()
        merged.update(other)
        return merged

    def __ror__(self, other: Any) -> Any:
        """Returns the other dict updated with these values; only these count."""
        return type(self)({**_as_plain(other), **plain(self)}, self.seen, self.own | (set(other) - set(self)))

    def __ior__(self, other: Any) -> Any:
        """Assigns the other's values; reads of these names no longer count."""
        self.update(other)
        return self

    def _count(self, names: Iterable[str]) -> None:
        self.seen.update(set(names) - self.own)


class Reads(PassedOn):
    """The same for optimisers and losses; there `**h`, `dict(h)`, `h.items()` and `h.values()` read all names."""

    def __iter__(self) -> Iterator[str]:
        """Overridden only so that `dict(h)` and `**h` use `[]`, which they bypass for plain dicts."""
        return super().__iter__()

    def items(self) -> Any:
        """Counts all names as read."""
        self._count(self)
        return super().items()

    def values(self) -> Any:
        """Counts all names as read."""
        self._count(self)
        return super().values()


def plain(hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Returns hyperparameters as a plain dict; none of them counts as read."""
    if isinstance(hyper, PassedOn):
        return {name: dict.__getitem__(hyper, name) for name in dict.keys(hyper)}
    return dict(hyper)


def _as_plain(other: Any) -> Any:
    return plain(other) if isinstance(other, Mapping) else other


def _register(kind: type[PassedOn]) -> None:
    """Registers the class as a pytree like a plain dict; `jax.tree.map` reads all names and returns a plain dict."""

    def flatten(hyper: Any) -> tuple[list[Any], tuple[str, ...]]:
        names = tuple(sorted(dict.keys(hyper)))
        return [hyper[name] for name in names], names

    def unflatten(names: tuple[str, ...], values: Any) -> Any:
        return dict(zip(names, values, strict=True))

    jax.tree_util.register_pytree_node(kind, flatten, unflatten)


_register(PassedOn)
_register(Reads)
