"""Adapters from a user's model and loss to `Problem`: Flax NNX, Flax Linen, a bare energy function."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jaxtyping import Array, Float, Key, PyTree

from jaxpt.arguments import check_takes
from jaxpt.linen import COLLECTION
from jaxpt.nn import Hyperparameter
from jaxpt.types import Batch, ModelState, Params, Problem

Metric = Callable[[Any, Batch], Array]
"""(model in evaluation mode, batch) -> [B], one number per example."""


def nnx_problem(
    make: Callable[..., nnx.Module],
    loss: Callable[..., Float[Array, " B"]],
    *,
    energy: Metric | None = None,
    metrics: Mapping[str, Metric] | None = None,
    predict: Callable[[Any, Batch], Float[Array, "B K"]] | None = None,
) -> Problem:
    """A Flax NNX model with a loss.

    The engine puts the model into training or evaluation mode (`train()`, `eval()`), gives all its random streams new
    keys at each step, fills its `Hyperparameter` variables by name, trains its `nnx.Param` and carries every other
    variable (batch statistics) along. Values that the model sows (`nnx.Intermediate`) are dropped.

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
        make: called as `make(rngs=nnx.Rngs(key))`: the module's class, or a function.
        loss: `loss(model, batch)` or `loss(model, batch, hyper)` -> [B], one number per example.
        energy: what exchanges look at, `energy(model, batch)` -> [B] in evaluation mode; the loss by default.
            Needed when the loss reads `hyper`: all rungs must be scored by the same function.
        metrics: further functions to record in evaluation mode, {name: function(model, batch) -> [B]}.
        predict: `predict(model, batch)` -> logits [B, K], for `mixture`; their softmax is what the model says. A model
            that gives probabilities returns their logarithm.

    Raises:
        ValueError: the loss reads `hyper` and no energy is given, a metric is called "energy", or an argument is of the
            wrong kind.
    """
    if isinstance(make, nnx.Module):
        raise ValueError(
            f"make must be {type(make).__name__}, the class, or a function: each replica gets fresh weights"
        )
    check_takes("make", make, named=["rngs"], hint="give a class, or lambda rngs: Net(64, rngs=rngs)")
    scores = _scores(loss, energy, metrics)
    reads_hyper = _takes_hyper(loss)

    def separate(model: nnx.Module) -> Any:
        return nnx.split(model, nnx.Param, Hyperparameter, nnx.RngState, ...)

    abstract: Any = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    if not isinstance(abstract, nnx.Module):
        raise ValueError(f"make must return an nnx.Module, but make(rngs=...) returns {abstract!r}")
    abstract.train()
    training, declared, hypers, streams, _ = separate(abstract)
    abstract.eval()
    evaluation, *_ = separate(abstract)

    def init(key: Key[Array, ""]) -> tuple[Params, ModelState]:
        _, params, _, _, rest = separate(make(rngs=nnx.Rngs(key)))
        return params, rest

    def build(
        graph: Any, params: Params, rest: ModelState, hyper: Mapping[str, Array], key: Key[Array, ""]
    ) -> nnx.Module:
        model = nnx.merge(graph, params, _fill(hypers, hyper), _reseed(streams, key), rest, copy=True)
        return _computing_in(model, _kinds(params) - _kinds(declared))

    def training_loss(
        params: Params, rest: ModelState, batch: Batch, hyper: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[Array, ModelState]:
        model = build(training, params, rest, hyper, key)
        value = loss(model, batch, hyper) if reads_hyper else loss(model, batch)
        nnx.pop(model, nnx.Intermediate)
        _, _, _, _, rest = separate(model)
        return value, rest

    def rebuild(params: Params, rest: ModelState) -> nnx.Module:
        return build(evaluation, params, rest, _unknown(names), jax.random.key(0))

    def evaluate(params: Params, rest: ModelState, batch: Batch) -> dict[str, Array]:
        model = rebuild(params, rest)
        return {name: score(model, batch) for name, score in scores.items()}

    names = frozenset(variable.tag for _, variable in nnx.to_flat_state(hypers))
    return Problem(init, training_loss, evaluate, names, reads_hyper, rebuild, _probabilities(rebuild, predict))


def linen_problem(
    module: linen.Module,
    loss: Callable[..., Float[Array, " B"]],
    *,
    example: Array,
    energy: Metric | None = None,
    metrics: Mapping[str, Metric] | None = None,
    train: str | None = None,
    predict: Callable[[Any, Batch], Float[Array, "B K"]] | None = None,
) -> Problem:
    """A Flax Linen model with a loss.

    The `model` that losses and metrics get is called like the module, `model(x)`; its variables, random keys and (if
    the module's `__call__` has one) the training flag are bound. `params` is trained,
    `hyperparameters` is filled by name (see `jaxpt.linen.Dropout`), every other collection is carried along.

    >>> class Net(linen.Module):
    ...     @linen.compact
    ...     def __call__(self, x, train):
    ...         x = linen.tanh(linen.Dense(32)(x))
    ...         return linen.Dense(2)(jaxpt.linen.Dropout("dropout_rate")(x, deterministic=not train))
    >>> sorted(jaxpt.linen_problem(Net(), loss, example=train["x"][:1]).hyperparameters)
    ['dropout_rate']

    Args:
        module: the module.
        loss: `loss(model, batch)` or `loss(model, batch, hyper)` -> [B], one number per example.
        example: an input of the module, for its initialisation; only shape and dtype matter.
        energy: what exchanges look at, as in `nnx_problem`.
        metrics: further functions to record in evaluation mode.
        train: name of the module's boolean argument that is true in training; by default whichever it has of train,
            training, is_training, or deterministic (which is false in training).
        predict: `predict(model, batch)` -> logits [B, K], as in `nnx_problem`.

    Raises:
        ValueError: the loss reads `hyper` and no energy is given, a metric is called "energy", or the module has no
            argument called `train`.
    """
    if not isinstance(module, linen.Module):
        raise ValueError(f"module must be a Linen module, Net() rather than its class Net, but it is {module!r}")
    if isinstance(example, Mapping):
        raise ValueError(f"example must be one input of the module, an array like x[:1], but it is {type(example)}")
    scores = _scores(loss, energy, metrics)
    reads_hyper = _takes_hyper(loss)
    arguments = list(inspect.signature(module.__call__).parameters)
    if train is not None and train not in arguments:
        raise ValueError(f"train={train!r} is no argument of the module's __call__, which has {', '.join(arguments)}")
    flags = [train] if train else [f for f in ("train", "training", "is_training", "deterministic") if f in arguments]

    def mode(training: bool) -> dict[str, Any]:
        return {flag: training != (flag == "deterministic") for flag in flags}

    def variables(key: Key[Array, ""]) -> dict[str, PyTree]:
        return dict(module.init(key, jnp.zeros(jnp.shape(example), jnp.result_type(example)), **mode(False)))

    hypers = jax.eval_shape(variables, jax.random.key(0)).get(COLLECTION, {})
    named = jax.tree.map_with_path(lambda path, leaf: path[-1].key, hypers)
    names = frozenset(jax.tree.leaves(named))

    class Bound:
        """The module with its variables; remembers what a call changed in them."""

        def __init__(self, params: Params, rest: ModelState, hyper: Mapping[str, Array], key: Key[Array, ""] | None):
            self.params, self.rest, self.key, self.calls = params, rest, key, 0
            self.hyper = jax.tree.map(lambda name, leaf: jnp.broadcast_to(hyper[name], leaf.shape), named, hypers)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            bound = {"params": self.params, COLLECTION: self.hyper, **self.rest}
            if self.key is None:
                return module.apply(bound, *args, **{**mode(False), **kwargs})
            key, self.calls = jax.random.fold_in(self.key, self.calls), self.calls + 1
            out, changed = module.apply(
                bound, *args, **{**mode(True), **kwargs}, rngs={"params": key}, mutable=list(self.rest)
            )
            self.rest = {**self.rest, **changed}
            return out

    def init(key: Key[Array, ""]) -> tuple[Params, ModelState]:
        made = variables(key)
        return made["params"], {k: v for k, v in made.items() if k not in ("params", COLLECTION, "intermediates")}

    def training_loss(
        params: Params, rest: ModelState, batch: Batch, hyper: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[Array, ModelState]:
        model = Bound(params, rest, hyper, key)
        value = loss(model, batch, hyper) if reads_hyper else loss(model, batch)
        return value, model.rest

    def rebuild(params: Params, rest: ModelState) -> Bound:
        return Bound(params, rest, _unknown(names), None)

    def evaluate(params: Params, rest: ModelState, batch: Batch) -> dict[str, Array]:
        model = rebuild(params, rest)
        return {name: score(model, batch) for name, score in scores.items()}

    return Problem(init, training_loss, evaluate, names, reads_hyper, rebuild, _probabilities(rebuild, predict))


def energy_problem(
    energy: Callable[..., Array],
    init: Callable[[Key[Array, ""]], Params],
    *,
    metrics: Mapping[str, Callable[..., Array]] | None = None,
) -> Problem:
    """A bare energy over a pytree of parameters, with or without data.

    >>> wells = jaxpt.energy_problem(lambda w: 20 * (w**2 - 1) ** 2, jax.random.normal, metrics={"w": lambda w: w})
    >>> step = lambda h: jaxpt.langevin(1e-3, h["temperature"])
    >>> ladder = jaxpt.Ladder(temperature=[1.0, 3.0, 10.0])
    >>> found = jaxpt.fit(jaxpt.Engine(wells, step, ladder, jaxpt.Tempering(C=1.0), every=20), steps=400)
    >>> found.trace.valid["w"].shape  # [periods, replicas]
    (20, 3)

    Args:
        energy: `energy(params)` -> [] for a problem without data, or `energy(params, batch)` -> [B].
        init: key -> params.
        metrics: further functions of the same form to record.

    Raises:
        ValueError: a metric is called "energy".
    """
    check_takes("init", init, "key")
    scores = _scores(energy, None, metrics)
    needs_batch = _required(energy) > 1

    def score(function: Callable[..., Array], params: Params, batch: Batch) -> Array:
        value = function(params, batch) if needs_batch else function(params)
        if not needs_batch and jnp.size(value) != 1:
            raise ValueError(f"a function of the parameters alone must give one number, not shape {jnp.shape(value)}")
        return value if needs_batch else jnp.reshape(value, (1,))

    def training_loss(
        params: Params, rest: ModelState, batch: Batch, hyper: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[Array, ModelState]:
        return score(energy, params, batch), rest

    def evaluate(params: Params, rest: ModelState, batch: Batch) -> dict[str, Array]:
        return {name: score(function, params, batch) for name, function in scores.items()}

    return Problem(lambda key: (init(key), ()), training_loss, evaluate, model=lambda params, rest: params)


def _unknown(names: frozenset[str]) -> dict[str, Array]:
    """Hyperparameters in evaluation: NaN, so that a model which reads them there cannot go unnoticed."""
    return dict.fromkeys(names, jnp.full((), jnp.nan))


def _takes_hyper(loss: Callable[..., Array]) -> bool:
    """Whether a loss has a third argument without a default: `loss(model, batch, hyper)`."""
    return _required(loss) > 2


def _required(function: Callable[..., Any]) -> int:
    """Returns how many positional arguments without a default a function has."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def _scores(
    loss: Callable[..., Array], energy: Metric | None, metrics: Mapping[str, Metric] | None
) -> dict[str, Callable[..., Array]]:
    """Collects what evaluation computes: the energy first, then the metrics."""
    if not isinstance(metrics or {}, Mapping):
        raise ValueError(f'metrics must be {{name: function}}, e.g. {{"error": error}}, but it is {metrics!r}')
    for name, function in {"loss": loss, "energy": energy or loss, **(metrics or {})}.items():
        if not callable(function):
            raise ValueError(f"{name} must be a function (model, batch) -> [B], but it is {function!r}")
    if _takes_hyper(loss) and energy is None:
        raise ValueError(
            "the loss reads hyperparameters, so it would score each rung by a function of its own; "
            "give energy=..., a function (model, batch) -> [B] that is the same for all"
        )
    if metrics and "energy" in metrics:
        raise ValueError('a metric may not be called "energy"; that name belongs to what exchanges look at')
    return {"energy": energy or loss, **(metrics or {})}


