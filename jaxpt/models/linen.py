"""Flax Linen: layers whose strength is a hyperparameter, and the `Problem` of a module and a loss."""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen
from jaxtyping import Array, Float, Key, PyTree

from jaxpt.core.types import Batch, ModelState, Params, Problem
from jaxpt.models import noise
from jaxpt.models.asked import asked
from jaxpt.models.assembly import assemble
from jaxpt.models.parts import Select, with_parts
from jaxpt.models.scores import Prediction, Score, scores, unknown
from jaxpt.models.streams import apply_with_streams

COLLECTION = "hyperparameters"
"""The variable collection whose entries the engine fills by name before each step."""


def _check_name(hyperparameter: Any) -> None:
    if not isinstance(hyperparameter, str):
        raise ValueError(
            f"hyperparameter must be a name, 'dropout_rate' say, but it is {hyperparameter!r}; the number itself goes "
            "on a ladder or into Engine(fixed={name: number})"
        )


Apply = Callable[[Key[Array, ""], Array, Array], Array]
"""(key, x, strength) -> x with noise."""


def _noisy(layer: Any, apply: Apply, stream: str, x: Array, deterministic: bool) -> Array:
    """Returns x with noise of the strength that a layer's hyperparameter gives, or x itself if `deterministic`."""
    if deterministic and not layer.is_initializing():
        return x  # a trained model's variables need no such collection
    strength = layer.variable(COLLECTION, layer.hyperparameter, jnp.zeros, ())
    return x if deterministic else apply(layer.make_rng(stream), x, strength.value)


class Dropout(linen.Module):
    """Dropout whose rate is the hyperparameter `hyperparameter`, a traced array.

    Attributes:
        hyperparameter: name of the hyperparameter that gives the rate, 0 to 1.
    """

    hyperparameter: str = "dropout_rate"

    def __post_init__(self) -> None:
        _check_name(self.hyperparameter)
        super().__post_init__()

    @linen.compact
    def __call__(self, x: Array, *, deterministic: bool) -> Array:
        """Returns x with dropout, or x itself if `deterministic`."""
        return _noisy(self, noise.dropout, "dropout", x, deterministic)


class GaussianNoise(linen.Module):
    """Additive Gaussian noise whose standard deviation is the hyperparameter `hyperparameter`.

    Attributes:
        hyperparameter: name of the hyperparameter that gives the standard deviation.
    """

    hyperparameter: str = "input_noise"

    def __post_init__(self) -> None:
        _check_name(self.hyperparameter)
        super().__post_init__()

    @linen.compact
    def __call__(self, x: Array, *, deterministic: bool) -> Array:
        """Returns x with noise, or x itself if `deterministic`."""
        return _noisy(self, noise.gaussian, "noise", x, deterministic)


