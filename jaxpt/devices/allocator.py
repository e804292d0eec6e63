"""How glibc, where there is one, hands memory back to the system."""

import ctypes
import os
import sys

_M_ARENA_MAX = -8
_ARENAS = 2


def few_arenas() -> None:
    """Lets malloc keep two pools instead of eight for each core, unless the environment says how many.

    A checkpoint's threads take whichever pools are free, and what they leave behind in all of them grows for hours.
    Pools that are there already stay, so this comes before any thread.
    """
    chosen = "MALLOC_ARENA_MAX" in os.environ or "malloc.arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    if not chosen and (mallopt := _glibc("mallopt")):
        mallopt(_M_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Gives back what is free: glibc keeps what a save's threads had."""
    if malloc_trim := _glibc("malloc_trim"):
        malloc_trim(0)


def _glibc(name: str) -> "ctypes._NamedFuncPointer | None":
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
