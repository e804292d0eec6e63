"""Arrays of an NNX model made under tracing: marked as data, or found where Flax does not find them."""

import jax
from flax import nnx

from jaxpt.models.constructor import HiddenArrayError, holds_traced


def with_arrays_as_data(model: nnx.Module) -> nnx.Module:
    """Returns a model made under tracing, with its plain arrays marked as data, as in a model made outside of tracing.

    Flax recognises arrays by their class. A traced array has another class, so it would become part of the static
    structure.
    """
    nodes = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Pytree)]
    for _, node in nodes:
        for name, value in list(vars(node).items()):
            if isinstance(value, jax.core.Tracer):
                setattr(node, name, nnx.data(value))
    found = set(map(id, [*(node for _, node in nodes), *jax.tree.leaves(nnx.state(model))]))
    for path, node in nodes:
        for name, value in vars(node).items():
            if not isinstance(value, nnx.Variable) and holds_traced(value, found):
                place = ".".join(map(str, (*path, name)))
                raise HiddenArrayError(
                    f"the model keeps an array drawn from its random key in {place}, a {type(value).__name__}, where "
                    "Flax does not find it; each replica has its own, so make it an attribute: nnx.Variable(array)"
                )
    return model
