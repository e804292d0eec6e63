"""The draws of a sampler's run, rung by rung, and as arviz takes them."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxpt.core import tree
from jaxpt.core.extras import extra
from jaxpt.results.ensemble import ladder_of
from jaxpt.results.record import Record


def draws(record: Record, rungs: int | None, thin: int, ladder: str | None) -> PyTree:
    """Returns `Result.draws`."""
    trace, engine = record.trace, record.engine
    if trace.draws is None:
        raise ValueError(
            "the run has kept no draws; make its engine with draws=lambda params: params, as a sampler's is"
        )
    if not isinstance(thin, int | np.integer) or thin < 1:
        raise ValueError(f"thin must be an integer of at least 1, but it is {thin!r}")
    name = ladder_of(engine, ladder, 1 if rungs is None else rungs)
    rows = np.flatnonzero(np.asarray(trace.step) > int(engine.burn_in))[::thin]
    place = np.argsort(np.asarray(trace.rung[name])[rows], -1)[..., : rungs or 1]

    def gathered(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)[rows]
        own = place.reshape(place.shape + (1,) * (leaf.ndim - place.ndim))
        on_rung = np.take_along_axis(leaf, own, place.ndim - 1)
        return on_rung.take(0, place.ndim - 1) if rungs is None else on_rung

    return jax.tree.map(gathered, trace.draws)


def inference_data(record: Record, thin: int) -> Any:
    """Returns `Result.inference_data`."""
    arviz = extra("arviz", "arviz", "result.inference_data()")
    found = draws(record, None, thin, None)
    lead = 1 if record.num_seeds else 0

    def chains(leaf: np.ndarray) -> np.ndarray:
        return np.swapaxes(leaf, 0, 1) if lead else leaf[None]

    named = {tree.name(path) or "w": chains(leaf) for path, leaf in jax.tree.leaves_with_path(found)}
    # From release 1 on groups are one argument, and the result is a DataTree.
    new = int(arviz.__version__.partition(".")[0]) >= 1
    return arviz.from_dict({"posterior": named}) if new else arviz.from_dict(posterior=named)
