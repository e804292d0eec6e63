"""Records what a Linen module requests from Flax during tracing: random streams, and collections to sow into."""

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
        looked: random streams whose presence was queried, `has_rng(name)`.
        lost: streams among `drawn` that were not available where keys were drawn.
        sown: paths of sown values: collection, names of modules, name.
    """

    drawn: set[str]
    looked: set[str]
    lost: set[str]
    sown: set[tuple[str, ...]]


@contextlib.contextmanager
def asked() -> Iterator[Asked]:
    """Collects the requests of modules in the block, in this thread.

    Flax reports missing streams by an error, one at a time. It reports nothing if the module first checks whether the
    stream exists, or if another stream serves as its fallback. So three of Flax's methods are replaced during the
    block, by one thread at a time.
    """
    found, thread = Asked(set(), set(), set(), set()), threading.get_ident()
    inside = False  # `make_rng` itself calls `has_rng`, also for the fallback stream

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
