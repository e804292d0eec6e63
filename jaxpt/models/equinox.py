"""Equinox: layers whose strength is a hyperparameter, and the `Problem` of a model and a loss."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxpt.core import tree
from jaxpt.core.arguments import check_takes
from jaxpt.core.extras import extra
from jaxpt.core.types import ModelState, Params, Problem
from jaxpt.models import noise
from jaxpt.models.assembly import assemble
from jaxpt.models.equinox_module import Hyperparameter, Traced, arrays_of, entries, filled, place_of, places, traced
from jaxpt.models.scores import Metric, Prediction, Score, required, scores, unknown

__all__ = ["Dropout", "GaussianNoise", "Hyperparameter", "equinox_problem", "update"]


@tree.register(data=("strength", "inference"))
@dataclasses.dataclass(frozen=True, init=False)
class Dropout:
    """Dropout whose rate is a hyperparameter, a traced array; called as `self.dropout(x, key=key)`.

    Attributes:
        strength: the rate, 0 to 1.
        inference: whether the layer returns x itself; set by `equinox.nn.inference_mode`.
    """

    strength: Hyperparameter
    inference: bool

    def __init__(self, name: str = "dropout_rate", inference: bool = False):
        """Takes the name of the hyperparameter that gives the rate."""
        object.__setattr__(self, "strength", Hyperparameter(name))
        object.__setattr__(self, "inference", inference)

    def __call__(self, x: Array, *, key: Key[Array, ""] | None = None) -> Array:
        """Returns x with dropout, or x itself in inference; raises ValueError if a key is needed and not given."""
        return x if self.inference else noise.dropout(_given(key, "Dropout"), x, self.strength.value)


@tree.register(data=("strength", "inference"))
@dataclasses.dataclass(frozen=True, init=False)
class GaussianNoise:
    """Additive Gaussian noise whose standard deviation is a hyperparameter; called as `self.noise(x, key=key)`.

    Attributes:
        strength: the standard deviation.
        inference: whether the layer returns x itself; set by `equinox.nn.inference_mode`.
    """

    strength: Hyperparameter
    inference: bool

    def __init__(self, name: str = "input_noise", inference: bool = False):
        """Takes the name of the hyperparameter that gives the standard deviation."""
        object.__setattr__(self, "strength", Hyperparameter(name))
        object.__setattr__(self, "inference", inference)

    def __call__(self, x: Array, *, key: Key[Array, ""] | None = None) -> Array:
        """Returns x with noise, or x itself in inference; raises ValueError if a key is needed and not given."""
        return x if self.inference else noise.gaussian(_given(key, "GaussianNoise"), x, self.strength.value)


def _given(key: Key[Array, ""] | None, layer: str) -> Key[Array, ""]:
    if key is None:
        raise ValueError(f"{layer} needs a random key in training; pass one on: layer(x, key=key)")
    return key


def equinox_problem(
    make: Callable[..., Any],
    loss: Callable[..., Any],
    *,
    wrt: PyTree = None,
    energy: Score | None = None,
    metrics: Mapping[str, Score] | None = None,
    predict: Callable[..., Float[Array, "B *K"]] | None = None,
    prediction: Prediction | None = None,
) -> Problem:
    """Returns the problem of an Equinox model with a loss.

    A model of Equinox takes ONE example, so the loss maps it over the minibatch with `jax.vmap`:

    >>> import equinox as eqx
    >>> make = lambda key: eqx.nn.MLP(2, 2, width_size=32, depth=1, key=key)
    >>> def loss(model, batch):
    ...     return jaxpt.cross_entropy(jax.vmap(model)(batch["x"]), batch["y"])
    >>> in_equinox = jaxpt.equinox_problem(make, loss)
    >>> found = jaxpt.fit(dataclasses.replace(engine, problem=in_equinox), train, valid, steps=50)
    >>> jax.vmap(found.best().model)(valid["x"]).shape
    (80, 2)

    A loss that also takes `key` gets a new random key in each step, for dropout. A stateful model (`BatchNorm`) comes
    with an `equinox.nn.State`: the loss takes it as `state` and returns (losses, new state):

        def loss(model, batch, *, state, key):
            keys = jax.random.split(key, len(batch["x"]))
            mapped = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
            logits, state = mapped(batch["x"], state, keys)
            return jaxpt.cross_entropy(logits, batch["y"]), state

    The energy, metrics and `predict` take `key` and `state` by the same names. They get the model in inference mode
    (`equinox.nn.inference_mode`), always the same key, and may return the state as well; it is dropped. In training the
    model is as `make` returns it.

    The weights of a replica are nested dicts of arrays, named as the model's fields; see `jaxpt.equinox.update`.

    Args:
        make: function of a key that returns a `equinox.Module`, or what `equinox.nn.make_with_state` returns, a pair of
            a module and its state. It is called as `make(key=key)` if it has an argument of that name, else as
            `make(key)`. A module with stateful layers may come without its state.
        loss: `loss(model, batch)` or `loss(model, batch, hyper)` -> [B], one number per example; with `key` and `state`
            as above.
        wrt: what is trained, a filter of Equinox: a function of a leaf, or a pytree of such functions and of bools. By
            default `equinox.is_inexact_array`. Arrays of floats that are left out stay as they are.
        energy: the energy for exchanges, as in `nnx_problem`.
        metrics: further functions to record in evaluation mode.
        predict: `predict(model, batch)` -> logits, as in `nnx_problem`.
        prediction: as in `nnx_problem`.

    Raises:
        ValueError: the loss reads `hyper` and no energy is given; a metric is called "energy"; `make` takes no key or
            returns no module; the module is stateful and the loss takes no state, or the reverse; nothing is trained.
        ModuleNotFoundError: equinox is not installed.
    """
    eqx = extra("equinox", "equinox", "equinox_problem")
    if isinstance(make, eqx.Module):
        raise ValueError(
            f"make must be {type(make).__name__}, the class, or a function of a key: each replica gets fresh weights"
        )
    named = callable(make) and "key" in _parameters(make)
    keys: tuple[tuple[str, ...], tuple[str, ...]] = ((), ("key",)) if named else (("key",), ())
    check_takes("make", make, *keys[0], named=keys[1], hint="give a class, or lambda key: Net(64, key=key)")
    scores(_passing(loss), energy, metrics)  # checked before the model is traced
    model = traced(eqx, lambda key: make(key=key) if named else make(key), wrt)
    _require_state(model, {"loss": loss, "energy": energy, "predict": predict, **(metrics or {})})

    def in_evaluation(params: Params, rest: ModelState) -> _Bound:
        return _Bound(model, False, params, rest, unknown(model.hyperparameters), jax.random.key(0))

    def users_model(params: Params, rest: ModelState) -> Any:
        found = in_evaluation(params, rest)
        return found.model if model.state is None else (found.model, found.state)

    problem = assemble(
        model.init,
        partial(_Bound, model, True),
        lambda bound, rest: bound.carried(rest),
        in_evaluation,
        model.hyperparameters,
        loss=_passing(loss),
        energy=_passing(energy),
        metrics=metrics and {name: _passing(score) for name, score in metrics.items()},
        predict=_passing(predict),
        prediction=prediction,
    )
    return problem._replace(model=users_model)


def update(model: Any, weights: Mapping[str, Any]) -> Any:
    """Returns a model with the weights that `jaxpt.load_model` has read.

        model = jaxpt.equinox.update(Net(jax.random.key(0)), jaxpt.load_model("best"))
        model = equinox.nn.inference_mode(model)

    Args:
        model: an Equinox module of the same form; for a stateful one the pair of it and its state.
        weights: {"params": ..., "buffers": ..., "state": ...}, nested dicts, without what the model does not have.

    Returns:
        A module, or the pair of a module and its state.

    Raises:
        ValueError: the weights are those of another model.
        ModuleNotFoundError: equinox is not installed.
    """
    eqx = extra("equinox", "equinox", "jaxpt.equinox.update")
    module, state = model if isinstance(model, tuple) else (model, None)
    given = {**places(weights.get("params", {})), **places(weights.get("buffers", {}))}
    given |= {("state", *place): leaf for place, leaf in places(weights.get("state", {})).items()}
    before = {} if state is None else entries(state)
    wanted = {**arrays_of(eqx, module), **places({"state": before})}
    shapes = [{place: jnp.shape(leaf) for place, leaf in each.items()} for each in (given, wanted)]
    if shapes[0] != shapes[1]:
        place = min(place for place in {**given, **wanted} if shapes[0].get(place) != shapes[1].get(place))
        raise ValueError(
            f"the weights are those of another model: {'.'.join(place)} has the shape {shapes[0].get(place, 'none')} "
            f"there and {shapes[1].get(place, 'none')} in the model; a stateful model is given as (model, state)"
        )
    again = filled(eqx, module, {place: jnp.asarray(leaf) for place, leaf in given.items()}, None)
    if state is None:
        return again
    values = jax.tree.map_with_path(lambda path, _: jnp.asarray(given[("state", *place_of(path))]), before)
    return again, type(state).tree_unflatten(tuple(values), tuple(values.values()))


class _Bound:
    """A module with its arrays, its state and a random key; keeps the state that a function returns."""

    def __init__(self, traced: Traced, training: bool, params: Params, rest: ModelState, hyper: Any, key: Any):
        self.model = traced.filled(traced.training if training else traced.inference, params, rest, hyper)
        self.key = key
        self._traced, self._rest = traced, rest
        self._after: Any = None

    @property
    def state(self) -> Any:
        """The state before the call; None if the module has none."""
        return self._traced.filled_state(self._rest)

    def call(self, function: Callable[..., Any], batch: Sequence[Any], names: frozenset[str]) -> Any:
        """Returns the value of a user's function, without the state that it may return beside it."""
        try:
            out = function(self.model, *batch, **{name: getattr(self, name) for name in names})
        except NameError as error:
            if "axis" not in str(error):
                raise
            raise ValueError(
                f"{error}: a layer such as BatchNorm looks at the whole minibatch by the name of its axis; write "
                "jax.vmap(model, axis_name=..., in_axes=(0, None), out_axes=(0, None)) with the layer's axis_name"
            ) from error
        if isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], self._traced.eqx.nn.State):
            out, self._after = out
        return out

    def carried(self, rest: ModelState) -> ModelState:
        """Returns the model state after the loss, with the state that it returned.

        Raises:
            ValueError: it returned none, or one of another shape.
        """
        if self._traced.state is None:
            return rest
        if self._after is None:
            raise ValueError("a loss that takes state must return (losses, state), but it returns the losses alone")
        after = entries(self._after)
        shapes = [jax.tree.map(jnp.shape, each) for each in (rest["state"], after)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the loss returns a state of the shapes {shapes[1]}, but it was given {shapes[0]}; map the model by "
                "jax.vmap(model, axis_name=..., in_axes=(0, None), out_axes=(0, None)), so that examples share a state"
            )
        return {**rest, "state": after}


