"""The command `jaxpt DIRECTORY`, or `python -m jaxpt DIRECTORY`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

import jax

from jaxpt.core.errors import CheckpointError
from jaxpt.results import status
from jaxpt.results.directory import look
from jaxpt.saving.files import local_path

_CLOSED = 128 + 13
"""The exit code of a program that ends at the signal SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Reports what a run's directory holds, and changes nothing in it.

    Args:
        arguments: the command line; by default that of the process.

    Returns:
        The exit code: 0; 1 if the directory holds no run; 2 for wrong arguments; 141 if the reader of a pipe closed it.
    """
    parser = argparse.ArgumentParser(
        "jaxpt",
        description="Reports what the directory of a run holds: its progress, its best replica, its settings. Changes "
        "nothing in it, and may be used during the run.",
    )
    parser.add_argument("directory", help="the directory that was given to fit")
    parser.add_argument("--json", action="store_true", help="write JSON instead of text")
    parser.add_argument("--report", metavar="FILE", help="also write a page of HTML with pictures")
    parser.add_argument("--title", default="Parallel tempering", help="title of that page")
    given = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # an accelerator belongs to the run
    try:
        run = look(local_path("DIRECTORY", given.directory))
        print(json.dumps(status.as_dict(run), indent=1) if given.json else status.as_text(run), flush=True)
        if not run.is_run:
            return 1
        if given.report is not None:
            status.write_report(run, local_path("--report", given.report), given.title)
            print(f"report written to {given.report}", file=sys.stderr)
    except BrokenPipeError:  # whoever reads has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python reports it again at exit
        return _CLOSED
    except (ValueError, OSError, ModuleNotFoundError, CheckpointError) as error:
        print(f"jaxpt: {error}", file=sys.stderr)
        return 2
    return 0
