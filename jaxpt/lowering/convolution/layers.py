"""Installs the faster convolution in every layer of a user's model."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

from flax import nnx
from jax import lax

from jaxpt.lowering.convolution.general import conv_general_dilated

Model = TypeVar("Model", bound=nnx.Module)


@overload
def fast_convolutions(model: Model) -> Model: ...


@overload
def fast_convolutions(model: Callable[..., Model]) -> Callable[..., Model]: ...


def fast_convolutions(model: Any) -> Any:
    """Sets `conv_general_dilated` in every `nnx.Conv` of a Flax NNX model; layers and parameters do not change.

        problem = jaxpt.nnx_problem(jaxpt.fast_convolutions(Net), loss)

    A layer with a function other than lax's keeps it; `nnx.ConvTranspose` is not changed. In a Linen module, pass the
    function to its layers: `linen.Conv(8, (3, 3), conv_general_dilated=...)`.

    Args:
        model: a model; or its class, or a function that makes it, called with any arguments.

    Returns:
        The same model, changed in place; for a class or function, a function that makes such a model.

    Raises:
        TypeError: `model` is neither a model nor callable, or its result is not an `nnx.Module`.
    """
    if isinstance(model, nnx.Module):
        for _, node in nnx.iter_graph(model):
            # The layer calls this attribute; only lax's own function is replaced, not a user's.
            if isinstance(node, nnx.Conv) and node.conv_general_dilated is lax.conv_general_dilated:
                node.conv_general_dilated = conv_general_dilated
        return model
    if not callable(model):
        raise TypeError(f"expected a Flax NNX module, its class or a function that makes it, not {model!r}")

    # The model is made later, by the caller; `wraps` keeps the signature.
    @functools.wraps(model)
    def fast(*args: Any, **kwargs: Any) -> nnx.Module:
        made = model(*args, **kwargs)
        # The result of a function is known only now.
        if not isinstance(made, nnx.Module):
            raise TypeError(f"expected a function that makes a Flax NNX module, but it made {type(made).__name__}")
        # A module by now, so this is the first case above.
        return fast_convolutions(made)

    return fast