def _probabilities(
    rebuild: Callable[[Params, ModelState], Any], predict: Callable[[Any, Batch], Array] | None
) -> Callable[[Params, ModelState, Batch], Float[Array, "B K"]] | None:
    """Returns `Problem.predict` from a function (model, batch) -> logits."""
    if predict is None:
        return None
    return lambda params, rest, batch: jax.nn.softmax(predict(rebuild(params, rest), batch), axis=-1)


def _fill(hypers: nnx.State, values: Mapping[str, Array]) -> nnx.State:
    """Returns the state of `Hyperparameter` variables with their named values."""
    return _replace_variables(hypers, lambda i, v: jnp.broadcast_to(jnp.asarray(values[v.tag]), v.shape))


def _kinds(params: Params) -> set[Any]:
    """Returns the floating-point types of weights."""
    return {leaf.dtype for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)}


def _computing_in(model: nnx.Module, kinds: set[Any]) -> nnx.Module:
    """Tells stock layers to compute in the type that weights were cast to (`with_compute_dtype`), if there is one.

    Else BatchNorm, whose statistics are float32, would make float32 of everything behind it.
    """
    for kind in kinds:
        for _, node in nnx.iter_graph(model):
            layer: Any = node if isinstance(node, nnx.Module) and hasattr(node, "param_dtype") else None
            if getattr(layer, "dtype", kind) is None:
                layer.dtype = kind
    return model


def _reseed(streams: nnx.State, key: Key[Array, ""]) -> nnx.State:
    """Returns the state of random streams, each with a key of its own and its counter at zero."""

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
