"""Settings of glibc's malloc, where available, so that it returns memory to the system."""

import ctypes
import os
import sys

_M_ARENA_MAX = -8
_ARENAS = 2


def few_arenas() -> None:
    """Limits malloc to two arenas instead of eight per core, unless the environment sets a number.

    A checkpoint's threads use whichever arenas are free, and the memory left behind in all of them grows for hours.
    Existing arenas stay, so call this before any thread starts.
    """
    chosen = "MALLOC_ARENA_MAX" in os.environ or "malloc.arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    if not chosen and (mallopt := _glibc("mallopt")):
        mallopt(_M_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Returns free memory to the system; otherwise glibc keeps the memory of a save's threads."""
    if malloc_trim := _glibc("malloc_trim"):
        malloc_trim(0)


def _glibc(name: str) -> "ctypes._NamedFuncPointer | None":
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
