"""Signals that end a run; they are recorded until the run has saved a checkpoint."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from tqdm.auto import tqdm

from jaxpt.core.errors import Interrupted
from jaxpt.devices.processes import is_first

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Request:
    """Records whether a signal has asked for the end of the run."""

    name: str | None = None
    """The signal's name; None before a signal."""
    answered: bool = False
    """Whether the run has ended because of it."""


@contextlib.contextmanager
def requests(wanted: bool = True) -> Iterator[Request]:
    """Yields a `Request` that the first SIGTERM or SIGINT fills in; a second signal ends the process at once.

    Args:
        wanted: if false, or outside the main thread, signals keep their usual handlers.
    """
    request = Request()

    def ask(number: int, _: object) -> None:
        if request.name is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        request.name = signal.Signals(number).name
        with contextlib.suppress(OSError):  # os.write, unlike print, is safe at any time
            os.write(
                2,
                f"\n{request.name}: the run ends after this period and is saved; again: it ends at once\n".encode(),
            )

    if not wanted or threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if request.name is not None and not request.answered:  # too late for the run: sent again
            os.kill(os.getpid(), signal.Signals[request.name])


def interrupted(
    request: Request, description: str, step: int, steps: int, directory: str | os.PathLike[str] | None
) -> Interrupted:
    """Returns the error that ends a run after a signal, and prints its message in the first process."""
    request.answered = True
    what = (
        f"{description} was interrupted by {request.name or 'a signal to another process'} after step {step} of {steps}"
    )
    kept = f"it is saved in {directory}" if step else "nothing is trained yet"
    message = f"{what}; {kept}, and the same call goes on from there"
    if is_first():
        with tqdm.external_write_mode(file=sys.stderr):  # keeps it off the progress bar's line
            print(message, file=sys.stderr)
    return Interrupted(message)
