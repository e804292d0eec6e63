"""One run at a time in a directory: the operating system's lock on a file in it, which ends with its process."""

import contextlib
import json
import os
import socket
import time
import weakref
from datetime import datetime
from io import FileIO
from pathlib import Path

from jaxpt.core.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

_PATIENCE = 5.0  # seconds: a process that was killed gives its memory back before its locks
_PAUSE = 0.05
_HELD: weakref.WeakSet[FileIO] = weakref.WeakSet()


def lock(directory: Path) -> FileIO:
    """Locks a run's directory for this process.

    What the file says is for people: the lock is the operating system's, and no process that is gone still has it. A
    network file system passes it on to other hosts; where a file system knows no locks, nothing is locked.

    Args:
        directory: of the run; it exists.

    Returns:
        The file; the lock lasts until it is closed, or this process ends.

    Raises:
        CheckpointError: another run has it; the message says which.
        OSError: the file cannot be opened.
    """
    path = directory / "lock"
    file = FileIO(path, "a+")
    until = time.monotonic() + _PATIENCE
    while not _taken(file):
        if time.monotonic() > until:
            holder = _holder(path)
            file.close()
            raise CheckpointError(
                f"{directory} is in use by another run, {holder}; wait for its end, or give another directory"
            )
        time.sleep(_PAUSE)
    _HELD.add(file)
    _sign(file)
    return file


def _let_go() -> None:
    for file in list(_HELD):
        file.close()


# A fork, a data loader's worker say, would otherwise keep a lock when this process is killed.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _taken(file: FileIO) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # NFS may say it in this way
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _sign(file: FileIO) -> None:
    """Writes down who holds the lock; on a full disk it is held all the same."""
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    signed = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(json.dumps(signed).encode())


def _holder(path: Path) -> str:
    """Returns who says to hold the lock."""
    try:
        signed = json.loads(path.read_text())
        return f"process {int(signed['process'])} on {signed['host']} since {signed['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which does not say who it is"
