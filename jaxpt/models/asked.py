"""What a Linen module asks Flax for while JAX traces it: random streams, and collections to sow into."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from flax import linen
from flax.core import Scope

_PATCH = threading.RLock()


class Asked(NamedTuple):
    """Names, collected while a module is traced.

    Attributes:
        drawn: random streams that keys were drawn from, `make_rng(name)`.
        looked: random streams whose presence was asked for, `has_rng(name)`.
        lost: of those drawn, the streams that did not reach the place where they were drawn.
        sown: where values were sown: collection, names of modules, name.
    """

    drawn: set[str]
    looked: set[str]
    lost: set[str]
    sown: set[tuple[str, ...]]


@contextlib.contextmanager
def asked() -> Iterator[Asked]:
    """Collects what modules ask for in the block, in this thread.

    Flax tells which streams a module wants by an error, one at a time, and not at all where the module asks first
    whether there is one, or where another stream stands in. So its three methods are replaced for as long as the block
    lasts; one thread at a time does so.
    """
    found, thread = Asked(set(), set(), set(), set()), threading.get_ident()
    inside = False  # `make_rng` asks `has_rng` itself, for its stand-in too

    def has_rng(self: Scope, name: str) -> bool:
        if threading.get_ident() == thread and not inside:
            found.looked.add(name)
        return has(self, name)

    def make_rng(self: Scope, name: str = "params") -> Any:
        nonlocal inside
        if threading.get_ident() != thread:
            return make(self, name)
        found.drawn.add(name)
        inside = True
        try:
            if not has(self, name):
                found.lost.add(name)
            return make(self, name)
        finally:
            inside = False

    def sow(self: linen.Module, col: str, name: str, *args: Any, **kwargs: Any) -> bool:
        if threading.get_ident() == thread:
            found.sown.add((col, *self.path, name))
        return sow_(self, col, name, *args, **kwargs)

    with _PATCH:
        has, make, sow_ = Scope.has_rng, Scope.make_rng, linen.Module.sow
        Scope.has_rng, Scope.make_rng, linen.Module.sow = has_rng, make_rng, sow  # type: ignore[method-assign]
        try:
            yield found
        finally:
            Scope.has_rng, Scope.make_rng, linen.Module.sow = has, make, sow_  # type: ignore[method-assign]
