"""Whether an example's energy depends on the examples beside it: then it depends on how a split is sliced, too."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from jaxpt.core import tree
from jaxpt.core.data import Data
from jaxpt.core.types import Batch, ModelState, Params, Problem
from jaxpt.devices import placement
from jaxpt.engine.rowwise import is_rowwise

_MANY = 64  # examples, drawn over the whole split; fewer if they are large
_BYTES = 2**26  # of the examples that are evaluated, about
_MATCHED = 32  # of them, at most, two of each label: losses of pairs look at those that share one
_PARTS = 27 / 64, 1 / 2
"""Where the examples are cut in two: unevenly, or, where they come in pairs, evenly."""
_TOLERANCE, _ROUGH = 1e-4, 0.01
"""Of the largest score: rounding is less, in float32, and in a program with 16-bit numbers."""
_SHAKES = 30.0  # a score may differ by so many times what rounding the weights does to it
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Options of XLA:CPU: the program runs twice, so its compilation is what takes time."""
TRAINED_ON = "the training loss"
"""How a warning calls the loss where the energy is another function."""

Evaluate = Callable[[Problem, Params, ModelState, Batch], dict[str, Any]]


def may_depend_on_company(problem: Problem, examples: PyTree, evaluate: Evaluate | None = None) -> bool:
    """Whether anything in the traced evaluation combines examples or reads their number; computes nothing.

    It errs on the side of yes.

    Args:
        problem: what is evaluated.
        examples: leaves [N, ...], of which shapes and types count.
        evaluate: (problem, params, model_state, batch) -> scores, the problem's own by default.
    """
    score = evaluate or _own

    def evaluated(weights: tuple[Params, ModelState], batch: Batch) -> dict[str, Any]:
        return score(problem, *weights, batch)

    return not is_rowwise(evaluated, jax.eval_shape(problem.init, jax.random.key(0)), examples)


def _own(problem: Problem, params: Params, rest: ModelState, batch: Batch) -> dict[str, Any]:
    return problem.evaluate(params, rest, batch)


def depend_on_company(problem: Problem, examples: PyTree, evaluate: Evaluate | None = None) -> list[str]:
    """Returns the names of the scores, "energy" among them, that are others in a smaller batch.

    Some examples of the whole split are evaluated with random weights, all together and in two parts. Scores that are
    not finite are passed over, as are functions that do not take batches of these sizes.

    Args:
        problem: what is evaluated, on the default device.
        examples: leaves [N, ...] on the host or a device.
        evaluate: as in `may_depend_on_company`.
    """
    chosen = _chosen(examples)
    if len(chosen) < 2:
        return []
    few = jax.tree.map(lambda leaf: np.asarray(leaf[chosen]), examples)
    for part in _PARTS:
        cut = _cut(len(chosen), part)
        try:
            return _apart(problem, few, evaluate or _own, (slice(cut), slice(cut, len(chosen))))
        except Exception:  # a loss of pairs, say, takes no odd number; the run takes the sizes that it needs
            continue
    return []


