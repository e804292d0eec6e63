"""Errors that end a run before its last step, other than those for wrong arguments."""

import contextlib
import os
import re
from collections.abc import Iterator

EXIT_CODE = 75
"""Exit code of a process that was interrupted and can be resumed (EX_TEMPFAIL of sysexits.h)."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or cannot be read."""


class Diverged(RuntimeError):
    """A replica has diverged in a run with `diverged="stop"`, or no replica ever had a finite energy."""


class Interrupted(SystemExit):
    """A signal ended a run, which is saved. Uncaught, the error ends the process with `EXIT_CODE` and no traceback."""

    def __init__(self, message: str):
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextlib.contextmanager
def in_words(what: str) -> Iterator[None]:
    """Raises CheckpointError in place of any other error; the message is `what` and the error's first line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{what}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # the form of tensorstore's messages
        return os.strerror(int(code[1]))
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
