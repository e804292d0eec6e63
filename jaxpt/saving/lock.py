"""One run at a time in a directory: an operating system lock on a file in it, released when the process ends."""

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
except ImportError:  # Windows has no fcntl; nothing is locked there
    fcntl = None  # type: ignore[assignment]

_PATIENCE = 5.0  # seconds to wait: a killed process frees its memory before its locks
_PAUSE = 0.05
_HELD: weakref.WeakSet[FileIO] = weakref.WeakSet()


def lock(directory: Path) -> FileIO:
    """Locks a run's directory for this process.

    The lock is the operating system's, so a process that has ended cannot hold it; the file's text is for people only.
    A network file system passes the lock on to other hosts; on a file system without locks nothing is locked.

    Args:
        directory: the run's directory, which exists.

    Returns:
        The file; the lock lasts until it is closed, or this process ends.

    Raises:
        CheckpointError: another run holds the lock; the message states which.
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


def holder(directory: Path) -> dict[str, str | int] | None:
    """Returns what the lock's file says of the process that holds it, maybe nothing; None if none does.

    Changes nothing. A lock that is free is asked for, shared, and given back at once; a run that begins meanwhile
    waits for that.
    """
    if fcntl is None:
        return None
    try:
        file = (directory / "lock").open("rb", buffering=0)
    except OSError:  # no such file, or one that this user may not read
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return _signed(directory / "lock") or {}
        except OSError:  # a file system without locks
            pass
    return None


def _let_go() -> None:
    for file in list(_HELD):
        file.close()


# Otherwise a forked child, such as a data loader's worker, would keep the lock when this process is killed.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _taken(file: FileIO) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # NFS may raise this instead
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _sign(file: FileIO) -> None:
    """Writes the lock's holder into the file; on a full disk the lock still holds."""
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    signed = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(json.dumps(signed).encode())


def _holder(path: Path) -> str:
    """Returns the lock's holder, as written in the file."""
    signed = _signed(path)
    return "process {process} on {host} since {since}".format(**signed) if signed else "which does not say who it is"


def _signed(path: Path) -> dict[str, str | int] | None:
    try:
        signed = json.loads(path.read_text())
        return {"process": int(signed["process"]), "host": str(signed["host"]), "since": str(signed["since"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