def _chosen(examples: PyTree) -> np.ndarray:
    """Returns the places of some examples of a split, the same ones each time, in an order that nothing explains.

    Half of them at most come in twos that share a number, rare ones first: a split of many classes has few such pairs.
    The one is in the first part, the other in the second.
    """
    leaves = jax.tree.leaves(examples)
    size = tree.leading(examples)
    each = sum(np.prod(np.shape(leaf)) * np.dtype(jnp.result_type(leaf)).itemsize for leaf in leaves) / max(size, 1)
    count = min(size, _MANY, max(8, int(_BYTES / max(each, 1))))
    draw = np.random.default_rng(0)
    order = draw.permutation(size)
    labels = [np.asarray(leaf).reshape(-1)[order] for leaf in leaves if np.prod(np.shape(leaf)) == size]
    twos: dict[int, int] = {}
    for label in labels:
        _, place, inverse, counts = np.unique(label, return_index=True, return_inverse=True, return_counts=True)
        shared = np.flatnonzero((counts > 1) & (counts < size))
        shared = shared[np.argsort(counts[shared], kind="stable")][: min(_MATCHED, count // 2) // 2 // len(labels)]
        for value in shared:
            pair = int(place[value]), int(np.flatnonzero(inverse == value)[1])
            if not {*pair} & {*twos, *twos.values()}:
                twos[pair[0]] = pair[1]
    taken = {*twos, *twos.values()}
    rest = [place for place in range(min(size, 2 * _MANY)) if place not in taken][: count - len(taken)]
    ahead = _cut(count, _PARTS[0]) - len(twos)
    parts = [*twos, *rest[:ahead]], [*twos.values(), *rest[ahead:]]
    return np.concatenate([order[draw.permutation(np.array(part, int))] for part in parts])


def _cut(count: int, part: float) -> int:
    """Returns how many of the examples are in the first part, some but not all."""
    return min(max(round(part * count), 1), max(count - 1, 1))


def _apart(problem: Problem, few: PyTree, evaluate: Evaluate, parts: Sequence[slice]) -> list[str]:
    """Returns the names of the scores that differ between examples together and in parts."""

    def scores(problem: Problem, key: Key[Array, ""], rounding: Array, few: PyTree) -> list[dict[str, Any]]:
        params, state = problem.init(key)
        params = _shaken(params, rounding)
        return [evaluate(problem, params, state, tree.take(few, part)) for part in (slice(None), *parts)]  # type: ignore[arg-type]

    key = jax.random.key(0)
    with jax.default_matmul_precision("highest"):
        lowered = jax.jit(scores).lower(problem, key, jnp.float32(0), few)
        options: Any = _QUICK if placement.platform() == "cpu" else None
        run = lowered.compile(compiler_options=options)
    tolerance = _ROUGH if "f16" in lowered.as_text() else _TOLERANCE
    together, *alone = jax.tree.map(_numbers, run(problem, key, jnp.float32(0), few))
    rounded = jax.tree.map(_numbers, run(problem, key, jnp.float32(1), few))[0]
    found = []
    for name in together:
        whole, shaken, *halves = (jax.tree.leaves(each[name]) for each in (together, rounded, *alone))
        for a, near, *ends in zip(whole, shaken, *halves, strict=True):
            if _differ(a, np.concatenate(ends), np.abs(near - a), tolerance):
                found.append(name)
                break
    return found


def _numbers(leaf: Array) -> np.ndarray:
    return np.asarray(leaf).astype(np.complex128 if jnp.iscomplexobj(leaf) else np.float64)


def _shaken(params: Params, rounding: Array) -> Params:
    """Returns weights with noise, for where they begin at zero everything looks alike; and rounded, if that is 1."""

    def shake(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        place = jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape)
        # No random bits: they take long to compile.
        noisy = leaf + 0.15 * jnp.sin(12.9898 * place + 1).astype(leaf.dtype)
        return noisy * (1 + (rounding * 2 * jnp.finfo(leaf.dtype).eps * jnp.sin(7.233 * place + 1))).astype(leaf.dtype)

    return jax.tree.map(shake, params)


def _differ(a: np.ndarray, b: np.ndarray, rounded: np.ndarray, tolerance: float) -> bool:
    known = np.isfinite(a) & np.isfinite(b) & np.isfinite(rounded)
    largest = np.abs([a[known], b[known]]).max(initial=1e-6)
    return bool((np.abs(a - b)[known] > np.maximum(tolerance * largest, _SHAKES * rounded[known])).any())


def warn_of_company(
    problem: Problem,
    data: Data,
    slices: int,
    sizes: Mapping[str, int],
    short: int,
    hyper: Collection[str] = (),
    parts: int = 1,
) -> None:
    """Warns if scores depend on how a run slices data, or the training loss on how it divides or fills up minibatches.

    Args:
        problem: what is evaluated.
        data: the splits.
        slices: examples that are evaluated at a time, at most.
        sizes: {split: examples that are evaluated in all}.
        short: examples in an epoch's last minibatch, if it is a short one, which copies fill up; else 0.
        hyper: names of the hyperparameters that a loss may read.
        parts: devices that share a minibatch; each of them computes the loss of its own part.
    """
    sliced = [name for name, size in sizes.items() if size > slices]
    trains = (short or parts > 1) and problem.trained_on is not None
    if not (sliced or short or parts > 1) or data.valid is None:
        return

    def evaluate(problem: Problem, params: Params, rest: ModelState, batch: Batch) -> dict[str, Any]:
        trained_on = problem.trained_on if trains else None
        scores = dict(problem.evaluate(params, rest, batch)) if sliced or trained_on is None else {}
        if trained_on is None:
            return scores
        given = dict.fromkeys(hyper, jnp.float32(0.5))
        return {**scores, TRAINED_ON: trained_on(params, rest, batch, given)}

    if not may_depend_on_company(problem, data.valid, evaluate):
        return
    names = depend_on_company(problem, data.valid, evaluate)
    scored = [name for name in names if name != TRAINED_ON]
    trained = [name for name in names if name == (TRAINED_ON if trains else "energy")]
    if sliced and scored:
        warnings.warn(
            f"{_said(scored)}, but data.{sliced[0]} is evaluated {slices} examples at a time, so the numbers depend on "
            f"that; evaluate it whole: Engine(evaluation_batch={max(sizes.values())})",
            stacklevel=4,
        )
    if parts > 1 and trained:
        warnings.warn(
            f"{_said(trained)}, but placement.grid divides a minibatch over {parts} devices, and each sees its own "
            "part; give placement.shard_map(devices)",
            stacklevel=4,
        )
    if short and trained:
        warnings.warn(
            f"{_said(trained)}, but an epoch's last minibatch has {short} examples and is filled up with copies, which "
            "the loss sees, too; leave it out: Engine(drop_remainder=True)",
            stacklevel=4,
        )


def _said(names: Sequence[str]) -> str:
    return f"{', '.join(names)} of an example depend{'s' * (len(names) == 1)} on the examples beside it in the batch"
