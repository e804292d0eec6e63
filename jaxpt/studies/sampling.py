"""Sampling of exp(-E / T) on a ladder of temperatures, as opposed to optimisation.

Training with swaps is optimisation: losses are not equilibrium energies, C is free, and exchanges in effect schedule
hyperparameters. Here all assumptions of parallel tempering hold: between exchanges each replica moves by a kernel that
leaves exp(-E / T) of its rung invariant, swaps use the same exact E, beta = 1 / T and C = 1. So every rung's samples
have the right law for any step size, period, ladder and pairing; these affect only the speed of convergence.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxpt.core.ladder import Ladder
from jaxpt.core.types import Params
from jaxpt.engine.engine import Engine
from jaxpt.models.energy import energy_problem
from jaxpt.models.noise import require_real
from jaxpt.rules import Tempering
from jaxpt.rules.pairing import Pairing


class MalaState(NamedTuple):
    """The state of `mala`.

    Attributes:
        accepted: proposals accepted so far; 57 % of all is best for many dimensions (Roberts and Rosenthal 1998).
    """

    accepted: Int[Array, ""]


def mala(
    energy: Callable[[Params], Float[Array, ""]],
    step_size: Float[Array, ""] | float,
    temperature: Float[Array, ""] | float,
) -> optax.GradientTransformationExtraArgs:
    """Metropolis-adjusted Langevin: leaves exp(-E / T) invariant exactly, for any step size.

    Proposes W - h grad E + sqrt(2 h T) xi, as `jaxpt.langevin` does, and accepts it by the Metropolis-Hastings rule
    (Roberts and Tweedie 1996), which removes the discretisation error. A NaN energy is never accepted. Each step costs
    one more evaluation of the gradient and two of the energy.

    Args:
        energy: E(W); the update's gradients must be those of E, so the problem's loss is E.
        step_size: h.
        temperature: T, positive.
    """

    def update(
        updates: Any, state: MalaState, params: Any, *, key: Key[Array, ""], **extra: Any
    ) -> tuple[Any, MalaState]:
        del extra
        require_real(params, "mala")
        key_noise, key_accept = jax.random.split(key)
        noise = optax.tree.random_like(key_noise, params, jax.random.normal)
        scale = jnp.sqrt(2 * jnp.asarray(step_size) * jnp.asarray(temperature))
        move = jax.tree.map(lambda g, xi: scale * xi - step_size * g, updates, noise)
        after, gradient = jax.value_and_grad(energy)(jax.tree.map(jnp.add, params, move))
        back = jax.tree.map(lambda m, g: (step_size * g - m) / scale, move, gradient)
        log_ratio = (energy(params) - after) / temperature + (_square(noise) - _square(back)) / 2
        accepted = jnp.log(jax.random.uniform(key_accept)) < log_ratio
        move = jax.tree.map(lambda m: jnp.where(accepted, m, jnp.zeros_like(m)), move)
        return move, MalaState(state.accepted + accepted)

    return optax.GradientTransformationExtraArgs(lambda params: MalaState(jnp.zeros((), jnp.int32)), update)


def sampler(
    energy: Callable[[Params], Float[Array, ""]],
    init: Callable[[Key[Array, ""]], Params],
    *,
    temperature: Sequence[float] | np.ndarray,
    step_size: float | Sequence[float] | np.ndarray,
    every: int,
    burn_in: int = 0,
    metrics: Mapping[str, Callable[[Params], Array]] | None = None,
    pairing: Pairing | str = "deo",
    adapt_ladder: bool = False,
    window: int = 32,
) -> Engine:
    """Returns an engine that samples exp(-E / T) for each temperature of a ladder, exactly.

        >>> wells = lambda w: 20 * (w**2 - 1) ** 2
        >>> engine = jaxpt.sampler(wells, jax.random.normal, temperature=jaxpt.geometric(1, 20, 4),
        ...                        step_size=0.01, every=10, metrics={"w": lambda w: w})
        >>> trace = jaxpt.fit(engine, steps=20_000).trace
        >>> w = jaxpt.diagnostics.samples(trace, "w")[500:, 0]  # [periods, rungs], coldest first
        >>> bool(0.2 < (w > 0).mean() < 0.8)  # both wells, with 20 temperatures of height between them
        True

    Leave out the beginning of the trace: burn-in, during which there are no exchanges (and the ladder adapts), and the
    further time that the replicas need to forget their initial weights.

    Args:
        energy: E(W), exact: all data at once, no probe.
        init: key -> W.
        temperature: one per rung.
        step_size: step size of the Langevin proposals, one for all or one per rung.
        every: Langevin steps before each exchange.
        burn_in: steps without exchanges.
        metrics: functions of W to record once a period, {name: W -> number}.
        pairing: the pairs that are offered a swap.
        adapt_ladder: move the temperatures between the two ends during burn-in until rejections are equal.
        window: periods between adaptations.

    A run of `fit` ends with `Diverged` if a replica starts where E is not finite, since it would never move.

    Raises:
        ValueError: a step size is not positive; otherwise as for `Engine`, `Ladder` and `Tempering`.
    """
    if np.asarray(step_size).dtype.kind not in "iuf" or not (np.asarray(step_size) > 0).all():
        raise ValueError(f"step_size must be positive, one number or one per rung, but it is {step_size!r}")
    shared = np.ndim(step_size) == 0
    own: dict[str, Any] = {} if shared else {"step_size": step_size}
    return Engine(
        energy_problem(energy, init, metrics=metrics),
        lambda h: mala(energy, h["step_size"], h["temperature"]),
        Ladder(temperature=temperature, beta="temperature", name="temperature", **own),
        Tempering(1.0, pairing, adapt_ladder=adapt_ladder, window=window),
        every=every,
        burn_in=burn_in,
        diverged="stop",  # finite energies stay finite under Metropolis' rule; others started outside the support
        fixed={"step_size": float(np.asarray(step_size))} if shared else {},
    )


def _square(tree: Any) -> Array:
    return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(()))
