"""Flax NNX: layers whose strength is a hyperparameter, and the `Problem` of a model and a loss."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxpt.core.arguments import check_takes
from jaxpt.core.types import Batch, ModelState, Params, Problem
from jaxpt.models import noise
from jaxpt.models.assembly import assemble
from jaxpt.models.constructor import HiddenArrayError, holds_traced, shapes_of
from jaxpt.models.scores import Prediction, Score, scores, unknown


class Hyperparameter(nnx.Variable):
    """A number in a model that the engine fills by name before each step; `tag` is the name.

        self.scale = Hyperparameter(jnp.zeros(()), tag="scale")     # then read self.scale[...]

    It is neither trained nor part of a replica's weights, so a swap changes it like any other hyperparameter. Read it
    in training only: in evaluation, where all rungs are scored by the same function, it is NaN.
    """


class _Noise(nnx.Module):
    """Applies `apply(key, x, strength)` in training mode and nothing in evaluation mode."""

    def __init__(self, name: str, apply: Callable[[Key[Array, ""], Array, Array], Array], stream: str, rngs: nnx.Rngs):
        if not isinstance(name, str):
            raise ValueError(
                f"name must be a hyperparameter's, {type(self).__name__}('dropout_rate', rngs=rngs) say, but it is "
                f"{name!r}; the number itself goes on a ladder or into Engine(fixed={{name: number}})"
            )
        self.strength = Hyperparameter(jnp.zeros(()), tag=name)
        self.apply = apply
        self.deterministic = False
        self.rngs = rngs[stream].fork()

    def __call__(self, x: Array) -> Array:
        if self.deterministic:
            return x
        return self.apply(self.rngs(), x, self.strength[...])

    def set_view(self, deterministic: bool | None = None) -> None:
        """Switches between training and evaluation; called by `nnx.view`."""
        if deterministic is not None:
            self.deterministic = deterministic


class Dropout(_Noise):
    """Dropout whose rate is the hyperparameter `name`, a traced array (`nnx.Dropout` needs a Python number).

    Args:
        name: the hyperparameter that gives the rate, 0 to 1.
        rngs: random streams; the stream `dropout` is used.
    """

    def __init__(self, name: str = "dropout_rate", *, rngs: nnx.Rngs):
        super().__init__(name, noise.dropout, "dropout", rngs)


class GaussianNoise(_Noise):
    """Additive Gaussian noise whose standard deviation is the hyperparameter `name`; first in a model: input noise.

    Args:
        name: the hyperparameter that gives the standard deviation.
        rngs: random streams; the stream `noise` is used.
    """

    def __init__(self, name: str = "input_noise", *, rngs: nnx.Rngs):
        super().__init__(name, noise.gaussian, "noise", rngs)


def nnx_problem(
    make: Callable[..., nnx.Module],
    loss: Callable[..., Float[Array, " B"]],
    *,
    energy: Score | None = None,
    metrics: Mapping[str, Score] | None = None,
    predict: Callable[[Any, Batch], Float[Array, "B *K"]] | None = None,
    prediction: Prediction | None = None,
) -> Problem:
    """Returns the problem of a Flax NNX model with a loss.

    The engine sets the model to training or evaluation mode (`train()`, `eval()`), gives all its random streams new
    keys at each step and fills its `Hyperparameter` variables by name. It trains `nnx.Param` variables and carries
    every other variable (batch statistics) from step to step. The loss can read values that the model sows in a call,
    as attributes of their modules; they are dropped after the step, whatever their type of variable.

    >>> class Net(nnx.Module):
    ...     def __init__(self, *, rngs):
    ...         self.hidden, self.out = nnx.Linear(2, 32, rngs=rngs), nnx.Linear(32, 2, rngs=rngs)
    ...         self.dropout = jaxpt.Dropout("dropout_rate", rngs=rngs)
    ...
    ...     def __call__(self, x):
    ...         return self.out(self.dropout(nnx.tanh(self.hidden(x))))
    >>> sorted(jaxpt.nnx_problem(Net, loss).hyperparameters)
    ['dropout_rate']

    Args:
        make: the module's class, or a function; called as `make(rngs=nnx.Rngs(key))`.
        loss: `loss(model, batch)` or `loss(model, batch, hyper)` -> [B], one number per example.
        energy: the energy for exchanges, `energy(model, batch)` -> [B] in evaluation mode; the loss by default. Needed
            if the loss reads `hyper`, since all rungs must be scored by the same function.
        metrics: further functions to record in evaluation mode, {name: function(model, batch) -> [B]}; or
            `jaxpt.Metric`, for a metric with a direction or of a whole split.
        predict: `predict(model, batch)` -> logits [B, K], for `ensemble`; their softmax is the prediction. For a model
            that outputs probabilities, return their logarithm.
        prediction: kind of `predict`'s result: "classes", logits [B, ..., K] (for example per word or pixel); "binary",
            a logit [B, ...] per yes/no answer, whose sigmoid is the prediction; "values" [B, ...] of a regression. By
            default classes [B, K].

    Raises:
        ValueError: the loss reads `hyper` and no energy is given, a metric is called "energy", or an argument has the
            wrong type.
    """
    if isinstance(make, nnx.Module):
        raise ValueError(
            f"make must be {type(make).__name__}, the class, or a function: each replica gets fresh weights"
        )
    check_takes("make", make, named=["rngs"], hint="give a class, or lambda rngs: Net(64, rngs=rngs)")
    scores(loss, energy, metrics)  # checked before the model is traced

    def separate(model: nnx.Module) -> Any:
        return nnx.split(model, nnx.Param, Hyperparameter, nnx.RngState, ...)

    graphs: dict[bool, Any] = {}

    def made(key: Key[Array, ""], eager: bool) -> nnx.Module:
        with jax.ensure_compile_time_eval() if eager else contextlib.nullcontext():
            model = make(rngs=nnx.Rngs(key))
        if not isinstance(model, nnx.Module):
            raise ValueError(f"make must return an nnx.Module, but make(rngs=...) returns {model!r}")
        return _with_arrays_as_data(model)

    def structures(eager: bool) -> Any:
        model = made(jax.random.key(0), eager)
        for training in (True, False):
            model.train() if training else model.eval()
            graphs[training], *states = separate(model)
        return states

    (declared, hypers, streams, _), eager = shapes_of(structures, ": nnx.Variable(array)")

    def init(key: Key[Array, ""]) -> tuple[Params, ModelState]:
        _, params, _, _, rest = separate(made(key, eager))
        return params, rest

    def build(
        graph: Any, params: Params, rest: ModelState, hyper: Mapping[str, Array], key: Key[Array, ""]
    ) -> nnx.Module:
        model = nnx.merge(graph, params, _fill(hypers, hyper), _reseed(streams, key), rest, copy=True)
        return _computing_in(model, _kinds(params) - _kinds(declared))

    def bind(params: Params, rest: ModelState, hyper: Mapping[str, Array], key: Key[Array, ""]) -> nnx.Module:
        return build(graphs[True], params, rest, hyper, key)

    def carried(model: nnx.Module, rest: ModelState) -> ModelState:
        nnx.pop(model, nnx.Intermediate)
        _, _, _, _, after = separate(model)
        return _without_new(after, rest)

    def rebuild(params: Params, rest: ModelState) -> nnx.Module:
        return build(graphs[False], params, rest, unknown(names), jax.random.key(0))

    names = frozenset(variable.tag for _, variable in nnx.to_flat_state(hypers))
    options: Any = {"loss": loss, "energy": energy, "metrics": metrics, "predict": predict, "prediction": prediction}
    return assemble(init, bind, carried, rebuild, names, **options)


def _with_arrays_as_data(model: nnx.Module) -> nnx.Module:
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


def _without_new(after: nnx.State, before: nnx.State) -> nnx.State:
    """Returns a model's carried state after a step, without the variables that the step added (sown values)."""
    known = set(dict(nnx.to_flat_state(before)))
    return nnx.from_flat_state([(path, value) for path, value in nnx.to_flat_state(after) if path in known])


