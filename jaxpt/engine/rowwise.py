"""Whether a traced program works on each row of a batch alone, told from the program; computes nothing.

The program is traced for two numbers of rows. An axis whose length differs between the two holds rows, and a number
that differs is a function of how many there are. Whatever is done to an axis of rows that is not known to leave rows
alone counts as combining them, so the answer errs on the side of "no".
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jaxtyping import PyTree

from jaxpt.core import tree

_ROWS = 1_009, 2_003
"""Two numbers of rows, primes and far apart: a function of it is another for each, in bfloat16 as well."""

# fmt: off
_ELEMENTWISE = frozenset((
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
    "bessel_i1e", "bitcast_convert_type", "broadcast_in_dim", "cbrt", "ceil", "clamp", "clz", "complex", "conj",
    "convert_element_type", "copy", "copy_p", "cos", "cosh", "device_put", "digamma", "div", "eq", "eq_to", "erf",
    "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma", "igamma_grad_a", "igammac", "imag",
    "integer_pow", "is_finite", "le", "le_to", "lgamma", "log", "log1p", "logistic", "lt", "lt_to", "max", "min", "mul",
    "mulhi", "name", "ne", "neg", "nextafter", "not", "optimization_barrier", "or", "polygamma", "population_count",
    "pow",
    "random_fold_in", "random_seed", "random_split", "random_unwrap", "random_wrap", "real", "reduce_precision",
    "regularized_incomplete_beta", "rem", "round", "rsqrt", "select_n", "sharding_constraint", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "squeeze",
    "stop_gradient", "sub", "tan", "tanh", "threefry2x32", "transpose", "xor", "zeta",
))
"""Primitives that leave every axis of their inputs alone, apart from its place."""
_ALONG = frozenset((
    "argmax", "argmin", "concatenate", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "iota", "reduce",
    "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum", "reduce_xor", "rev", "sort",
    "split", "top_k", "unstack",
))
"""Primitives whose parameters name the axes along which they work."""
_MATRIX = {
    "cholesky": 2, "eig": 2, "eigh": 2, "geqrf": 2, "hessenberg": 2, "householder_product": 2, "lu": 2,
    "lu_pivots_to_permutation": 1, "qr": 2, "schur": 2, "svd": 2, "triangular_solve": 2, "tridiagonal": 2,
}
"""Primitives of linear algebra, and how many of an array's last axes they take as one."""
_CALLS = frozenset((
    "call", "checkpoint", "closed_call", "composite", "cond", "core_call", "custom_jvp_call", "custom_linear_solve",
    "custom_vjp_call", "custom_vmap_call", "jit", "pjit", "remat", "remat2", "scan", "while",
))
"""Primitives that run programs in their parameters, on slices of their inputs at most."""
# fmt: on
_WINDOWS = {"reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"}
_WINDOWS |= {"select_and_gather_add", "select_and_scatter", "select_and_scatter_add"}

Axes = list[set[int]]
"""Of each array, the axes that hold rows."""


def is_rowwise(function: Callable[..., Any], given: PyTree, rows: PyTree) -> bool:
    """Whether `function(given, rows)` certainly works on each row alone and with no number of rows.

    Args:
        function: what is traced; one that cannot be, for any number of rows, counts as none.
        given: arrays or shapes that have no rows.
        rows: leaves [N, ...], of which shapes and types count.
    """

    def traced(count: int) -> Any:
        batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), jnp.result_type(leaf)), rows)
        return jax.make_jaxpr(function)(given, batch)

    try:
        return not _combine(*map(traced, _ROWS))
    except Exception:  # it works for certain numbers of rows only, or does what no rule below is made for
        return False


def _combine(one: Any, two: Any) -> bool:
    """Whether anything combines rows in a program, closed or not, that is given for both numbers of rows."""
    held = [getattr(program, "consts", ()) for program in (one, two)]
    if not _same(*held):
        return True
    equations = [list(_needed(getattr(program, "jaxpr", program))) for program in (one, two)]
    if len(equations[0]) != len(equations[1]):
        return True
    return any(_combines(*pair) for pair in zip(*equations, strict=True))


