"""Sampling of exp(-E / T) on a ladder of temperatures, as opposed to optimisation.

Training with swaps is optimisation: losses are not equilibrium energies, C is free, and exchanges in effect schedule
hyperparameters. Here all assumptions of parallel tempering hold: between exchanges each replica moves by a kernel that
leaves exp(-E / T) of its rung invariant, swaps use the same exact E, beta = 1 / T and C = 1. So every rung's samples
have the right law for any step size, period, ladder and pairing; these affect only the speed of convergence.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from jaxpt.core.arguments import check_takes
from jaxpt.core.ladder import Ladder
from jaxpt.core.tree import name as name_of
from jaxpt.core.types import Params
from jaxpt.engine.engine import Engine
from jaxpt.models.energy import energy_problem
from jaxpt.rules import Independent, Rule, Tempering
from jaxpt.rules.pairing import Pairing
from jaxpt.rules.step_size import AdaptedStepSize
from jaxpt.studies.moves import Kernel, LogDensity, kernel_move, mala_move, widths

_TRIES = 1000  # draws of init for a start inside the support
Row = Sequence[float] | np.ndarray


def sampler(
    energy: Callable[[Params], Float[Array, ""]],
    init: Callable[[Key[Array, ""]], Params],
    *,
    temperature: Row | None = None,
    step_size: float | Row,
    every: int,
    burn_in: int = 0,
    metrics: Mapping[str, Callable[[Params], Array]] | None = None,
    pairing: Pairing | str = "deo",
    adapt_ladder: bool = False,
    window: int = 32,
    swap_while_tuning: bool = True,
    adapt_step_size: bool = False,
    target: float = 0.574,
    prior: LogDensity | None = None,
    inverse_temperature: Row | None = None,
    init_is_prior: bool = False,
    scale: PyTree = 1.0,
    move: Kernel | None = None,
    draws: Callable[[Params], PyTree] | None = lambda params: params,
) -> Engine:
    """Returns an engine that samples exp(-E / T) for each temperature of a ladder, exactly.

        >>> wells = lambda w: 20 * (w**2 - 1) ** 2
        >>> engine = jaxpt.sampler(wells, jax.random.normal, temperature=jaxpt.geometric(1, 20, 4),
        ...                        step_size=0.01, every=10, burn_in=5000, adapt_step_size=True)
        >>> found = jaxpt.fit(engine, steps=20_000)
        >>> w = found.draws()  # of the coldest rung, [draws]
        >>> bool(0.2 < (w > 0).mean() < 0.8)  # both wells, with 20 temperatures of height between them
        True

    With a prior it samples prior(W) exp(-beta E) for each inverse temperature, where E is minus the log likelihood and
    beta may be 0; `diagnostics.log_evidence` then integrates the likelihood.

    `Result.draws` returns the draws after burn-in. Leave out the further time that the replicas need to forget their
    initial weights.

    Args:
        energy: E(W), exact: all data at once, no probe; finite wherever the prior is positive.
        init: key -> W. A draw at which E or a gradient is not finite is drawn again, at most 1000 times.
        temperature: one per rung; one is enough.
        step_size: step size of the moves, one for all or one per rung; see `mala` for its meaning.
        every: moves before each exchange, and between draws.
        burn_in: steps before exchanges (but see `swap_while_tuning`), in which ladder and step sizes adapt if asked.
        metrics: functions of W to record once a period, {name: W -> number}.
        pairing: the pairs that are offered a swap.
        adapt_ladder: move the temperatures between the two ends during burn-in until rejections are equal.
        window: periods between adaptations.
        swap_while_tuning: if the ladder adapts, offer swaps during burn-in as well; without them the energies of
            trapped replicas mislead it.
        adapt_step_size: adapt the step size of each rung during burn-in, after every period, until moves are accepted
            as often as `target`; then freeze it.
        target: the wanted acceptance of moves; 0.574 is best for `mala` in many dimensions.
        prior: W -> log density of the prior, up to a constant; -inf outside its support.
        inverse_temperature: beta of each rung, in place of temperatures; needed with a prior. 0 samples the prior.
        init_is_prior: `init` draws from the prior exactly. The rung with beta = 0 then takes a new draw in each step.
        scale: the preconditioner of `mala`, a number or a pytree like W.
        move: another kernel, (log density of a rung, step size) -> kernel, for example `lambda density, step_size:
            blackjax.hmc(density, step_size, np.ones(2), 10)`.
        draws: the part of W to keep at the end of each period; by default all of it. None keeps nothing.

    A run of `fit` ends with `Diverged` if a replica starts where E is not finite, since it would never move.

    Raises:
        ValueError: a step size, target or scale is not positive, or scale is not like the weights; weights are not of
            32 or 64 bits; E is not one number; temperatures and inverse temperatures are both given
            or both missing, or do not fit the prior; an argument does not fit the move; otherwise as for `Engine`,
            `Ladder` and `Tempering`.
    """
    check_takes("init", init, "key")
    _check_numbers(step_size, target, scale)
    _check_move(move, prior, scale, init_is_prior)
    _check_functions(energy, init, scale, draws)
    name, values = _rungs(temperature, inverse_temperature, prior, init_is_prior)
    shared = np.ndim(step_size) == 0 and not adapt_step_size
    own = (
        {} if shared else {"step_size": np.full(np.shape(values), step_size) if np.ndim(step_size) == 0 else step_size}
    )
    draw = init if init_is_prior else None

    def transform(h: Mapping[str, Array]) -> Any:
        hot = h[name] if name == "temperature" else 1 / h[name]
        if move is not None:
            return kernel_move(energy, move, h["step_size"], 1 / hot, prior)
        return mala_move(energy, h["step_size"], hot, prior, draw, scale)

    named: dict[str, Any] = {name: values, **own}
    rungs = Ladder(**named, beta="temperature" if name == "temperature" else values, name=name)
    rule: Rule = Independent()
    if rungs.num_rungs > 1:
        swaps = adapt_ladder and swap_while_tuning
        rule = Tempering(1.0, pairing, adapt_ladder=adapt_ladder, window=window, swap_while_tuning=swaps)
    elif adapt_ladder:
        raise ValueError("adapt_ladder=True moves the rungs between two ends, but there is one rung; leave it out")
    return Engine(
        energy_problem(energy, _inside(init, energy, prior), metrics=metrics),
        transform,
        rungs,
        AdaptedStepSize(rule, float(target)) if adapt_step_size else rule,
        every=every,
        burn_in=burn_in,
        diverged="stop",  # finite energies stay finite under Metropolis' rule; others started outside the support
        fixed={"step_size": float(np.asarray(step_size))} if shared else {},
        draws=draws,
    )


def _check_numbers(step_size: Any, target: Any, scale: Any) -> None:
    """Raises ValueError if step size, target or preconditioner is out of range."""
    if np.asarray(step_size).dtype.kind not in "iuf" or not (np.asarray(step_size) > 0).all():
        raise ValueError(f"step_size must be positive, one number or one per rung, but it is {step_size!r}")
    if not isinstance(target, int | float | np.number) or not 0 < target < 1:
        raise ValueError(f"target must be an acceptance probability between 0 and 1, but it is {target!r}")
    sizes = [np.asarray(leaf) for leaf in jax.tree.leaves(scale)]
    if not sizes or any(size.dtype.kind not in "iuf" or not ((size > 0) & (size < np.inf)).all() for size in sizes):
        raise ValueError(
            f"scale must be positive and finite, a number or a pytree of arrays like the weights, but it is {scale!r}"
        )


def _check_functions(energy: Any, init: Any, scale: Any, draws: Any) -> None:
    """Raises ValueError if weights, energy, preconditioner or draws have shapes or types that do not fit."""
    params = jax.eval_shape(init, jax.random.key(0))
    for path, leaf in jax.tree.leaves_with_path(params):
        if leaf.dtype not in (np.float32, np.float64) and not jnp.iscomplexobj(leaf):
            raise ValueError(
                f"init must draw weights of float32 or float64, or moves would be rounded, but {name_of(path) or 'it'} "
                f"is {leaf.dtype}"
            )
    value = jax.eval_shape(energy, params)
    if jnp.shape(value) != ():
        raise ValueError(f"energy must return one number, but it returns shape {jnp.shape(value)}")
    widths(scale, params)
    if draws is not None:
        check_takes("draws", draws, "params")
        jax.eval_shape(draws, params)


def _check_move(move: Any, prior: Any, scale: Any, init_is_prior: bool) -> None:
    """Raises ValueError if move or prior is not a function, or options of `mala` are given with another move."""
    if prior is not None:
        check_takes("prior", prior, "params")
    if move is None:
        return
    check_takes("move", move, "log_density", "step_size")
    if init_is_prior or not isinstance(scale, int | float) or scale != 1:
        raise ValueError("scale and init_is_prior are for the sampler's own move; leave them out, or leave out move")


def _rungs(temperature: Any, positive: Any, prior: Any, init_is_prior: bool) -> tuple[str, Any]:
    """Returns the name of the ladder's hyperparameter, and its values."""
    if (temperature is None) == (positive is None):
        raise ValueError("give temperature=[...] or inverse_temperature=[...], one number per rung, and not both")
    if prior is None and (positive is not None or init_is_prior):
        raise ValueError(
            "inverse_temperature and init_is_prior are for prior(W) exp(-beta E); give the prior's log density, or "
            "temperature=[...] alone"
        )
    if prior is None:
        return "temperature", temperature
    if positive is None:
        raise ValueError("with a prior give inverse_temperature=[1.0, ..., 0.0], which may reach 0, not temperature")
    found = np.asarray(positive)
    if found.dtype.kind not in "iuf" or found.ndim != 1 or not (found >= 0).all():
        raise ValueError(f"inverse_temperature must be a row of numbers, 0 or more, but it is {positive!r}")
    if init_is_prior and found.size and found.min() > 0:
        raise ValueError(
            "init_is_prior=True is for a rung that samples the prior, but the smallest inverse temperature is "
            f"{found.min():g}; add 0.0 to the ladder, or leave it out"
        )
    return "inverse_temperature", positive


def _inside(
    init: Callable[[Key[Array, ""]], Params], energy: Callable[[Params], Array], prior: LogDensity | None
) -> Callable[[Key[Array, ""]], Params]:
    """Returns init, repeated with other keys while it draws weights outside the support."""

    def outside(params: Params) -> Array:
        functions = [energy] if prior is None else [energy, prior]
        found = [jax.value_and_grad(function)(params) for function in functions]
        return ~jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found)]))

    def start(key: Key[Array, ""]) -> Params:
        first = jax.tree.map(jnp.asarray, init(key))

        def again(carry: tuple[Array, Params]) -> tuple[Array, Params]:
            return carry[0] + 1, jax.tree.map(jnp.asarray, init(jax.random.fold_in(key, carry[0])))

        def wanted(carry: tuple[Array, Params]) -> Array:
            return outside(carry[1]) & (carry[0] < _TRIES)

        return jax.lax.while_loop(wanted, again, (jnp.int32(0), first))[1]

    return start
