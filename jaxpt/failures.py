"""How a run can end before its last step, other than by a wrong argument."""

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
