"""From a Flax Linen module and a loss to a `Problem`."""

import inspect
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.errors import InvalidRngError
from jaxtyping import Array, Float, Key, PyTree

from jaxpt.linen import COLLECTION
from jaxpt.scores import Prediction, Score, declared_metrics, predictions, scores, takes_hyper, unknown
from jaxpt.types import Batch, ModelState, Params, Problem


def linen_problem(
    module: linen.Module,
    loss: Callable[..., Float[Array, " B"]],
    *,
    example: Any,
    sown: Sequence[str] = (),
    energy: Score | None = None,
    metrics: Mapping[str, Score] | None = None,
    train: str | None = None,
    predict: Callable[[Any, Batch], Float[Array, "B *K"]] | None = None,
    prediction: Prediction | None = None,
) -> Problem:
    """A Flax Linen model with a loss.

    The `model` that losses and metrics get is called like the module, `model(x)`; its variables, random keys and (if
    the module's `__call__` has one) the training flag are bound. `params` is trained, `hyperparameters` is filled by
    name (see `jaxpt.linen.Dropout`), every other collection is carried along.

    In training each random stream that the module asks for ("dropout", or a name of its own) has a key of its own, so
    that lifted transformations (`linen.scan`, `linen.RNN`, `linen.vmap`) split them as they were told.

    Values that the module sows are in `model.sown`, {collection: values}, after a call, and are not carried along: a
    loss may add `model.sown["losses"]`.

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
            named ones. Only shapes and dtypes matter.
        sown: collections that the module sows into, besides "intermediates". Needed only for those that add up what is
            sown (`reduce_fn`); others are found.
        energy: what exchanges look at, as in `nnx_problem`.
        metrics: further functions to record in evaluation mode.
        train: name of the module's boolean argument that is true in training; by default whichever it has of train,
            training, is_training, or deterministic (which is false in training).
        predict: `predict(model, batch)` -> logits, as in `nnx_problem`.
        prediction: as in `nnx_problem`.

    Raises:
        ValueError: the loss reads `hyper` and no energy is given, a metric is called "energy", the module has no
            argument called `train`, or it does not take the example.
    """
    if not isinstance(module, linen.Module):
        raise ValueError(f"module must be a Linen module, Net() rather than its class Net, but it is {module!r}")
    scored = scores(loss, energy, metrics)
    reads_hyper = takes_hyper(loss)
    arguments = list(inspect.signature(module.__call__).parameters)
    if train is not None and train not in arguments:
        raise ValueError(f"train={train!r} is no argument of the module's __call__, which has {', '.join(arguments)}")
    flags = [train] if train else [f for f in ("train", "training", "is_training", "deterministic") if f in arguments]

    inputs, named_inputs = _inputs(example, arguments)

    def mode(training: bool) -> dict[str, Any]:
        return {flag: training != (flag == "deterministic") for flag in flags}

    def variables(key: Key[Array, ""]) -> dict[str, PyTree]:
        given, named = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (inputs, named_inputs))
        return dict(module.init(key, *given, **{**mode(False), **named}))

    hypers = jax.eval_shape(variables, jax.random.key(0)).get(COLLECTION, {})
    named = jax.tree.map_with_path(lambda path, leaf: path[-1].key, hypers)
    names = frozenset(jax.tree.leaves(named))
    streams: set[str] = set()
    dropped = {"intermediates", *sown}

    class Bound:
        """The module with its variables; remembers what a call changed in them, and what it sowed."""

        def __init__(self, params: Params, rest: ModelState, hyper: Mapping[str, Array], key: Key[Array, ""] | None):
            self.params, self.rest, self.key, self.calls = params, rest, key, 0
            self.hyper = jax.tree.map(lambda name, leaf: jnp.broadcast_to(hyper[name], leaf.shape), named, hypers)
            self.sown: dict[str, PyTree] = {}

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            bound = {"params": self.params, COLLECTION: self.hyper, **self.rest}
            if self.key is None:
                out, sowed = module.apply(bound, *args, **{**mode(False), **kwargs}, mutable=list(dropped))
                self.sown = dict(sowed)
                return out
            key, self.calls = jax.random.fold_in(self.key, self.calls), self.calls + 1
            out, changed = _apply_with_streams(
                lambda rngs: module.apply(
                    bound, *args, **{**mode(True), **kwargs}, rngs=rngs, mutable=[*self.rest, *dropped]
                ),
                key,
                streams,
            )
            self.sown = {name: changed.pop(name) for name in dropped if name in changed}
            self.rest = {**self.rest, **changed}
            return out

    def init(key: Key[Array, ""]) -> tuple[Params, ModelState]:
        made = variables(key)
        return made.get("params", {}), {k: v for k, v in made.items() if k not in ("params", COLLECTION, *dropped)}

    def grown(key: Key[Array, ""]) -> Any:
        """Returns the carried collections before and after a call in training."""
        params, rest = init(key)
        model = Bound(params, rest, unknown(names), key)
        given, keywords = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (inputs, named_inputs))
        model(*given, **keywords)
        return rest, model.rest

    dropped |= _sown_into(grown)

    def training_loss(
        params: Params, rest: ModelState, batch: Batch, hyper: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[Array, ModelState]:
        model = Bound(params, rest, hyper, key)
        value = loss(model, batch, hyper) if reads_hyper else loss(model, batch)
        return value, model.rest

    def rebuild(params: Params, rest: ModelState) -> Bound:
        return Bound(params, rest, unknown(names), None)

    def evaluate(params: Params, rest: ModelState, batch: Batch) -> dict[str, Array]:
        model = rebuild(params, rest)
        return {name: score(model, batch) for name, score in scored.items()}

    return Problem(
        init,
        training_loss,
        evaluate,
        names,
        reads_hyper,
        rebuild,
        predictions(rebuild, predict, prediction),
        prediction,
        declared_metrics(metrics),
    )


def _inputs(example: Any, arguments: Sequence[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns a module's positional and its named inputs as shapes."""
    named: dict[str, Any] = {}
    if isinstance(example, Mapping):
        given: tuple[Any, ...] = ()
        named = dict(example)
        if absent := sorted(set(map(str, named)) - set(arguments)):
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


def _apply_with_streams(apply: Callable[[dict[str, Array]], Any], key: Key[Array, ""], streams: set[str]) -> Any:
    """Returns what `apply(rngs)` returns with a key for each random stream that the module asks for.

    Flax reports one missing stream at a time; this happens while tracing. A stream that the module still misses is one
    that a lifted transformation does not pass on: Flax then takes the stream "params".

    Args:
        apply: {stream: key} -> outputs.
        key: from which the streams' keys are made.
        streams: names known so far; those found are added.
    """
    while True:
        # One stream gets the key itself, others one by their name: which others there are changes nothing.
        own = {
            name: key if name == "dropout" else jax.random.fold_in(key, zlib.crc32(name.encode())) for name in streams
        }
        try:
            return apply(own)
        except InvalidRngError as error:
            found = re.search(r'needs PRNG for "([^"]+)"', str(error))
            missing = "params" if found is None or found[1] in streams else found[1]
            if missing in streams:
                raise
            streams.add(missing)


def _sown_into(call: Callable[[Key[Array, ""]], Any]) -> set[str]:
    """Returns the collections that grow in a call, given a function key -> (before, after); computes nothing."""
    try:
        before, after = jax.eval_shape(call, jax.random.key(0))
    except Exception:  # an example that does for initialisation only; the loss shows whether the module works
        return set()
    structures: list[dict[str, Any]] = [{k: jax.tree.structure(v) for k, v in side.items()} for side in (before, after)]
    return {name for name in before if structures[0][name] != structures[1][name]}
