"""Grids of several hyperparameters: all combinations of their values, as the rungs of one ladder."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from jaxpt.core.ladder import Ladder, check_values


def product(**values: Sequence[float] | np.ndarray | Array) -> dict[str, Any]:
    """Returns all combinations of several hyperparameters' values, as the columns of a `jaxpt.Ladder`, float64[M].

        >>> columns = jaxpt.product(learning_rate=[0.1, 0.3], dropout_rate=[0.0, 0.2, 0.4])
        >>> columns["learning_rate"]
        array([0.1, 0.1, 0.1, 0.3, 0.3, 0.3])
        >>> columns["dropout_rate"]
        array([0. , 0.2, 0.4, 0. , 0.2, 0.4])
        >>> jaxpt.Ladder(**columns).num_rungs  # for grid search and PBT: jaxpt.Independent(), jaxpt.PBT()
        6

    The last name changes fastest. To leave points out, select the same rows of all columns. A grid has no order from
    cold to hot, so `Tempering` refuses it.

    Args:
        **values: {hyperparameter: its K values}.

    Raises:
        ValueError: no values, or they are not a row of numbers that the hyperparameter may have.
    """
    if not values:
        raise ValueError("a product needs at least one hyperparameter, e.g. product(learning_rate=[0.01, 0.02])")
    rows = {}
    for name, value in values.items():
        try:
            given = np.asarray(value)
            if given.dtype.kind in "bSU":  # NumPy would make numbers of them
                raise TypeError(f"not numbers but {given.dtype}")
            row = np.asarray(value, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} needs numbers, a row of them, but it is {value!r}") from error
        if row.ndim != 1 or not row.size:
            raise ValueError(f"{name} needs a row of numbers, [0.01, 0.02] say, but its shape is {row.shape}")
        check_values(name, row)
        rows[name] = row
    points = np.array([*itertools.product(*rows.values())])
    return {name: points[:, i] for i, name in enumerate(rows)}


def is_grid(ladder: Ladder) -> bool:
    """Returns whether a ladder holds points of several hyperparameters without an order from cold to hot."""
    return ladder.unnamed and len(ladder.values) > 1
