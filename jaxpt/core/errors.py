"""How a run can end before its last step, other than by a wrong argument."""

import contextlib
import os
import re
from collections.abc import Iterator

EXIT_CODE = 75
"""With which a process ends that was interrupted and can be resumed (EX_TEMPFAIL of sysexits.h)."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or cannot be read."""


class Diverged(RuntimeError):
    """A replica has diverged in a run that was to stop then."""


class Interrupted(SystemExit):
    """A signal ended a run, which is saved: uncaught, it ends the process with `EXIT_CODE` and no traceback."""

    def __init__(self, message: str):
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextlib.contextmanager
def in_words(what: str) -> Iterator[None]:
    """Raises CheckpointError in place of any other error, with what failed and the error's first line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{what}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # tensorstore's
        return os.strerror(int(code[1]))
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
