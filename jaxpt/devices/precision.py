"""The precision of float32 products."""

import contextlib
from typing import Any, Literal, TypeAlias, get_args

import jax

Precision: TypeAlias = Literal["default", "high", "highest"]
NAMES = get_args(Precision)


def tracing_with(precision: str) -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which a run is traced; products with an explicit precision keep it.

    | precision   | CPU     | GPU                            | TPU                           |
    |-------------|---------|--------------------------------|-------------------------------|
    | "highest"   | float32 | float32                        | float32 (six bfloat16 passes) |
    | "high"      | float32 | TF32                           | three bfloat16 passes         |
    | "default"   | float32 | JAX's own: TF32 if available   | one bfloat16 pass             |

    "default" leaves the precision to JAX, including its option `jax_default_matmul_precision`.
    """
    return contextlib.nullcontext() if precision == "default" else jax.default_matmul_precision(precision)
