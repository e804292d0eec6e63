"""Hyperparameters as dicts that record which names are read."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax


class PassedOn(dict[str, Any]):
    """Hyperparameters for a schedule: a dict that adds to `seen` which names are read one by one.

    What `{**h, ...}`, `dict(h)` or `h.items()` pass on does not count as read. Copies (`h.copy()`, `h | {...}`,
    `{...} | h`) go on counting; a name that was given another value does not count any more.
    """

    def __init__(self, hyper: Mapping[str, Any], seen: set[str], own: Iterable[str] = ()):
        super().__init__(plain(hyper))
        self.seen, self.own = seen, set(own)

    def __getitem__(self, name: str) -> Any:
        """Counts the name as read."""
        self._count((name,))
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        """Makes the name the caller's own."""
        self.own.add(name)
        super().__setitem__(name, value)

    def get(self, name: str, default: Any = None) -> Any:
        """Counts the name as read if it is there."""
        return self[name] if name in self else default  # noqa: SIM401

    def setdefault(self, name: str, default: Any = None) -> Any:
        """The same, and keeps the default."""
        if name not in self:
            self[name] = default
        return self[name]

    def pop(self, name: str, *default: Any) -> Any:
        """Counts the name as read if it is there."""
        if name in self:
            self._count((name,))
        return super().pop(name, *default)

    def update(self, *others: Any, **more: Any) -> None:
        """Makes the names the caller's own."""
        for name, value in dict(*map(_as_plain, others), **more).items():
            self[name] = value

    def copy(self) -> Any:
        """Returns a copy that counts into the same set."""
        return type(self)(self, self.seen, self.own)

    __copy__ = copy

    def __or__(self, other: Any) -> Any:
        """Returns a copy with the other's values."""
        merged = self.copy()
        merged.update(other)
        return merged

    def __ror__(self, other: Any) -> Any:
        """Returns the other with these values; only these count."""
        return type(self)({**_as_plain(other), **plain(self)}, self.seen, self.own | (set(other) - set(self)))

    def __ior__(self, other: Any) -> Any:
        """Makes the other's names the caller's own."""
        self.update(other)
        return self

    def _count(self, names: Iterable[str]) -> None:
        self.seen.update(set(names) - self.own)


class Reads(PassedOn):
    """The same for optimisers and losses, in which `**h`, `dict(h)`, `h.items()` and `h.values()` read all names."""

    def __iter__(self) -> Iterator[str]:
        """Has no effect but that `dict(h)` and `**h`, which bypass `[]` in plain dicts, use it."""
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
    """Makes it a pytree as a plain dict is one; `jax.tree.map` reads all names and returns a plain dict."""

    def flatten(hyper: Any) -> tuple[list[Any], tuple[str, ...]]:
        names = tuple(sorted(dict.keys(hyper)))
        return [hyper[name] for name in names], names

    def unflatten(names: tuple[str, ...], values: Any) -> Any:
        return dict(zip(names, values, strict=True))

    jax.tree_util.register_pytree_node(kind, flatten, unflatten)


_register(PassedOn)
_register(Reads)