def linen_problem(
    module: linen.Module,
    loss: Callable[..., Float[Array, " B"]],
    *,
    example: Any,
    wrt: Select = None,
    start: Mapping[str, PyTree] | None = None,
    energy: Score | None = None,
    metrics: Mapping[str, Score] | None = None,
    train: str | None = None,
    predict: Callable[[Any, Batch], Float[Array, "B *K"]] | None = None,
    prediction: Prediction | None = None,
) -> Problem:
    """Returns the problem of a Flax Linen module with a loss.

    Losses and metrics get a `model` that is called like the module, `model(x)`. Its variables, its random keys and its
    training flag (if the module's `__call__` has one) are already bound. The collection `params` is trained,
    `hyperparameters` is filled by name (see `jaxpt.linen.Dropout`), and every other collection is carried from step to
    step.

    In training each random stream that the module draws from ("dropout", or any other name) has a separate key, so
    lifted transformations (`linen.scan`, `linen.RNN`, `linen.vmap`) split streams as usual.

    After a call, values that the module sows are in `model.sown`, {collection: values}; they are not carried to the
    next step. A loss may add `model.sown["losses"]`.

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
        example: an input of the module, for its initialisation: an array, a tuple of positional inputs, or a dict of
            named inputs. Only shapes and dtypes matter.
        wrt: which of the `params` are trained: names of modules, such as "Dense_1" or "encoder/Dense_0", or a function
            (path, array) -> bool, as `flax.traverse_util.path_aware_map` takes one. The others are frozen: `start`
            gives them, and a run holds them once, not once per replica. By default all are trained.
        start: variables that every replica starts from, {"params": ..., ...}, as `module.init` or `load_model` returns
            them; otherwise as in `nnx_problem`.
        energy: the energy for exchanges, as in `nnx_problem`.
        metrics: further functions to record in evaluation mode.
        train: name of the module's boolean argument that is true in training; by default train, training, is_training
            or deterministic (false in training), if the module has one of them.
        predict: `predict(model, batch)` -> logits, as in `nnx_problem`.
        prediction: as in `nnx_problem`.

    Raises:
        ValueError: the loss reads `hyper` and no energy is given; a metric is called "energy"; the module has no
            argument called `train`, or does not accept the example; `wrt` and `start` as in `nnx_problem`.
    """
    if not isinstance(module, linen.Module):
        raise ValueError(f"module must be a Linen module, Net() rather than its class Net, but it is {module!r}")
    scores(loss, energy, metrics)  # checked before the module is traced
    parameters = inspect.signature(module.__call__).parameters
    arguments = list(parameters)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if train is not None and train not in arguments:
        raise ValueError(f"train={train!r} is no argument of the module's __call__, which has {', '.join(arguments)}")
    flags: list[str] = (
        [train] if train else [f for f in ("train", "training", "is_training", "deterministic") if f in arguments]
    )
    inputs, named_inputs = _inputs(example, arguments, takes_any)

    def zeros() -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (inputs, named_inputs))

    def variables(key: Key[Array, ""]) -> dict[str, PyTree]:
        given, named = zeros()
        return dict(module.init(key, *given, **{**_mode(flags, False), **named}))

    with asked() as found:
        hypers = _shapes(variables, inputs, named_inputs).get(COLLECTION, {})
    named = jax.tree.map_with_path(lambda path, leaf: path[-1].key, hypers)
    names = frozenset(jax.tree.leaves(named))
    setup = _Setup(module, flags, hypers, named, {("intermediates",), *found.sown}, {True: set(), False: set()})

    def init(key: Key[Array, ""]) -> tuple[Params, ModelState]:
        made, _ = _parted(variables(key), setup.sown)
        return made.get("params", {}), {k: v for k, v in made.items() if k not in ("params", COLLECTION)}

    def called(key: Key[Array, ""]) -> Any:
        params, rest = init(key)
        model = _Bound(setup, params, rest, unknown(names), key)
        given, keywords = zeros()
        model(*given, **keywords)
        return rest, model.rest

    with contextlib.suppress(Exception):  # the example may suit initialisation only; the loss gives better errors
        setup.sown.update((name,) for name in _grown(*jax.eval_shape(lambda: called(jax.random.key(0)))))
    options: Any = {"loss": loss, "energy": energy, "metrics": metrics, "predict": predict, "prediction": prediction}
    whole = assemble(
        init,
        partial(_Bound, setup),
        lambda model, rest: model.rest,
        lambda params, rest: _Bound(setup, params, rest, unknown(names), None),
        names,
        **options,
    )
    if isinstance(start, Mapping):  # as `module.init` returns it, with what the module sows
        start = {name: part for name, part in _parted(start, setup.sown)[0].items() if name != COLLECTION}
    return with_parts(whole, wrt, start)


class _Setup(NamedTuple):
    """A module, and what tracing it has shown."""

    module: linen.Module
    flags: list[str]
    """Arguments of its `__call__` that say whether it trains."""
    hypers: PyTree
    """Its hyperparameters as shapes."""
    named: PyTree
    """Their names, in the same structure."""
    sown: set[tuple[str, ...]]
    """Where it sows values; places that are found later are added."""
    streams: dict[bool, set[str]]
    """Random streams that it draws from in training (True) and in evaluation (False), likewise."""


def _mode(flags: Sequence[str], training: bool) -> dict[str, Any]:
    return {flag: training != (flag == "deterministic") for flag in flags}


