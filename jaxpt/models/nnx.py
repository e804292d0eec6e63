"""Flax NNX: layers whose strength is a hyperparameter, and the `Problem` of a model and a loss."""

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxpt.core.arguments import check_takes
from jaxpt.core.types import Batch, Given, ModelState, Params, Problem, with_given
from jaxpt.models import noise
from jaxpt.models.assembly import assemble
from jaxpt.models.constructor import shapes_of
from jaxpt.models.given import Path, check_selected, flat, matched
from jaxpt.models.hidden import with_arrays_as_data
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
    wrt: Any = nnx.Param,
    start: Any = None,
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
        wrt: which `nnx.Param` variables are trained: a filter of Flax NNX, such as `nnx.LoRAParam`, a function
            (path, variable) -> bool, or `nnx.Not(...)`. The others are frozen: `start` gives them, and a run holds them
            once, not once per replica.
        start: weights that every replica starts from, by name: a module, `nnx.state(module)` or `load_model(path)`. It
            may be a part of the model's; each replica draws the rest. Frozen arrays keep their type, others get the
            model's.
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
            wrong type; `wrt` selects nothing; names or shapes of `start` are not the model's, or a frozen weight is
            missing.
    """
    if isinstance(make, nnx.Module):
        raise ValueError(
            f"make must be {type(make).__name__}, the class, or a function: each replica gets fresh weights; to start "
            "from those of a model give start=model"
        )
    check_takes("make", make, named=["rngs"], hint="give a class, or lambda rngs: Net(64, rngs=rngs)")
    scores(loss, energy, metrics)  # checked before the model is traced

    model = _Model(make, wrt)
    options: Any = {"loss": loss, "energy": energy, "metrics": metrics, "predict": predict, "prediction": prediction}
    over = partial(_problem, model, options)
    given = model.given(start)
    return over(None) if given is None else with_given(over, given)


class _Model:
    """A model's constructor, and what tracing it has shown.

    Args:
        make: the constructor.
        wrt: filter of the weights that are trained.
    """

    def __init__(self, make: Callable[..., nnx.Module], wrt: Any):
        try:
            self._trained = nnx.All(nnx.Param, wrt)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "wrt must be a filter of Flax NNX, such as nnx.LoRAParam or a function (path, variable) -> bool, but "
                f"it is {wrt!r}"
            ) from error
        self._make = make
        self.graphs: dict[bool, Any] = {}
        shapes, self.eager = shapes_of(self._structures, ": nnx.Variable(array)")
        self.hypers, self.streams, self.params, self._frozen, self._rest = shapes
        self.names = frozenset(variable.tag for _, variable in nnx.to_flat_state(self.hypers))
        weights = [path for part in (self.params, self._frozen) for path, _ in nnx.to_flat_state(part)]
        if isinstance(wrt, str) or (isinstance(wrt, list | tuple) and any(isinstance(one, str) for one in wrt)):
            raise ValueError(
                f"wrt must be a filter of Flax NNX, but it is {wrt!r}; a function selects by name: "
                "wrt=lambda path, variable: path[0] == 'out'"
            )
        check_selected(wrt, jax.tree.leaves(self.params), weights)

    def separate(self, model: nnx.Module) -> Any:
        """Returns graph, hyperparameters, random streams, trained weights, frozen weights and the rest."""
        return nnx.split(model, Hyperparameter, nnx.RngState, self._trained, nnx.Param, ...)

    def made(self, key: Key[Array, ""], eager: bool) -> nnx.Module:
        """Returns a new model; `eager` as in `shapes_of`."""
        with jax.ensure_compile_time_eval() if eager else contextlib.nullcontext():
            model = self._make(rngs=nnx.Rngs(key))
        if not isinstance(model, nnx.Module):
            raise ValueError(f"make must return an nnx.Module, but make(rngs=...) returns {model!r}")
        return with_arrays_as_data(model)

    def given(self, start: Any) -> Given | None:
        """Returns given weights as states of the model's variables; None if there are none and none are needed.

        Raises:
            ValueError: see `matched`.
        """
        parts = [dict(nnx.to_flat_state(part)) for part in (self.params, self._rest, self._frozen)]
        frozen = parts[-1]
        if start is None and not frozen:
            return None
        wanted = {path: variable for part in parts for path, variable in part.items()}
        # Random streams and hyperparameters are the engine's, whatever they were.
        others = {path for part in (self.hypers, self.streams) for path, _ in nnx.to_flat_state(part)}
        arrays = {path: array for path, array in _arrays(start).items() if path not in others}
        states = (
            nnx.from_flat_state([(path, wanted[path].replace(array)) for path, array in found.items()])
            for found in matched(arrays, wanted, frozen)
        )
        return Given(*states)

    def _structures(self, eager: bool) -> Any:
        model = self.made(jax.random.key(0), eager)
        for training in (True, False):
            model.train() if training else model.eval()
            self.graphs[training], *states = self.separate(model)
        return states


def _problem(model: _Model, options: dict[str, Any], given: Given | None) -> Problem:
    """Returns the problem of a model with given weights, which are only passed on."""

    def init(key: Key[Array, ""]) -> tuple[Params, ModelState]:
        _, _, _, params, _, rest = model.separate(model.made(key, model.eager))
        return (params, rest) if given is None else (_begun(params, given.start), _begun(rest, given.start))

    def build(
        graph: Any, params: Params, rest: ModelState, hyper: Mapping[str, Array], key: Key[Array, ""]
    ) -> nnx.Module:
        kinds = _kinds(params) - _kinds(model.params)
        frozen = nnx.State({}) if given is None else _in_kind(given.frozen, kinds)
        states = params, frozen, _fill(model.hypers, hyper), _reseed(model.streams, key), rest
        return _computing_in(nnx.merge(graph, *states, copy=True), kinds)

    def bind(params: Params, rest: ModelState, hyper: Mapping[str, Array], key: Key[Array, ""]) -> nnx.Module:
        return build(model.graphs[True], params, rest, hyper, key)

    def carried(trained: nnx.Module, rest: ModelState) -> ModelState:
        nnx.pop(trained, nnx.Intermediate)
        *_, after = model.separate(trained)
        return _without_new(after, rest)

    def rebuild(params: Params, rest: ModelState) -> nnx.Module:
        return build(model.graphs[False], params, rest, unknown(model.names), jax.random.key(0))

    def complete(params: Params, rest: ModelState) -> tuple[Params, ModelState]:
        return (params if given is None else nnx.merge_state(params, given.frozen)), rest

    return assemble(init, bind, carried, rebuild, model.names, complete=complete, **options)


def _arrays(start: Any) -> dict[Path, Any]:
    """Returns the arrays of a model, a state or nested dicts by their paths, without random streams."""
    state = nnx.state(start) if isinstance(start, nnx.Module) else {} if start is None else start
    found = {}
    for path, leaf in flat(state).items():
        if isinstance(leaf, nnx.RngState | Hyperparameter | nnx.Intermediate):
            continue
        array = leaf[...] if isinstance(leaf, nnx.Variable) else leaf
        if not jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            found[path] = array
    return found


def _begun(state: nnx.State, start: nnx.State) -> nnx.State:
    """Returns new weights with the given ones in their places."""
    given = dict(nnx.to_flat_state(jax.tree.map(jnp.asarray, start)))
    return nnx.from_flat_state([(path, given.get(path, value)) for path, value in nnx.to_flat_state(state)])


def _in_kind(frozen: nnx.State, kinds: set[Any]) -> nnx.State:
    """Returns frozen weights in the type that trained ones were cast to (`with_compute_dtype`), if there is one."""
    frozen = jax.tree.map(jnp.asarray, frozen)
    for kind in kinds:
        frozen = jax.tree.map(lambda leaf: leaf.astype(kind) if _is_float(leaf) else leaf, frozen)  # noqa: B023
    return frozen


def _without_new(after: nnx.State, before: nnx.State) -> nnx.State:
    """Returns a model's carried state after a step, without the variables that the step added (sown values)."""
    known = set(dict(nnx.to_flat_state(before)))
    return nnx.from_flat_state([(path, value) for path, value in nnx.to_flat_state(after) if path in known])


def _fill(hypers: nnx.State, values: Mapping[str, Array]) -> nnx.State:
    """Returns the state of `Hyperparameter` variables, filled with values by name."""
    return _replace_variables(hypers, lambda i, v: jnp.broadcast_to(jnp.asarray(values[v.tag]), v.shape))


def _kinds(params: Params) -> set[Any]:
    """Returns the floating-point types of weights."""
    return {leaf.dtype for leaf in jax.tree.leaves(params) if _is_float(leaf)}


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


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
