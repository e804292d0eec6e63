"""A stream while it is read: where a resumed run begins in it, and its position after each minibatch."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxpt.saving.progress import Position, checksum, from_text, to_text

METHODS = (("get_state", "set_state"), ("state_dict", "load_state_dict"))
"""The pairs of methods by which a stream, or its iterator, returns its position and takes it again."""


class _Place(NamedTuple):
    """An object that returns its position and takes it again."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]


class Source(Iterator[PyTree]):
    """The minibatches of a stream, as they come, after those of earlier calls.

    A stream with a pair of `METHODS`, or whose iterator has one, is set to the saved position, at a cost that does not
    grow with the run. Any other stream is read from its beginning: the minibatches of earlier calls are skipped, and
    the last of them must be the one that was used.

    Args:
        stream: the iterable of minibatches.
        taken: minibatches taken by earlier calls.
        position: the position after them; None if it is not known.

    Raises:
        ValueError: minibatches are to be skipped, but the stream is a generator that has been read from; the stream
            does not take the saved position.
    """

    def __init__(self, stream: Iterable[PyTree], taken: int = 0, position: Position | None = None):
        saved = None if position is None or not taken else position.state
        # A loader is told its position before it is iterated over; an iterator has one of its own.
        place = None if isinstance(stream, Iterator) else _place(stream)
        if place is not None:
            _set(place, saved)
        self._iterator = iter(stream)
        if place is None and (place := _place(self._iterator)) is not None:
            _set(place, saved)
        self._place, self._begins_anew = place, self._iterator is not stream
        self._expected, self._has_looked = None if position is None else position.checksum, False
        self.left_out = 0 if place is not None and saved is not None else taken
        """Minibatches that must be skipped before those of this call."""
        if self.left_out and inspect.isgenerator(stream) and inspect.getgeneratorstate(stream) != inspect.GEN_CREATED:
            raise ValueError(
                f"the stream is a generator that has already been read from, but a resumed run skips the {taken} "
                "minibatches that it used, from the beginning; make the generator anew for each call of fit, or give a "
                "stream whose position can be saved, such as a Grain iterator"
            )

    def __next__(self) -> PyTree:
        return next(self._iterator)

    def position(self, batch: PyTree) -> Position:
        """Returns the position after a minibatch, the last one taken.

        Raises:
            ValueError: the stream's state is not of a kind that a checkpoint keeps.
        """
        if self._place is None:
            return Position(checksum(batch))
        state = self._place.get()
        if not self._has_looked:
            self._has_looked = True
            before, address, _ = str(state).partition(" object at 0x")
            if address:
                warnings.warn(
                    f"the stream's state names an object by its address (...{before[-40:]}{address}...), so the stream "
                    "of another process may not take it, and the run cannot be resumed; give that class a __repr__ "
                    "that says what it is",
                    stacklevel=2,
                )
        return Position(checksum(batch), to_text(state))

    def check_skipped(self, last: PyTree) -> None:
        """Looks at the last skipped minibatch.

        A loader that gives other minibatches each time (shuffled without a seed) is warned of; an iterator may have
        been read from before, so that skipping would leave out the wrong minibatches.

        Raises:
            ValueError: the stream is an iterator, and the minibatch is not the one that was used.
        """
        if self._expected is None or checksum(jax.tree.map(np.asarray, last)) == self._expected:
            return
        found = (
            f"the stream's minibatch number {self.left_out}, the last that earlier calls of fit used, is not the one "
            "that they used"
        )
        if not self._begins_anew:
            raise ValueError(
                f"{found}: the iterator has been read from before, or its order is another one; give a new iterator in "
                "the same order, or a stream whose position can be saved, such as a Grain iterator"
            )
        warnings.warn(
            f"{found}: the loader's order is another one, so the result is not that of an uninterrupted run; seed its "
            "order, or give a loader whose position can be saved",
            stacklevel=2,
        )


def _place(thing: Any) -> _Place | None:
    """Returns the methods of a pair of `METHODS`; None if the object has none."""
    for get, put in METHODS:
        if callable(getattr(thing, get, None)) and callable(getattr(thing, put, None)):
            return _Place(getattr(thing, get), getattr(thing, put))
    return None


def _set(place: _Place, saved: str | None) -> None:
    """Sets a stream to a saved position, if there is one."""
    if saved is None:
        return
    try:
        place.set(from_text(saved))
    except Exception as error:
        raise ValueError(
            f"the stream does not take the position that the checkpoint holds: {type(error).__name__}: {error}; give "
            "the stream of the earlier call, or another directory"
        ) from error