def _require_state(model: Traced, functions: Mapping[str, Callable[..., Any] | None]) -> None:
    """Raises ValueError if a function takes a state that there is not, or the loss none that there is."""
    takes = {name: "state" in _parameters(function) for name, function in functions.items() if function is not None}
    if model.state is None and any(takes.values()):
        raise ValueError(
            f"{next(name for name, does in takes.items() if does)} takes state, but the module that make returns has "
            "no stateful layers; leave state out"
        )
    if model.state is not None and not takes["loss"]:
        raise ValueError(
            "the module that make returns is stateful, so the loss must take its state and return the new one: "
            "def loss(model, batch, *, state), which returns (losses, state)"
        )


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    """Returns the arguments that a function or a metric takes; none if that is not known."""
    try:
        return inspect.signature(function.function if isinstance(function, Metric) else function).parameters
    except (TypeError, ValueError):
        return {}


def _passing(function: Any) -> Any:
    """Returns a function of a `_Bound` that hands a user's function its module, and key and state if it takes them.

    What is not a function is returned as it is, for `scores` to refuse.
    """
    if isinstance(function, Metric):
        return dataclasses.replace(function, function=_passing(function.function))
    if not callable(function):
        return function
    names = frozenset(_parameters(function)) & {"key", "state"}
    if required(function) - sum(_is_required(_parameters(function)[name]) for name in names) > 2:
        return lambda bound, batch, hyper: bound.call(function, (batch, hyper), names)
    return lambda bound, *batch: bound.call(function, batch, names)


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
