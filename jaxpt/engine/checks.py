"""Checks of an engine and its data before the first step, with errors in words."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxpt.core import tree
from jaxpt.core.arguments import check_takes
from jaxpt.core.cooldown import Cooldown
from jaxpt.core.data import Batches, Data
from jaxpt.core.decimals import shortest
from jaxpt.core.labels import extremes
from jaxpt.core.ladder import Ladder, check_values, require_beta
from jaxpt.core.search import Search
from jaxpt.core.state import RunState
from jaxpt.core.types import Problem, check_unchanged
from jaxpt.devices import execution, precision
from jaxpt.devices.fitting import automatic, check_fits
from jaxpt.devices.placement import Placement
from jaxpt.engine.names import check_all_read, check_names
from jaxpt.engine.reads import hyperparameters_read
from jaxpt.engine.replica import scheduled
from jaxpt.engine.spec import Spec, abstract_hyper
from jaxpt.engine.tracked import Reads
from jaxpt.models.scores import require_kind
from jaxpt.rules import Rule


def check_engine(engine: Spec) -> None:
    """Raises ValueError if an argument of the engine is out of range or does not fit the others."""
    _check_types(engine)
    _check_ladders(engine)
    ladders = engine.ladders.values()
    for name, low in {
        "every": 1,
        "burn_in": 0,
        "batch_size": 1,
        "evaluation_batch": 1,
        "probe": 1,
        "replicas_at_once": 1,
    }.items():
        value = getattr(engine, name)
        if value is None and name == "probe":
            continue
        if not isinstance(value, int | np.integer) or value < low:
            raise ValueError(f"{name} must be an integer of at least {low}, but it is {value!r}")
    _check_execution(engine)
    _check_search(engine)
    engine.rule.check(engine)
    for name, value in engine.fixed.items():
        if isinstance(value, str) or not (np.ndim(value) == 0 and math.isfinite(value)):
            raise ValueError(f"fixed[{name!r}] must be one finite number, the same for all replicas, not {value!r}")
        check_values(name, np.asarray(value))
    ladder_names = [name for ladder in ladders for name in ladder.values]
    if shared := sorted(set(ladder_names) & set(engine.fixed)):
        raise ValueError(f"{', '.join(shared)} cannot be both on a ladder and fixed; give it once")
    sizes = [float(v.max()) for ladder in ladders for k, v in ladder.values.items() if k == "batch_size"]
    largest = max([*sizes, engine.fixed.get("batch_size", 0.0)])
    if largest > engine.batch_size:
        raise ValueError(
            f"the hyperparameter batch_size reaches {largest:g}, but the engine draws minibatches of batch_size="
            f"{engine.batch_size}; give Engine(batch_size={math.ceil(largest)})"
        )
    check_names(engine)


def _check_types(engine: Spec) -> None:
    """Raises ValueError for arguments in the wrong place or of the wrong type."""
    if not isinstance(engine.problem, Problem):
        raise ValueError(
            "problem must come from nnx_problem, linen_problem, equinox_problem or energy_problem, but it is "
            f"{engine.problem!r}"
        )
    if not callable(engine.optimizer) or isinstance(engine.optimizer, tuple):
        raise ValueError(
            "optimizer must be a function from hyperparameters to an optax transformation, e.g. "
            f'lambda h: optax.sgd(h["learning_rate"]), but it is {engine.optimizer!r}'
        )
    check_unchanged(engine.problem)
    check_takes("optimizer", engine.optimizer, "hyperparameters")
    if engine.schedule is not None:
        check_takes("schedule", engine.schedule, "hyperparameters", "step")
    if not isinstance(engine.fixed, Mapping):
        raise ValueError(f'fixed must be {{name: value}}, e.g. {{"dropout_rate": 0.1}}, but it is {engine.fixed!r}')
    if not isinstance(engine.rule, Rule):
        raise ValueError(
            "rule must be an object like Tempering(C=100.0) or Independent(), of a class below jaxpt.Rule, but it is "
            f"{engine.rule!r}"
        )
    if not isinstance(engine.cooldown, Cooldown | None):
        raise ValueError(
            f"cooldown must be a share of the run, such as 0.3, or a jaxpt.Cooldown, but it is {engine.cooldown!r}"
        )
    if not isinstance(engine.search, Search | None):
        raise ValueError(
            f"search must be a share of the run, such as 0.1, or a jaxpt.Search, but it is {engine.search!r}"
        )
    if jax.tree_util.all_leaves([engine.rule]):
        raise ValueError(
            "rule must be a pytree, so that the run can carry its state; put @jax.tree_util.register_dataclass above "
            f"@dataclasses.dataclass(frozen=True) class {type(engine.rule).__name__}(jaxpt.Rule)"
        )
    hint = "write it as `def propose(self, key, seen)`, where seen is a jaxpt.Observation (seen.energy, seen.rung, ...)"
    check_takes("rule.propose", engine.rule.propose, "key", "seen", hint=hint)


def _check_ladders(engine: Spec) -> None:
    given = [engine.ladder] if isinstance(engine.ladder, Ladder) else list(engine.ladder)
    if not given or not all(isinstance(ladder, Ladder) for ladder in given):
        raise ValueError(f"ladder must be a Ladder or a sequence of them, but it is {engine.ladder!r}")
    sizes = {ladder.name: ladder.num_rungs for ladder in given}
    names = [name for ladder in given for name in ladder.values]
    if len(sizes) < len(given) or len(set(names)) < len(names):
        raise ValueError(
            "each hyperparameter may be on one ladder only, and each ladder needs its own name, but they are "
            + ", ".join(f"{ladder.name} ({', '.join(ladder.values)})" for ladder in given)
        )
    if len(set(sizes.values())) > 1:
        raise ValueError(
            "all ladders need the same number of rungs, because each replica holds one rung of each, but they have "
            + ", ".join(f"{name}: {size}" for name, size in sizes.items())
        )
    if engine.rule.needs_beta:
        for ladder in given:
            require_beta(ladder)
    if engine.rule.exchanges and engine.num_replicas < 2:
        raise ValueError(
            f"{type(engine.rule).__name__} needs at least two rungs, but the ladder has one; add rungs, or give "
            "rule=Independent()"
        )


def _check_search(engine: Spec) -> None:
    """Raises ValueError if the search does not fit ladders, periods, rule or cooldown."""
    search, cooldown = engine.beginning, engine.ending
    if search is None:
        return
    for ladder in engine.ladders.values():
        differences = [np.diff(values) for values in ladder.values.values()]
        if ladder.missing is not None and not all((d >= 0).all() or (d <= 0).all() for d in differences):
            values = ", ".join(f"{name} {shortest(values)}" for name, values in ladder.values.items())
            raise ValueError(
                f"the search needs rungs whose neighbours are alike; sort the values, which are {values}; or leave "
                "search out for a grid (jaxpt.product), which has no such order"
            )
    if search.share is None and search.end % engine.every:
        raise ValueError(
            f"steps of the search must be a multiple of every={engine.every}, since energies are compared at the end "
            f"of its last period, but it is {search.end}"
        )
    if getattr(engine.rule, "adapt_ladder", False):
        raise ValueError("both search and adapt_ladder=True move the rungs; leave out one of them")
    if engine.rule.swap_while_tuning:
        raise ValueError("swap_while_tuning=True would swap the rungs that the search compares; leave out one of them")
    begin = cooldown.begin if cooldown is not None and cooldown.share is None else None
    if search.share is None and begin is not None and begin < search.end:
        raise ValueError(
            f"the cooldown begins at step {begin}, before the search ends at step {search.end}; a search takes one "
            f"period or more, here every={engine.every} steps: run longer, or make one of them shorter"
        )


def _check_execution(engine: Spec) -> None:
    """Raises ValueError for unknown execution options, and for replicas that do not split evenly over the devices."""
    names = {"replica_axis": execution.NAMES, "precision": precision.NAMES, "diverged": ("keep", "stop", "respawn")}
    for name, known in names.items():
        if getattr(engine, name) not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, but it is {getattr(engine, name)!r}")
    if isinstance(engine.placement, Placement):
        check_fits(engine.placement, engine.num_replicas, engine.batch_size)
    elif engine.placement == "auto":
        automatic(engine.num_replicas)  # raises if the devices of several processes do not divide M
    else:
        raise ValueError(
            'placement must be "auto" or come from jaxpt.placement, e.g. jaxpt.placement.shard_map(jax.devices()), '
            f"but it is {engine.placement!r}"
        )


def check_state(engine: Spec, state: Any) -> None:
    """Raises ValueError if a state was made by an engine with another rule or other ladders."""
    if not isinstance(state, RunState):
        raise ValueError(f"state must come from engine.init(key) or an earlier run, but it is {state!r}")
    rule = type(state.rule).__name__
    if not _same_structure(state.rule, engine.rule):
        raise ValueError(
            f"the state was made by an engine with the rule {rule}, but this engine has {engine.rule!r}; make a new "
            "state with engine.init(key)"
        )
    if not _same_structure(state.ladders, engine.ladders):
        raise ValueError(
            f"the state's ladders are {', '.join(state.ladders)}, but this engine's are {', '.join(engine.ladders)}; "
            "make a new state with engine.init(key)"
        )


def _same_structure(a: PyTree, b: PyTree) -> bool:
    structures: list[Any] = [jax.tree.structure(tree) for tree in (a, b)]
    return structures[0] == structures[1]


def check_data(engine: Spec, data: Data) -> None:
    """Raises ValueError if the data does not fit the engine; computes nothing (see `Engine.check`)."""
    check_sizes(engine, data)
    if data.valid is not None and engine.problem.predict is not None:
        require_kind(engine.problem, data.valid)
        _check_predictions(engine.problem, data.valid)
    for name, split in data._asdict().items():
        if name == "train" or split is not None:
            _check_scores(engine, name, split, _is_label)
        if (ends := extremes(split)) is not None:
            _check_scores(engine, name, ends, _is_integer)


def _check_predictions(problem: Problem, valid: PyTree) -> None:
    """Raises ValueError if `predict` does not return one row per example."""
    few = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape[1:]), jnp.result_type(leaf)), valid)
    predict: Any = problem.predict
    found = jax.eval_shape(lambda key, batch: predict(*problem.init(key), batch), jax.random.key(0), few)
    if found.shape[:1] != (2,):
        raise ValueError(f"predict must return one row per example, (2, ...) for two, but it returns {found.shape}")


def check_minibatch(engine: Spec, batch: PyTree) -> None:
    """Raises ValueError if the loss rejects a minibatch on the host; the loss sees the values of its integers."""
    _check_scores(engine, "train", batch, _is_integer)


def check_sizes(engine: Spec, data: Data) -> None:
    """Raises ValueError if a split is missing, empty or too small; looks at shapes only."""
    sizes = {name: tree.leading(split, f"data.{name}") for name, split in data._asdict().items() if split is not None}
    if empty := [name for name, size in sizes.items() if size == 0 and name != "valid"]:
        raise ValueError(f"the {', '.join(empty)} split is empty; give examples, or leave it out (None)")
    if sizes.get("train", engine.batch_size) < engine.batch_size:
        raise ValueError(
            f"a minibatch has {engine.batch_size} examples, but the training split only {sizes['train']}; give the "
            f"engine batch_size={sizes['train']} or less"
        )
    if data.train is not None and not sizes.get("valid", 0):
        raise ValueError(
            "the validation split is empty or missing, but exchanges compare energies on it and the best replica is "
            "chosen on it; hold out some training examples as data.valid: fit(engine, train, valid) or "
            "jaxpt.Data(train, valid)"
        )
    if engine.probe is not None and sizes.get("valid", engine.probe) < engine.probe:
        raise ValueError(
            f"probe={engine.probe} is more than the validation split's {sizes['valid']} examples; give probe="
            f"{sizes['valid']} or less, or None for all of them"
        )


def with_batches(engine: Spec, data: Data, batches: Batches | None, periods: int) -> Data:
    """Returns the data with the first of the given minibatches as its training split, for `check_sizes`.

    Raises:
        ValueError: there is also a training split; the shape is wrong.
    """
    if batches is None:
        return data
    if data.train is not None:
        raise ValueError("both data.train and batches are given; leave one of them out")
    own = (engine.num_replicas,) if engine.own_batches else ()
    expected = (periods, *own, engine.every, engine.batch_size)
    shapes = [leaf.shape for leaf in jax.tree.leaves(batches)]
    if any(shape[: len(expected)] != expected for shape in shapes):
        names = "periods, replicas, every, batch_size" if own else "periods, every, batch_size"
        raise ValueError(
            f"batches must have the leading axes ({names}) = {expected}, but their shapes are "
            + ", ".join(map(str, shapes))
        )
    return data._replace(train=tree.take(batches.examples, (0,) * engine.batch_axes))


def _check_scores(engine: Spec, name: str, split: PyTree, is_shown: Callable[[Any], bool]) -> None:
    """Traces loss or metrics on one split; raises ValueError unless shapes, labels and hyperparameters are right."""
    size = 1 if split is None else tree.leading(split)
    leaves, treedef = jax.tree.flatten(split)
    shown = [is_shown(leaf) for leaf in leaves]
    seen: set[str] = set()

    def trace(score: Callable[..., Any], hidden: list[Array], key: Array, hyper: Mapping[str, Array]) -> Any:
        # Labels are closed over, not traced, so that the loss can check their values.
        rest = iter(hidden)
        batch = jax.tree.unflatten(treedef, [leaf if s else next(rest) for s, leaf in zip(shown, leaves, strict=True)])
        params, state = problem.init(key)
        hyper = scheduled(engine.schedule, dict(hyper), jnp.zeros((), jnp.int32))
        return score(params, state, batch, Reads(hyper, seen), key)

    problem = engine.problem
    shapes: dict[str, Any] = {}
    unseen = (leaf for s, leaf in zip(shown, leaves, strict=True) if not s)
    hidden = [jax.ShapeDtypeStruct(leaf.shape, jnp.result_type(leaf)) for leaf in unseen]
    scores: dict[str, Callable[..., Any]] = {}
    if name == "train":
        scores["the loss"] = lambda *args: {"loss": problem.loss(*args)[0]}
    if name != "train" or split is None:
        scores["the energy or a metric"] = lambda params, state, batch, hyper, key: problem.evaluate(
            params, state, batch
        )
    for what, score in scores.items():
        try:
            shapes |= jax.eval_shape(partial(trace, score), hidden, jax.random.key(0), abstract_hyper(engine))
        except Exception as error:
            raise ValueError(_explain(error, what, name, split, seen - set(abstract_hyper(engine)))) from error
    combined = {name for name, metric in problem.metrics if metric.finish or metric.whole}
    for score_name, shape in shapes.items():
        if score_name in combined:
            if any(leaf.shape[:1] != (size,) for leaf in jax.tree.leaves(shape)):
                raise ValueError(
                    f"the function of the metric {score_name!r} must return arrays with a row for each of the {size} "
                    f"examples, but their shapes are {[leaf.shape for leaf in jax.tree.leaves(shape)]}"
                )
        elif getattr(shape, "shape", None) != (size,):
            raise ValueError(
                f"{score_name} must give one number per example, shape ({size},), on the {size} example(s) of "
                f"data.{name}, but it gives {getattr(shape, 'shape', shape)}; leave out the mean or sum, or reduce all "
                "other axes"
            )
    if engine.problem.reads_hyper and name == "train":
        known = hyperparameters_read(engine.problem, engine.optimizer, engine.schedule, abstract_hyper(engine))
        check_all_read(engine, known | engine.problem.hyperparameters | {"batch_size"} | seen)


def _explain(error: Exception, what: str, name: str, split: PyTree, absent: set[str]) -> str:
    """Returns the message for an error from a user's function, traced on a split."""
    if isinstance(error, KeyError) and error.args and error.args[0] in absent:
        return f"the loss reads the hyperparameter {error}, which is on no ladder and not in fixed; add it to one"
    if split is None:
        how = "if it needs data, give jaxpt.Data(train, valid), or to fit train, valid"
        return f"{what} fails without data: {type(error).__name__}: {error}; {how}"
    listed = name == "train" and isinstance(split, list | tuple) and all(isinstance(part, Mapping) for part in split)
    how = "; a list of minibatches is not a stream: give fit iter(batches), or their arrays in one dict" * listed
    return f"{what} fails on data.{name}: {type(error).__name__}: {error}{how}"


def _is_integer(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and np.issubdtype(leaf.dtype, np.integer)


def _is_label(leaf: Any) -> bool:
    """Returns whether an array is concrete and may hold classes: integers, one per example."""
    concrete = isinstance(leaf, jax.Array | np.ndarray) and not isinstance(leaf, jax.core.Tracer)
    return concrete and np.ndim(leaf) == 1 and np.issubdtype(leaf.dtype, np.integer)
