"""Whether an example's energy depends on the examples beside it: then it depends on how a split is sliced, too."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params
from jaxtyping import Array, Key, PyTree

from jaxpt.core import tree
from jaxpt.core.data import Data
from jaxpt.core.types import Params, Problem

_MARK = 10_007
"""A batch size that is no other size: in a program traced for it, axes of multiples of it hold examples."""
_MANY = 8  # examples; each half of them is evaluated again without the other
_TOLERANCE = 0.01  # of the largest score: rounding, in bfloat16 as well, is less
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Options of XLA:CPU: the program runs once, so its compilation is what takes time."""


def may_depend_on_company(problem: Problem, examples: PyTree) -> bool:
    """Whether anything in the traced evaluation combines examples or reads their number; computes nothing.

    It errs on the side of yes.

    Args:
        problem: what is evaluated.
        examples: leaves [N, ...], of which shapes and types count.
    """
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((_MARK, *leaf.shape[1:]), jnp.result_type(leaf)), examples)

    def evaluate(key: Key[Array, ""], batch: PyTree) -> dict[str, Array]:
        return problem.evaluate(*problem.init(key), batch)

    return any(map(_combines, _needed(jax.make_jaxpr(evaluate)(jax.random.key(0), batch).jaxpr)))


def _needed(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Yields the equations that the outputs of a program depend on, last first."""
    wanted = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if wanted & set(eqn.outvars):
            wanted |= {v for v in eqn.invars if not isinstance(v, Literal)}
            yield eqn


def _combines(eqn: JaxprEqn) -> bool:
    """Whether an equation, or one inside it, works along an axis of examples, or with their number."""
    if any(isinstance(v, Literal) and np.size(v.val) == 1 and _is_count(v.val) for v in eqn.invars):
        return True
    name, p = eqn.primitive.name, eqn.params
    shapes = [tuple(v.aval.shape) for v in eqn.invars]  # type: ignore[attr-defined]
    marked = [{axis for axis, n in enumerate(shape) if n and n % _MARK == 0} for shape in shapes]
    if any(sum(n % _MARK == 0 for n in v.aval.shape if n) > 1 for v in eqn.outvars):  # type: ignore[attr-defined]
        return True  # every example beside every other
    if not any(marked):
        return False
    if name == "scan":
        return (p["num_carry"] > 0 and p["length"] % _MARK == 0) or any(map(_inside, jaxprs_in_params(p)))
    if inner := list(jaxprs_in_params(p)):
        return any(map(_inside, inner))
    along: set[int] = set()
    if name == "dot_general":
        (left, right), _ = p["dimension_numbers"]
        return bool(marked[0] & set(left) or marked[1] & set(right))
    if name == "conv_general_dilated":
        images, kernel, _ = p["dimension_numbers"]
        return bool(marked[0] - {images[0]} or marked[1] - {kernel[0]})
    if name == "gather":
        return bool(marked[0] & set(p["dimension_numbers"].start_index_map))
    if name in ("reshape", "squeeze", "broadcast_in_dim", "transpose"):
        return False
    if name in ("slice", "dynamic_slice", "concatenate", "pad", "scatter", "scatter-add", "rev"):
        along = set(p["dimensions"]) if name == "rev" else {p["dimension"]} if name == "concatenate" else set()
        out: Any = eqn.outvars[0].aval
        changed = [{a for a in m if s[a] != out.shape[a]} for m, s in zip(marked, shapes, strict=True) if m]
        return any(m & along for m in marked) or (name != "concatenate" and any(changed))
    for key in ("axes", "dimensions", "axis", "dimension"):
        value = p.get(key, ())
        along |= set(value) if isinstance(value, tuple | list) else {value} if isinstance(value, int) else set()
    return any(m & along for m in marked)


def _inside(jaxpr: Jaxpr) -> bool:
    return any(map(_combines, jaxpr.eqns))


def _is_count(value: Any) -> bool:
    number = float(np.real(value))
    return number != 0 and any(abs(x / _MARK - 1) < 1e-6 for x in (number, 1 / number, np.exp(min(abs(number), 50.0))))


def depend_on_company(problem: Problem, examples: PyTree) -> list[str]:
    """Returns the names of the scores, "energy" among them, that are others in a smaller batch.

    A few examples are evaluated with random weights, all together and in two halves. Scores that are not finite
    are passed over.

    Args:
        problem: what is evaluated, on the default device.
        examples: leaves [N, ...] on the host or a device; the first few are used.
    """
    few = jax.tree.map(lambda leaf: np.asarray(leaf[:_MANY]), examples)
    count = jax.tree.leaves(few)[0].shape[0]
    halves = slice(count // 2), slice(count // 2, count)
    if count < 2:
        return []

    def scores(key: Key[Array, ""], few: PyTree) -> list[dict[str, Array]]:
        params, state = problem.init(key)
        params = _shaken(params, key)
        return [problem.evaluate(params, state, tree.take(few, part)) for part in (slice(None), *halves)]  # type: ignore[arg-type]

    lowered = jax.jit(scores).lower(jax.random.key(0), few)
    options: Any = _QUICK if jax.default_backend() == "cpu" else None
    together, *alone = jax.tree.map(np.asarray, lowered.compile(compiler_options=options)(jax.random.key(0), few))
    plain = [name for name in together if isinstance(together[name], np.ndarray)]
    apart = {name: np.concatenate([half[name] for half in alone]) for name in plain}
    return [name for name in plain if _differ(together[name], apart[name])]


def _shaken(params: Params, key: Key[Array, ""]) -> Params:
    """Returns weights with noise: where they begin at zero, everything looks alike."""
    leaves, treedef = jax.tree.flatten(params)
    floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves) or 1)
    noisy = [
        leaf + 0.1 * jax.random.normal(k, leaf.shape, leaf.dtype) if real else leaf
        for k, leaf, real in zip(keys, leaves, floats, strict=False)
    ]
    return jax.tree.unflatten(treedef, noisy)


def _differ(a: np.ndarray, b: np.ndarray) -> bool:
    a, b = a.astype(np.float64), b.astype(np.float64)
    known = np.isfinite(a) & np.isfinite(b)
    return bool((np.abs(a - b)[known] > _TOLERANCE * np.abs([a[known], b[known]]).max(initial=1e-6)).any())


def warn_of_company(problem: Problem, data: Data, slices: int, sizes: Mapping[str, int], short: int) -> None:
    """Warns if scores depend on how a run slices its data.

    Args:
        problem: what is evaluated.
        data: the splits.
        slices: examples that are evaluated at a time, at most.
        sizes: {split: examples that are evaluated in all}.
        short: examples in an epoch's last minibatch, if it is a short one, which copies fill up; else 0.
    """
    sliced = [name for name, size in sizes.items() if size > slices]
    if not (sliced or short) or data.valid is None or not may_depend_on_company(problem, data.valid):
        return
    if not (names := depend_on_company(problem, data.valid)):
        return
    what = f"{', '.join(names)} of an example depend{'s' * (len(names) == 1)} on the examples beside it in the batch"
    if sliced:
        warnings.warn(
            f"{what}, but data.{sliced[0]} is evaluated {slices} examples at a time, so the numbers depend on that; "
            f"evaluate it whole: Engine(evaluation_batch={max(sizes.values())})",
            stacklevel=4,
        )
    if short:
        warnings.warn(
            f"{what}, but an epoch's last minibatch has {short} examples and is filled up with copies, which the loss "
            "sees, too; leave it out: Engine(drop_remainder=True)",
            stacklevel=4,
        )