class _Bound:
    """A module with its variables, in training if it has a key; keeps what a call changes and sows."""

    def __init__(
        self,
        setup: _Setup,
        params: Params,
        rest: ModelState,
        hyper: Mapping[str, Array],
        key: Key[Array, ""] | None,
    ):
        self._setup, self.params, self.rest, self.key, self.calls = setup, params, rest, key, 0
        self.hyper = jax.tree.map(
            lambda name, leaf: jnp.broadcast_to(hyper[name], leaf.shape), setup.named, setup.hypers
        )
        self.sown: dict[str, PyTree] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, flags, _, _, sown, streams = self._setup
        bound = {"params": self.params, COLLECTION: self.hyper, **self.rest}
        training = self.key is not None
        key = jax.random.fold_in(jax.random.key(0) if self.key is None else self.key, self.calls)
        self.calls += 1

        def apply(rngs: dict[str, Array]) -> Any:
            mutable = {*(self.rest if training else ()), *(path[0] for path in sown)}
            return module.apply(bound, *args, **{**_mode(flags, training), **kwargs}, rngs=rngs, mutable=[*mutable])

        out, changed = apply_with_streams(apply, key, streams[training], training, sown)
        carried, self.sown = _parted(changed, sown)
        self.rest = {**self.rest, **carried} if training else self.rest
        return out


def _inputs(example: Any, arguments: Sequence[str], takes_any: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns a module's positional and named inputs as shapes."""
    named: dict[str, Any] = {}
    if isinstance(example, Mapping):
        given: tuple[Any, ...] = ()
        named = dict(example)
        if not all(isinstance(name, str) for name in named):
            raise ValueError(f"example must be an input or {{name: input}}, but its names are {[*named]}")
        if not takes_any and (absent := sorted(set(map(str, named)) - set(arguments))):
            raise ValueError(
                f"example names the inputs {', '.join(named)}, but the module's __call__ has no {', '.join(absent)}; "
                f"it has {', '.join(arguments)}. An input that is a dict itself goes into a tuple: example=({{...}},)"
            )
    else:
        given = example if isinstance(example, tuple) and not hasattr(example, "_fields") else (example,)
    try:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), (given, named))
    except TypeError as error:
        raise ValueError(
            "example must be an input of the module, an array like x[:1], a tuple of such inputs, or a dict "
            f"{{name: input}}, but it is {example!r}"
        ) from error


def _shapes(variables: Callable[[Any], dict[str, PyTree]], inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Returns the shapes of a module's variables; raises an error that shows the inputs if the module rejects them."""
    try:
        return jax.eval_shape(lambda: variables(jax.random.key(0)))  # no key before: that would start the devices
    except Exception as error:
        shown = ", ".join([*map(_shown, inputs), *(f"{name}={_shown(each)}" for name, each in named.items())])
        raise ValueError(
            f"the module does not take the example: called with ({shown}) it ends in {type(error).__name__}: {error}"
        ) from error


def _shown(shapes: Any) -> str:
    """Returns an input's type and shape as text, such as float32[1,3]."""
    return str(jax.tree.map(lambda leaf: jax.core.ShapedArray(leaf.shape, leaf.dtype).str_short(), shapes))


def _parted(variables: Mapping[str, Any], sown: set[tuple[str, ...]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns two nested mappings: the variables without those at the `sown` paths, and those alone."""
    kept: dict[str, Any] = {}
    taken: dict[str, Any] = {}
    for name, value in variables.items():
        below = {path[1:] for path in sown if path[0] == name}
        if () in below:
            taken[name] = value
            continue
        parts = _parted(value, below) if below and isinstance(value, Mapping) else (value, {})
        kept |= {name: parts[0]} if parts[0] or not below else {}
        taken |= {name: parts[1]} if below and parts[1] else {}
    return kept, taken


def _grown(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """Returns the names of the collections whose structure a call has changed."""
    structures: list[dict[str, Any]] = [{k: jax.tree.structure(v) for k, v in side.items()} for side in (before, after)]
    return {name for name in before if structures[0][name] != structures[1][name]}