def _fill(hypers: nnx.State, values: Mapping[str, Array]) -> nnx.State:
    """Returns the state of `Hyperparameter` variables, filled with values by name."""
    return _replace_variables(hypers, lambda i, v: jnp.broadcast_to(jnp.asarray(values[v.tag]), v.shape))


def _kinds(params: Params) -> set[Any]:
    """Returns the floating-point types of weights."""
    return {leaf.dtype for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)}


def _computing_in(model: nnx.Module, kinds: set[Any]) -> nnx.Module:
    """Sets stock layers to compute in the type that weights were cast to (`with_compute_dtype`), if there is one.

    Otherwise BatchNorm, whose statistics are float32, would make all later layers compute in float32.
    """
    for kind in kinds:
        for _, node in nnx.iter_graph(model):
            layer: Any = node if isinstance(node, nnx.Module) and hasattr(node, "param_dtype") else None
            if getattr(layer, "dtype", kind) is None:
                layer.dtype = kind
    return model


def _reseed(streams: nnx.State, key: Key[Array, ""]) -> nnx.State:
    """Returns the state of random streams, each with a separate new key and its counter at zero."""

    def fresh(i: int, variable: Any) -> Array:
        if isinstance(variable, nnx.RngCount):
            return jnp.zeros(variable.shape, variable.dtype)
        own = jax.random.fold_in(key, i)
        return own if variable.shape == () else jax.random.split(own, variable.shape)

    return _replace_variables(streams, fresh)


def _replace_variables(state: nnx.State, value: Callable[[int, Any], Array]) -> nnx.State:
    """Returns the state with variable i (in the order of its leaves) holding `value(i, variable)`."""
    variables, treedef = jax.tree.flatten(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return jax.tree.unflatten(treedef, [v.replace(value(i, v)) for i, v in enumerate(variables)])
