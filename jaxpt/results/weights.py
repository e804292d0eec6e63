"""Weights of an ensemble that maximise the likelihood of the mixture of replicas."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree

from jaxpt.core import tree
from jaxpt.core.arguments import is_count
from jaxpt.core.ranges import check_numbers
from jaxpt.core.state import RunState
from jaxpt.core.types import ModelState, Params
from jaxpt.devices.placement import AXIS, EVERYWHERE, SEED
from jaxpt.devices.precision import tracing_with
from jaxpt.engine.engine import Engine
from jaxpt.engine.scoring import check_per_example, mean_in_chunks
from jaxpt.results.ensemble import How
from jaxpt.results.record import Record, lead_of, on_rungs

TOLERANCE = 1e-4
"""Nats per example that the mean log likelihood may be below the highest."""
MAX_ITERATIONS = 1000
NEGLIGIBLE = 1e-4
"""A replica of a smaller weight is left out of an ensemble that predicts batch by batch."""


def ensemble_weights(engine: Engine, state: RunState, examples: PyTree) -> Float[Array, "*S M"]:
    """Returns the weights of the replicas, [M] or with seeds [S, M], that maximise the likelihood of their mixture.

    They maximise mean_i log sum_k w_k exp(-E_ki), where E_ki is the energy of replica k for example i; they are not
    negative, and their sum is 1. If the energy is the cross-entropy of the predicted classes, this is the log
    likelihood of the weighted mean prediction. Any other energy is taken as minus the log of a likelihood.

    Fit them on validation data only: on training data the replicas that overfit most get the largest weights, and
    scores on the data of the fit are too good.

    >>> weights = jaxpt.ensemble_weights(result.engine, result.state, valid)
    >>> weights.shape, round(float(weights.sum()), 4)
    ((4,), 1.0)
    >>> nll = lambda p, batch: jaxpt.negative_log_likelihood(p, batch["y"])
    >>> found = jaxpt.ensemble(result.engine, result.state, valid, {"nll": nll}, weights=[weights, jnp.ones(4)])
    >>> bool(found["nll"][0] <= found["nll"][1])  # at least as good as equal weights, on the data of the fit
    True

    The maximum is found by expectation maximisation, w_k <- w_k mean_i exp(-E_ki) / sum_j w_j exp(-E_ji), from equal
    weights. Each iteration increases the likelihood, which is concave in the weights. The largest of the factors, less
    1, bounds the distance to the highest mean log likelihood; the iterations end when it is below 1e-4, or after 1000.
    After T iterations the distance is at most log(M) / T (Csiszar and Tusnady 1984).

    Evaluated on the device, for all seeds in one program, at most `engine.evaluation_batch` examples at a time. All
    M times N energies are kept there.

    Args:
        engine: the engine; its problem need not predict.
        state: the state that holds the replicas.
        examples: leaves [N, ...], validation data.

    Returns:
        The weights; 0 for a replica with an energy that is not finite, on any example. NaN for a seed without any
        replica whose energies are all finite.

    Raises:
        ValueError: examples hold no arrays, or the energy is not one number per example.
    """
    tree.leading(examples, "examples")
    check_numbers(examples, "examples")
    how = How(engine.problem, (), engine.evaluation_batch, engine.placed, engine.lift(state.key), engine.precision)
    return _weights(how, (state.replicas.params, state.replicas.model_state), examples)


@jax.jit
def _weights(how: How, replicas: tuple[Params, ModelState], examples: PyTree) -> Float[Array, "*S M"]:
    def all_seeds(how: How, replicas: tuple[Params, ModelState], examples: PyTree) -> Array:
        energies = how.lift.seeds(partial(_energies, how, examples=examples))(replicas)
        return how.lift.each_seed(mixture_weights)(energies)

    lead = (SEED,) * how.lift.has_seeds
    with tracing_with(how.precision):
        run = how.placed.over_shards(all_seeds, (EVERYWHERE, P(*lead, AXIS), EVERYWHERE), P(*lead))
        return how.placed.readable(run(how, replicas, examples))


def _energies(how: How, replicas: tuple[Params, ModelState], *, examples: PyTree) -> Float[Array, "M N"]:
    """Returns the energy of each replica for each example; `replicas` holds those of one device."""

    def score(batch: PyTree) -> dict[str, Any]:
        energy = how.lift.replicas(lambda params, rest: how.problem.evaluate(params, rest, batch)["energy"])(*replicas)
        check_per_example("the energy", energy[0], tree.leading(batch, "examples"))
        return {"energy": energy}

    _, found = mean_in_chunks(score, examples, how.chunk, {"energy"})
    return how.placed.all_gather(found["energy"])


def mixture_weights(energy: Float[Array, "M N"]) -> Float[Array, " M"]:
    """Returns the weights of M distributions that maximise the likelihood of their mixture; see `ensemble_weights`.

    Args:
        energy: minus the log likelihood of each example under each of them.
    """
    healthy = jnp.isfinite(energy).all(1)
    energy = jnp.where(healthy[:, None], energy.astype(jnp.promote_types(energy.dtype, jnp.float32)), jnp.inf)
    # A factor for each example does not move the maximum; with this one the largest likelihood is 1. So no sum below is
    # zero: a replica that is alone with an example keeps a weight of at least 1 / N.
    likelihood = jnp.where(healthy[:, None], jnp.exp(energy.min(0) - energy), 0)

    def factors(weights: Float[Array, " M"]) -> Float[Array, " M"]:
        # Products and sums, not a matrix product, whose precision on accelerators may be lower.
        mixed = jnp.sum(weights[:, None] * likelihood, 0)
        return jnp.mean(likelihood / mixed, 1)

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, weights, factor = carry
        weights = weights * factor
        weights = weights / weights.sum()
        return count + 1, weights, factors(weights)

    def goes_on(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] < MAX_ITERATIONS) & (carry[2].max() > 1 + TOLERANCE)

    start = healthy / jnp.maximum(healthy.sum(), 1).astype(energy.dtype)
    _, weights, _ = jax.lax.while_loop(goes_on, step, (jnp.zeros((), jnp.int32), start, factors(start)))
    return jnp.where(healthy.any(), weights, jnp.nan)


def chosen_members(
    record: Record, coldest: int | None, seed: int | None, ladder: str | None, best: int | None, weighted_on: PyTree
) -> tuple[list[int], Float[Array, " K"]]:
    """Returns the slots of an ensemble's replicas, and their weights; arguments as in `Result.ensemble`."""
    lead, replicas = lead_of(record, seed), record.engine.num_replicas
    ways = {"coldest": coldest, "best": best, "weighted_on": weighted_on}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are different ways to choose an ensemble's replicas; give one of them")
    if ladder is not None and given not in ([], ["coldest"]):
        raise ValueError(f"ladder={ladder!r} says on which ladder replicas are coldest; leave it out with {given[0]}")
    if weighted_on is not None:
        return _likeliest(record, lead, weighted_on)
    chosen = list(range(replicas))
    if coldest is not None:
        chosen = on_rungs(record, coldest, seed, ladder)
    elif best is not None:
        if not is_count(best) or best > replicas:
            raise ValueError(f"best must be 1 .. {replicas}, the number of replicas, but it is {best!r}")
        energy = record.valid["energy"][lead]
        chosen = np.argsort(np.where(np.isfinite(energy), energy, np.inf), stable=True)[:best].tolist()
    # A replica that has diverged may still predict finite numbers.
    healthy = np.isfinite(record.valid["energy"][lead])[chosen]
    shares = healthy if healthy.any() else np.ones(len(chosen))
    return chosen, jnp.asarray(shares / shares.sum(), jnp.float32)


def _likeliest(record: Record, lead: tuple[int, ...], examples: PyTree) -> tuple[list[int], Float[Array, " K"]]:
    weights = record.engine.placed.to_host(ensemble_weights(record.engine, record.state, examples))[lead]
    if not np.isfinite(weights).all():
        raise ValueError(
            "every replica has an energy that is not finite on the examples of weighted_on, so there are no weights "
            "to fit; result.valid shows which replicas have diverged"
        )
    order = np.argsort(-weights, stable=True)
    chosen = order[weights[order] >= NEGLIGIBLE]
    return chosen.tolist(), jnp.asarray(weights[chosen] / weights[chosen].sum(), jnp.float32)
