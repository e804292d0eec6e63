"""Noises that act like a temperature, as functions of traced strengths, and a problem with noisy weights."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree, UInt32

from jaxpt.core.types import Batch, ModelState, Params, Problem
from jaxpt.models.average import require_no_average

_LANGEVIN_SALT = 0x1A69  # an arbitrary number that users are unlikely to choose


def dropout(key: Key[Array, ""], x: Array, rate: Float[Array, ""] | float) -> Array:
    """Zeroes each element of x with probability `rate` (traced; 0 to 1) and scales the rest by 1 / (1 - rate).

    Each element uses 16 random bits, so the rate is rounded to the nearest multiple of 2**-16.
    """
    keep = jnp.round(2.0**16 * (1.0 - jnp.asarray(rate, jnp.float32)))
    scale = jnp.where(keep > 0, 2.0**16 / jnp.where(keep > 0, keep, 1.0), 0.0).astype(x.dtype)
    return jnp.where(_sixteen_bits(key, x.shape) < keep.astype(jnp.uint32), x * scale, jnp.zeros_like(x))


def _sixteen_bits(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Returns independent random integers from 0 to 2**16 - 1; two of them share a word of 32 bits.

    The two are half an axis apart, not neighbours: an array of words then has the layout of the result, also under
    vmap. Interleaved halves would be moved one by one on a TPU.
    """
    if not shape:
        return jax.random.bits(key, (), jnp.uint32) >> np.uint32(16)
    # An axis of even length, else the longest, whose surplus is least. Those in the middle first: a TPU puts a
    # picture's examples side by side in its vectors, and half of them may not fill one.
    order = (*range(1, len(shape) - 1), 0, len(shape) - 1)
    axis = next((i for i in order if shape[i] % 2 == 0), shape.index(max(shape)))
    half = *shape[:axis], -(-shape[axis] // 2), *shape[axis + 1 :]
    words = jax.random.bits(key, half, jnp.uint32)
    both = jax.lax.concatenate([words & np.uint32(0xFFFF), words >> np.uint32(16)], axis)
    return jax.lax.slice_in_dim(both, 0, shape[axis], axis=axis)


def require_real(arrays: PyTree, what: str) -> None:
    """Raises ValueError if any array is complex: complex noise has no single standard deviation."""
    if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(arrays)):
        raise ValueError(
            f"{what} needs real numbers, but some are complex; keep real and imaginary parts as two arrays"
        )


def gaussian(key: Key[Array, ""], x: Array, std: Float[Array, ""] | float) -> Array:
    """Adds Gaussian noise of standard deviation `std` (traced) to every element of a real array."""
    require_real(x, "Gaussian noise")
    return x + jnp.asarray(std, x.dtype) * jax.random.normal(key, x.shape, x.dtype)


def gradient_noise(std: Float[Array, ""] | float, salt: int = 0) -> optax.GradientTransformationExtraArgs:
    """Adds Gaussian noise of standard deviation `std` to every gradient, or other update.

    The engine passes each replica's key to `update(..., key=key)`, so there is no state and every replica has
    independent noise.

        optimizer=lambda h: optax.chain(jaxpt.gradient_noise(h["gradient_noise"]), optax.sgd(0.1))

    Args:
        std: the standard deviation.
        salt: folded into the key. All noises of one optimiser get the same key, so two of them need different salts.
    """

    def update(updates: Any, state: Any, params: Any = None, *, key: Key[Array, ""], **extra: Any) -> tuple[Any, Any]:
        del params, extra
        require_real(updates, "gradient noise")
        noise = optax.tree.random_like(jax.random.fold_in(key, salt), updates, jax.random.normal)
        return jax.tree.map(lambda u, n: u + jnp.asarray(std, u.dtype) * n, updates, noise), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def langevin(
    learning_rate: Float[Array, ""] | float, temperature: Float[Array, ""] | float
) -> optax.GradientTransformationExtraArgs:
    """Unadjusted Langevin dynamics: W <- W - lr grad E + sqrt(2 lr T) xi, xi standard normal.

    Its stationary law is exp(-E / T) up to an error of order `learning_rate`; E is the loss whose gradient it receives.
    On a ladder of temperatures, with beta = 1 / T and C = 1, replica exchange adds no further error.
    `jaxpt.sampler` does not have this error.

    Args:
        learning_rate: step size lr.
        temperature: T; 0 is plain gradient descent.
    """
    scale = jnp.sqrt(2 * jnp.asarray(learning_rate) * jnp.asarray(temperature))
    return optax.chain(optax.sgd(learning_rate), gradient_noise(scale, _LANGEVIN_SALT))


def with_weight_noise(problem: Problem, name: str = "weight_noise") -> Problem:
    """Returns the problem with its gradient taken at weights perturbed by Gaussian noise.

    Evaluation uses the weights as they are.

    Args:
        problem: any problem.
        name: the hyperparameter that gives the noise's standard deviation.
    """
    if not isinstance(problem, Problem):
        raise ValueError(
            f"problem must come from nnx_problem, linen_problem, equinox_problem or energy_problem, not {problem!r}"
        )
    require_no_average(problem, "with_weight_noise")
    return problem.changed(partial(_noisy, name=name))


def _noisy(problem: Problem, name: str) -> Problem:
    def loss(
        params: Params, rest: ModelState, batch: Batch, hyper: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[Array, ModelState]:
        key_noise, key_loss = jax.random.split(key)
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(key_noise, len(leaves))
        noisy = [gaussian(k, leaf, hyper[name]) for k, leaf in zip(keys, leaves, strict=True)]
        return problem.loss(jax.tree.unflatten(treedef, noisy), rest, batch, hyper, key_loss)

    return problem._replace(loss=loss, hyperparameters=problem.hyperparameters | {name})
