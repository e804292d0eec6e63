"""Moves of a sampler: Metropolis-adjusted Langevin steps, and kernels of other libraries, as optax transformations."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxpt.core.state import Reported
from jaxpt.core.types import Params
from jaxpt.models.noise import require_real

LogDensity: TypeAlias = Callable[[Params], Float[Array, ""]]
Kernel: TypeAlias = Callable[[LogDensity, Float[Array, ""]], Any]
"""(log density of a rung, step size) -> an object with init(W) -> state and step(key, state) -> (state, info).

The state has W as its `position`; info may have an `acceptance_rate`. The kernels of blackjax are such objects."""


class Values(NamedTuple):
    """A function at the current weights.

    Attributes:
        value: its value.
        gradient: its gradient, like the weights.
    """

    value: Float[Array, ""]
    gradient: PyTree


class MalaState(NamedTuple):
    """The state of `mala`.

    Attributes:
        accepted: proposals accepted so far; 57 % of all is best for many dimensions (Roberts and Rosenthal 1998).
        energy: E and its gradient at the current weights. They do not depend on the temperature, so they stay right
            when the replica moves to another rung.
        prior: the same for minus the prior's log density; None without a prior.
        reported: the acceptance probability of the last proposal, as "acceptance".
    """

    accepted: Int[Array, ""]
    energy: Values
    prior: Values | None
    reported: Reported


def mala(
    energy: Callable[[Params], Float[Array, ""]],
    step_size: Float[Array, ""] | float,
    temperature: Float[Array, ""] | float,
    *,
    prior: LogDensity | None = None,
    draw: Callable[[Key[Array, ""]], Params] | None = None,
    scale: PyTree = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Metropolis-adjusted Langevin: leaves exp(-E / T) invariant exactly, for any step size.

    Proposes W - h grad E + sqrt(2 h T) xi, as `jaxpt.langevin` does, and accepts it by the Metropolis-Hastings rule
    (Roberts and Tweedie 1996), which removes the discretisation error. A NaN energy is never accepted. A step costs one
    evaluation of E and its gradient, that of the proposal: the state keeps those of the current weights. It does not
    use the gradients that it is given.

    With a prior the law is prior(W) exp(-E / T), T may be infinite, and the step size is that of U = E / T - log prior:
    the proposal is W - h grad U + sqrt(2 h) xi.

    Args:
        energy: E(W).
        step_size: h.
        temperature: T, positive.
        prior: W -> log density of the prior, up to a constant; -inf outside its support.
        draw: key -> W, an exact draw from the prior: where T is infinite, each step takes a new one.
        scale: a preconditioner: a positive number for all weights, or a pytree like W with one for each, such as the
            standard deviations of the target. The proposal is that for W / scale.
    """
    positive = 1.0 / jnp.asarray(temperature)

    def at(params: Params) -> tuple[Values, Values | None]:
        def negative(params: Params) -> Array:
            return -prior(params)  # type: ignore[misc]

        found = Values(*jax.value_and_grad(energy)(params))
        return found, None if prior is None else Values(*jax.value_and_grad(negative)(params))

    def init(params: Params) -> MalaState:
        return MalaState(jnp.zeros((), jnp.int32), *at(params), Reported({"acceptance": jnp.zeros(())}))

    def potential(energy: Values, prior: Values | None) -> Values:
        hot = jax.tree.map(lambda leaf: positive * leaf, energy)
        return hot if prior is None else jax.tree.map(jnp.add, hot, prior)

    def update(
        updates: Any, state: MalaState, params: Any, *, key: Key[Array, ""], **extra: Any
    ) -> tuple[Any, MalaState]:
        del updates, extra
        require_real(params, "mala")
        # One draw for all weights and the acceptance: with few weights most of a step's time goes into hashes.
        flat, unravel = ravel_pytree(params)
        drawn = jax.random.normal(key, (flat.size + 2,), flat.dtype)
        noise = unravel(drawn[:-2])
        needed = -jnp.sum(drawn[-2:] ** 2) / 2  # distributed as the logarithm of a uniform number
        # A number, or one array for weights that are one array: for every leaf.
        sizes = jax.tree.map(lambda _: scale, params) if jax.tree_util.all_leaves([scale]) else scale
        length = jnp.asarray(step_size) * (1.0 if prior is not None else temperature)
        width = jnp.sqrt(2 * length)
        here = potential(state.energy, state.prior)
        move = jax.tree.map(lambda s, xi, g: s * (width * xi - length * s * g), sizes, noise, here.gradient)
        if draw is not None:
            fresh = jax.tree.map(jnp.subtract, draw(jax.random.fold_in(key, 1)), params)
            move = jax.tree.map(lambda new, m: jnp.where(positive == 0, new, m), fresh, move)
        found = at(jax.tree.map(jnp.add, params, move))
        there = potential(*found)
        back = jax.tree.map(lambda s, m, g: (length * s * g - m / s) / width, sizes, move, there.gradient)
        log_ratio = here.value - there.value + (_square(noise) - _square(back)) / 2
        if draw is not None:
            log_ratio = jnp.where(positive == 0, 0.0, log_ratio)
        accepted = needed < log_ratio
        probability = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
        move = jax.tree.map(lambda m: jnp.where(accepted, m, jnp.zeros_like(m)), move)
        values, of_prior = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old), found, (state.energy, state.prior)
        )
        return move, MalaState(state.accepted + accepted, values, of_prior, Reported({"acceptance": probability}))

    return optax.GradientTransformationExtraArgs(init, update)


def kernel_move(
    energy: Callable[[Params], Float[Array, ""]],
    kernel: Kernel,
    step_size: Float[Array, ""],
    positive: Float[Array, ""],
    prior: LogDensity | None,
) -> optax.GradientTransformationExtraArgs:
    """Returns a kernel of another library as a move that leaves prior(W) exp(-beta E) invariant.

    Its state is made anew in each step, since a swap changes the rung's law; for HMC this adds one evaluation of the
    gradient to those of a trajectory.

    Args:
        energy: E(W).
        kernel: see `Kernel`.
        step_size: its step size.
        positive: beta.
        prior: W -> log density of the prior; None: there is none.
    """

    def log_density(params: Params) -> Array:
        return -positive * energy(params) + (0.0 if prior is None else prior(params))

    def update(updates: Any, state: Any, params: Any, *, key: Key[Array, ""], **extra: Any) -> tuple[Any, Reported]:
        del updates, state, extra
        made = kernel(log_density, step_size)
        after, info = made.step(key, made.init(params))
        rate = jnp.asarray(getattr(info, "acceptance_rate", jnp.nan), jnp.float32)
        return jax.tree.map(jnp.subtract, after.position, params), Reported({"acceptance": rate})

    return optax.GradientTransformationExtraArgs(lambda params: Reported({"acceptance": jnp.zeros(())}), update)


def _square(tree: Any) -> Array:
    return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(()))
