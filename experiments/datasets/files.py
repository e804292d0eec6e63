"""Folders that are written whole or not at all, by one process at a time."""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it locked; others wait. What was made and stays empty is removed again.

    The lock is on the folder itself, so no lock file is left, and it ends with the process however that ends.

    Raises:
        OSError: the folder cannot be made.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares data in {folder}", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
        with _stoppable():
            yield
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for each in made:
                each.rmdir()


@contextlib.contextmanager
def part(folder: Path, name: str) -> Iterator[Path]:
    """Gives a new folder inside `folder`, which must be locked, and removes it at the end, moved or not.

    What a process that was killed outright has left under the same name is removed as well.
    """
    for stale in folder.glob(f".{name}-*.part"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", suffix=".part", dir=folder, ignore_cleanup_errors=True) as new:
        yield Path(new)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Makes SIGTERM unwind the stack, so that a process that is told to stop cleans up as after Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # Only the main thread may set handlers; a handler that someone else has set is theirs to keep.
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
