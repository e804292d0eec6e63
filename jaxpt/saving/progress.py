"""What a checkpoint holds besides arrays: counts, time, and the position of the run's stream."""

import base64
import importlib
import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree


class Position(NamedTuple):
    """The position of a stream after a minibatch.

    Attributes:
        checksum: of that minibatch, see `checksum`.
        state: the stream's own state as text, see `to_text`; None if the stream has none.
    """

    checksum: int
    state: str | None = None


class Progress(NamedTuple):
    """A run's progress, besides its state and trace.

    Attributes:
        periods: whole periods done: the number of rows of the trace.
        seconds: wall time of the training so far.
        images: training examples so far, all replicas together.
        stream: the position of the training stream after these periods; None without a stream.
    """

    periods: int
    seconds: float
    images: int
    stream: Position | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields, ready for JSON."""
        return self._asdict() | {"stream": None if self.stream is None else self.stream._asdict()}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Progress":
        """Returns the progress that `as_dict` was called on."""
        stream = found.get("stream")
        return cls(**{**found, "stream": None if stream is None else Position(**stream)})


def checksum(batch: PyTree) -> int:
    """Returns the CRC-32 of a minibatch's arrays, leaves [B, ...]."""
    found = 0
    for leaf in jax.tree.leaves(batch):
        found = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), found)
    return found


def to_text(state: Any) -> str:
    """Returns a stream's state as text, which is JSON; unlike a pickle it holds no code.

    Args:
        state: numbers, text, bytes, NumPy arrays and PyTorch tensors, in dicts, lists and tuples.

    Raises:
        ValueError: it holds anything else.
    """
    return json.dumps(_to_json(state))


def from_text(text: str) -> Any:
    """Returns the state that `to_text` was called on, with values of the same types."""
    return _from_json(json.loads(text))


def _to_json(value: Any) -> Any:
    # All but plain values and lists become {kind: content}.
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_to_json(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [_to_json(item) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[_to_json(key), _to_json(item)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return {"scalar": _to_json(np.asarray(value))}
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        content = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": [value.dtype.str, list(value.shape), content]}
    if type(value).__module__ == "torch" and hasattr(value, "numpy"):
        return {"tensor": _to_json(value.detach().cpu().numpy())}
    raise ValueError(
        f"the stream's state holds a value of {type(value)}, which a checkpoint cannot keep; return numbers, text, "
        "bytes, NumPy arrays or tensors in dicts, lists and tuples, or leave out the method that returns it: a resumed "
        "run then reads the stream from its beginning"
    )


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tuple":
        return tuple(_from_json(content))
    if kind == "dict":
        return {_from_json(key): _from_json(item) for key, item in content}
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "scalar":
        return _from_json(content)[()]
    if kind == "tensor":  # a stream whose state holds tensors needs PyTorch anyway
        return importlib.import_module("torch").from_numpy(_from_json(content))
    dtype, shape, numbers = content
    return np.frombuffer(base64.b64decode(numbers), np.dtype(dtype)).reshape(shape).copy()
