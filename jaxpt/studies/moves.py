"""Moves of a sampler: Metropolis-adjusted Langevin steps, and kernels of other libraries, as optax transformations."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxpt.core import tree
from jaxpt.core.state import Moved, Reported
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
        scale: a preconditioner: a positive number for all weights, or a pytree like W with one for each, such as the
            standard deviations of the target. The proposal is that for W / scale.

    Raises:
        ValueError: at the first update, if weights are complex, or scale does not fit them.
    """
    return _langevin(energy, step_size, temperature, prior, None, scale, sets=False)


def mala_move(
    energy: Callable[[Params], Float[Array, ""]],
    step_size: Float[Array, ""],
    temperature: Float[Array, ""],
    prior: LogDensity | None,
    draw: Callable[[Key[Array, ""]], Params] | None,
    scale: PyTree,
) -> optax.GradientTransformationExtraArgs:
    """Returns `mala` as a move that gives the new weights themselves, not their difference to the old ones.

    With `draw`, key -> an exact draw from the prior, each step takes a new one where the temperature is infinite.
    """
    return _langevin(energy, step_size, temperature, prior, draw, scale, sets=True)


def _langevin(
    energy: Callable[[Params], Float[Array, ""]],
    step_size: Any,
    temperature: Any,
    prior: LogDensity | None,
    draw: Callable[[Key[Array, ""]], Params] | None,
    scale: PyTree,
    sets: bool,
) -> optax.GradientTransformationExtraArgs:
    """Returns `mala`; with `sets` its updates are `Moved`, which `draw` needs."""
    positive = 1.0 / jnp.asarray(temperature)
    at = partial(_values, energy, prior)

    def init(params: Params) -> MalaState:
        return MalaState(jnp.zeros((), jnp.int32), *at(params), Reported({"acceptance": jnp.zeros(())}))

    def update(
        updates: Any, state: MalaState, params: Any, *, key: Key[Array, ""], **extra: Any
    ) -> tuple[Any, MalaState]:
        del updates, extra
        require_real(params, "mala")
        # One draw for all weights and the acceptance: with few weights a hash is a good part of a step's time.
        flat, unravel = ravel_pytree(params)
        drawn = jax.random.normal(key, (flat.size + 2,), flat.dtype)
        noise = unravel(drawn[:-2])
        needed = -jnp.sum(drawn[-2:] ** 2) / 2  # distributed as the logarithm of a uniform number
        sizes = widths(scale, params)
        length = jnp.asarray(step_size) * (1.0 if prior is not None else temperature)
        width = jnp.sqrt(2 * length)
        here = _potential(positive, state.energy, state.prior)
        move = jax.tree.map(lambda s, xi, g: s * (width * xi - length * s * g), sizes, noise, here.gradient)
        proposal = jax.tree.map(jnp.add, params, move)
        if draw is not None:
            fresh = draw(jax.random.fold_in(key, 1))
            proposal = jax.tree.map(lambda new, other: jnp.where(positive == 0, new, other), fresh, proposal)
        found = at(proposal)
        there = _potential(positive, *found)
        back = jax.tree.map(lambda s, m, g: (length * s * g - m / s) / width, sizes, move, there.gradient)
        log_ratio = here.value - there.value + (_square(noise) - _square(back)) / 2
        if draw is not None:
            inside = True if found[1] is None else jnp.isfinite(found[1].value)
            log_ratio = jnp.where(positive == 0, jnp.where(inside, 0.0, -jnp.inf), log_ratio)
        accepted = needed < log_ratio
        probability = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
        values, of_prior = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old), found, (state.energy, state.prior)
        )
        state = MalaState(state.accepted + accepted, values, of_prior, Reported({"acceptance": probability}))
        if sets:
            return Moved(jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposal, params)), state
        return jax.tree.map(lambda m: jnp.where(accepted, m, jnp.zeros_like(m)), move), state

    return optax.GradientTransformationExtraArgs(init, update)


def _values(
    energy: Callable[[Params], Array], prior: LogDensity | None, params: Params
) -> tuple[Values, Values | None]:
    """Returns E and minus the prior's log density, with their gradients."""

    def negative(params: Params) -> Array:
        return -prior(params)  # type: ignore[misc]

    found = Values(*jax.value_and_grad(energy)(params))
    return found, None if prior is None else Values(*jax.value_and_grad(negative)(params))


def _potential(positive: Array, energy: Values, prior: Values | None) -> Values:
    """Returns U = beta E - log prior and its gradient."""
    hot = jax.tree.map(lambda leaf: positive * leaf, energy)
    return hot if prior is None else jax.tree.map(jnp.add, hot, prior)


def widths(scale: PyTree, params: Params) -> PyTree:
    """Returns the preconditioner of each leaf of the weights (or of their shapes), in the leaf's type.

    Raises:
        ValueError: scale is neither one number or array nor a pytree like the weights, or a shape does not fit.
    """
    structure: Any = jax.tree.structure(params)
    if jax.tree_util.all_leaves([scale]):  # one for every leaf
        scale = jax.tree.unflatten(structure, [scale] * structure.num_leaves)
    if jax.tree.structure(scale) != structure:
        raise ValueError(
            f"scale must be a number or a pytree like the weights, {structure}, but it is {jax.tree.structure(scale)}"
        )
    for (path, leaf), size in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(scale), strict=True):
        if jnp.shape(size) not in ((), leaf.shape):
            raise ValueError(
                f"scale must have one number for each weight, or one for all, but for the weights {tree.name(path)} of "
                f"shape {leaf.shape} it has shape {jnp.shape(size)}"
            )
    return jax.tree.map(lambda leaf, size: jnp.asarray(size, leaf.dtype), params, scale)


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

    def update(updates: Any, state: Any, params: Any, *, key: Key[Array, ""], **extra: Any) -> tuple[Moved, Reported]:
        del updates, state, extra
        made = kernel(log_density, step_size)
        after, info = made.step(key, made.init(params))
        rate = jnp.asarray(getattr(info, "acceptance_rate", jnp.nan), jnp.float32)
        return Moved(after.position), Reported({"acceptance": rate})

    return optax.GradientTransformationExtraArgs(lambda params: Reported({"acceptance": jnp.zeros(())}), update)


def _square(arrays: Any) -> Array:
    return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(arrays)), start=jnp.zeros(()))