def _needed(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Yields the equations that the outputs of a program depend on, last first."""
    wanted = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if wanted & set(eqn.outvars):
            wanted |= {v for v in eqn.invars if not isinstance(v, Literal)}
            yield eqn


def _same(a: Any, b: Any) -> bool:
    """Whether two parameters or constants are equal; what cannot be compared, functions say, is."""
    if a is b:
        return True
    if (a is None) != (b is None):
        return False
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    if hasattr(a, "shape") and hasattr(b, "shape"):
        one, two = (np.asarray(tree.plain(each)) for each in (a, b))
        return one.shape == two.shape and bool(((one == two) | ((one != one) & (two != two))).all())
    return not isinstance(a, int | float | complex | str) or bool(a == b or (a != a and b != b))


def _shape(v: Any) -> tuple[int, ...]:
    return tuple(getattr(v.aval, "shape", ()))


def _combines(eqn: JaxprEqn, other: JaxprEqn) -> bool:
    """Whether an equation, given for both numbers of rows, or one inside it works on more than a row or counts rows."""
    literals = [[v.val if isinstance(v, Literal) else None for v in each.invars] for each in (eqn, other)]
    if eqn.primitive is not other.primitive or not _same(*literals) or len(eqn.outvars) != len(other.outvars):
        return True
    marked: list[Axes] = []
    for here, there in ((eqn.invars, other.invars), (eqn.outvars, other.outvars)):
        shapes = [(_shape(a), _shape(b)) for a, b in zip(here, there, strict=True)]
        if any(len(a) != len(b) for a, b in shapes):
            return True
        marked.append([{i for i, (m, n) in enumerate(zip(a, b, strict=True)) if m != n} for a, b in shapes])
    rows, made = marked
    if any(len(axes) > 1 for axes in (*rows, *made)):
        return True  # every row beside every other
    name, p = eqn.primitive.name, eqn.params
    programs = [list(_programs(each.params)) for each in (eqn, other)]
    if len(programs[0]) != len(programs[1]):
        return True
    if name in _CALLS or not any((*rows, *made)):
        counts = name == "scan" and p["length"] != other.params["length"] and _carries(eqn, programs[0][0])
        apart = not any((*rows, *made)) and not all(_same(p[k], other.params[k]) for k in p)
        return counts or apart or any(_combine(*pair) for pair in zip(*programs, strict=True))
    return not _is_alone(eqn, rows, made)


def _carries(scan: JaxprEqn, body: Any) -> bool:
    """Whether a scan hands anything from one turn to the next; its parameters for this differ between releases."""
    # What a scan stacks has an axis more outside than inside.
    made = zip(scan.outvars, getattr(body, "jaxpr", body).outvars, strict=True)
    return any(_shape(outside) == _shape(inside) for outside, inside in made)


def _programs(params: dict[str, Any]) -> Iterator[Any]:
    """Yields the programs among an equation's parameters."""
    for value in params.values():
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(getattr(each, "jaxpr", each), Jaxpr):
                yield each


def _is_alone(eqn: JaxprEqn, rows: Axes, made: Axes) -> bool:
    """Whether a primitive leaves rows alone, given which axes of its inputs and its outputs hold them."""
    name, p = eqn.primitive.name, eqn.params
    shapes, outs = [_shape(v) for v in eqn.invars], [_shape(v) for v in eqn.outvars]
    if name in _ELEMENTWISE:
        return name != "random_split" or any(made[0] & axes for axes in rows)
    if name in _ALONG:
        said = [p[key] for key in ("axes", "dimensions", "axis", "dimension") if key in p]
        along = {axis for axes in said for axis in (axes if isinstance(axes, tuple | list) else (axes,))}
        return bool(said) and not any(along & axes for axes in (rows or made))
    if name == "stack":
        return p["axis"] not in made[0]
    if name == "tile":
        return all(p["reps"][a] == 1 for a in rows[0] | made[0])
    if name == "random_bits":
        return made[0] <= rows[0]
    if name == "reshape":
        return all(np.prod(shapes[0][:a]) == np.prod(outs[0][:b]) for a in rows[0] for b in made[0])
    if name in _MATRIX or name == "fft":
        last = len(p["fft_lengths"]) if name == "fft" else _MATRIX[name]
        return all(axis < len(shape) - last for axes, shape in zip(rows, shapes, strict=True) for axis in axes)
    if name in ("gather", "dot_general", "conv_general_dilated") or name.startswith("scatter"):
        return _is_product_alone(name, p, rows, made, shapes)
    if name in ("slice", "dynamic_slice", "dynamic_update_slice", "pad"):
        given = shapes[: 2 if name == "dynamic_update_slice" else 1]
        return all(shape[a] == outs[0][a] for shape, axes in zip(given, rows, strict=False) for a in axes | made[0])
    if name in _WINDOWS:
        kept = [p.get("window_dimensions"), p.get("window_strides")]
        return all(each is not None and each[a] == 1 for each in kept for a in rows[0]) and rows[0] == made[0]
    return False


def _is_product_alone(name: str, p: dict[str, Any], rows: Axes, made: Axes, shapes: list[tuple[int, ...]]) -> bool:
    """The same for products, convolutions, and reads and writes at indices."""
    numbers = p["dimension_numbers"]
    if name == "dot_general":
        (left, right), _ = numbers
        return not (rows[0] & set(left) or rows[1] & set(right))
    if name == "conv_general_dilated":
        images, kernel, _ = numbers
        return p["batch_group_count"] == 1 and rows[0] <= {images[0]} and rows[1] <= {kernel[0]}
    if name == "gather":
        sizes, starts = p["slice_sizes"], set(numbers.start_index_map)
        own = set(numbers.operand_batching_dims)
        return all(a in own or (sizes[a] == shapes[0][a] and a not in starts) for a in rows[0])
    # A row of indices writes to the same row, or whole rows are written to.
    operand, indices, updates = rows[:3]
    own = set(numbers.operand_batching_dims)
    touched = set(numbers.scatter_dims_to_operand_dims) | set(numbers.inserted_window_dims)
    written = set(numbers.update_window_dims)
    if operand & (touched - own) or indices - set(numbers.scatter_indices_batching_dims):
        return False
    return bool(updates <= written or (own and operand <= own and indices))
