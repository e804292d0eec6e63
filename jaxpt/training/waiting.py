"""Waiting for a stream's next minibatches without missing signals and checkpoints that are due."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxpt.core.data import Batches
from jaxpt.training.stream import Prefetch

_POLL = 0.2  # seconds between checks for signals


class Wait:
    """Waits for a run's next minibatches; all processes of a run end the wait together.

    Args:
        asked: whether a signal has asked for the end of the run.
        due: whether it is time for a checkpoint.
    """

    def __init__(self, asked: Callable[[], bool], due: Callable[[], bool]):
        self._asked, self._due = asked, due

    def next(self, feed: Iterator[Batches | None], save: Callable[[], None]) -> tuple[Batches | None, bool]:
        """Returns the next minibatches, None after the last, and whether a signal ended the wait.

        Args:
            feed: the iterator of minibatches.
            save: writes a checkpoint of the steps done, unless they are already saved; called when one is due, when a
                signal ends the wait, and before an error of the stream is raised.

        Raises:
            ValueError: the stream raises it, or the stream of another process has failed; a checkpoint is saved first.
        """
        if not isinstance(feed, Prefetch):
            return next(feed, None), False
        while True:
            ready = feed.ready(_POLL)
            ready, failed, asked, due = _agreed(ready, feed.failed, self._asked(), self._due())
            if failed or asked or (due and not ready):
                save()
            if failed:
                if feed.failed:
                    next(feed)
                raise ValueError("the stream of another process has failed, see its message")
            if asked:
                return None, True
            if ready:
                return next(feed, None), False


def _agreed(ready: bool, failed: bool, asked: bool, due: bool) -> tuple[bool, bool, bool, bool]:
    """Returns whether all processes are ready, and for each other flag whether any process has set it."""
    if jax.process_count() == 1:
        return ready, failed, asked, due
    each = np.asarray(multihost_utils.process_allgather(np.array([ready, failed, asked, due])))
    return bool(each[:, 0].all()), bool(each[:, 1].any()), bool(each[:, 2].any()), bool(each[:, 3].any())
