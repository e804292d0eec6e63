"""One replica: its state, its initialisation, its train step and its evaluation. The engine stacks M of them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxpt.core.ladder import Ladder
from jaxpt.core.state import Moved, Replicas, Reported
from jaxpt.core.types import Hyper, ModelState, Optimizer, Params, Problem, Schedule
from jaxpt.devices import placement
from jaxpt.engine.scoring import check_per_example
from jaxpt.engine.updates import extra_arguments, updated, uphill


class Divided(NamedTuple):
    """The division of a minibatch over the devices that share a replica.

    Attributes:
        number: this device's number among them.
        local: leaves [B, ...] -> this device's part of them.
        total: the sum over these devices.
        parts: how many there are.
    """

    number: Int[Array, ""]
    local: Callable[[PyTree], PyTree]
    total: Callable[[PyTree], PyTree]
    parts: int

    def together(self, loss: Array, grads: Params, model_state: ModelState) -> tuple[Array, Params, ModelState]:
        """Returns the sums of losses and gradients, and the mean of each floating-point array of the model state."""
        leaves, structure = jax.tree.flatten(model_state)
        floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        # Together, so that XLA can make one message of them.
        loss, grads, means = self.total((loss, grads, [leaves[i] / self.parts for i in floats]))
        for i, mean in zip(floats, means, strict=True):
            leaves[i] = mean
        return loss, grads, jax.tree.unflatten(structure, leaves)

    def summed(self, own: Callable[[Params], Array]) -> Callable[[Params], Array]:
        """Returns params -> the sum over the devices of `own(params)`, whose gradient is the sum of theirs.

        JAX takes the transpose of a sum over devices for another sum (`shard_map` does not track which values are the
        same on all of them), so each device would get its own part of the gradient, times the number of devices.
        """

        @jax.custom_vjp
        def value(params: Params) -> Array:
            return self.total(own(params))

        def forward(params: Params) -> tuple[Array, Callable[..., tuple[Params]]]:
            found, pull_back = jax.vjp(own, params)
            return self.total(found), pull_back

        def backward(pull_back: Callable[..., tuple[Params]], cotangent: Array) -> tuple[Params]:
            return (self.total(pull_back(cotangent)[0]),)

        value.defvjp(forward, backward)
        return value


def init_replica(
    problem: Problem,
    optimizer: Optimizer,
    schedule: Schedule | None,
    key: Key[Array, ""],
    hyper: Hyper,
    rung: dict[str, Int[Array, ""]],
) -> Replicas:
    """Returns one replica with new weights; its arrays have no leading axis."""
    key_init, key_own = jax.random.split(key)
    params, model_state = problem.init(key_init)
    first = scheduled(schedule, hyper, jnp.zeros((), jnp.int32))
    return Replicas(params, model_state, optimizer(first).init(params), key_own, hyper, rung)


def init_replicas(
    problem: Problem,
    optimizer: Optimizer,
    schedule: Schedule | None,
    fixed: Mapping[str, Any],
    ladders: Mapping[str, Ladder],
    key: Key[Array, "..."],
) -> Replicas:
    """Returns new replicas of one seed or of several, replica k on rung k of every ladder.

    Args:
        problem: the problem.
        optimizer: hyperparameters -> optax transformation.
        schedule: (hyperparameters, step) -> the ones in force, or None.
        fixed: hyperparameters that all replicas share.
        ladders: one or more, of M rungs each.
        key: one key, or one for each seed.
    """
    # JAX refuses a program with options of its own inside another one.
    alone = not isinstance(key, jax.core.Tracer)
    made = _compiled_quickly if alone and placement.platform() == "cpu" else _compiled
    return made(problem, optimizer, schedule, fixed, ladders, key)


def _init_replicas(
    problem: Problem,
    optimizer: Optimizer,
    schedule: Schedule | None,
    fixed: Mapping[str, Any],
    ladders: Mapping[str, Ladder],
    key: Key[Array, "..."],
) -> Replicas:
    """`init_replicas`, by `lax.map` and not vmap, which halves the time to compile."""
    if key.ndim:
        return jax.lax.map(partial(_init_replicas, problem, optimizer, schedule, fixed, ladders), key)
    replicas = next(iter(ladders.values())).num_rungs
    hyper = {name: jnp.full(replicas, value, jnp.float32) for name, value in fixed.items()}
    hyper |= {name: value for ladder in ladders.values() for name, value in ladder.values.items()}
    rung = {name: jnp.arange(replicas, dtype=jnp.int32) for name in ladders}
    keys = jax.random.split(key, replicas)
    return jax.lax.map(lambda args: init_replica(problem, optimizer, schedule, *args), (keys, hyper, rung))


_compiled = jax.jit(_init_replicas, static_argnames=("optimizer", "schedule"))
# The program runs once, and LLVM takes 2 seconds for each draw of random numbers at its highest level (jaxlib 0.12 on a
# CPU; ResNet-20: 160 s against 8). The bits are the same.
_compiled_quickly = jax.jit(
    _init_replicas, static_argnames=("optimizer", "schedule"), compiler_options={"xla_backend_optimization_level": 1}
)


def step_keys(key: Key[Array, ""], step: Int[Array, ""]) -> Key[Array, " 2"]:
    """Returns a replica's keys for one step: for the loss, and for the optimiser's update."""
    return jax.random.split(jax.random.fold_in(key, step))


def train_step(
    problem: Problem,
    optimizer: Optimizer,
    schedule: Schedule | None,
    replica: Replicas,
    batch: PyTree,
    weight: Bool[Array, " B"] | None,
    step: Int[Array, ""],
    divided: Divided | None = None,
    keys: Key[Array, " 2"] | None = None,
) -> tuple[Replicas, Float[Array, ""]]:
    """Returns one replica after one optimiser step, and the step's training loss.

    The optimiser is built here, from traced hyperparameters, so a swap needs no bookkeeping in its state. If there is
    a hyperparameter `batch_size`, only that many of the batch's examples count.

    Args:
        problem: the problem.
        optimizer: hyperparameters -> optax transformation; see `extra_arguments` for its update's arguments.
        schedule: (hyperparameters, step) -> the ones in force at this step, or None.
        replica: one replica.
        batch: leaves [B, ...], or None for a problem without data.
        weight: the examples of the batch that count; None: all.
        step: number of steps before this one.
        divided: how several devices share the minibatch, of which `batch` is this one's part; None: they do not.
        keys: `step_keys` of this step, where a loop has made them for all its steps at once.
    """
    key_loss, key_update = step_keys(replica.key, step) if keys is None else keys
    hyper = scheduled(schedule, replica.hyper, step)
    if weight is not None and "batch_size" in hyper:
        weight = weight & (jnp.arange(weight.shape[0]) < hyper["batch_size"])
    count = None
    if divided is not None and weight is not None:
        key_loss, count = jax.random.fold_in(key_loss, divided.number), jnp.sum(weight)
        weight = divided.local(weight)

    def objective(params: Params) -> tuple[Array, ModelState]:
        per_example, model_state = problem.loss(params, replica.model_state, batch, dict(hyper), key_loss)
        check_per_example("the loss", per_example, 1 if weight is None else weight.shape[0])
        if count is None:
            return jnp.mean(per_example, where=weight), model_state
        return jnp.sum(per_example, where=weight) / count, model_state  # of this part; the sum over the parts is it

    (loss, model_state), grads = jax.value_and_grad(objective, has_aux=True)(replica.params)
    if divided is not None:
        loss, grads, model_state = divided.together(loss, grads, model_state)
    # For complex weights JAX's gradient is the conjugate of the direction of steepest ascent.
    grads = uphill(grads)

    own = lambda params: objective(params)[0]  # noqa: E731
    whole = own if divided is None else divided.summed(own)

    def value(params: Params, key: Any = None) -> Array:  # line searches pass on all extra arguments, also the key
        del key
        return whole(params)

    offered = extra_arguments(key_update, loss, grads, value)
    updates, opt_state = updated(optimizer(dict(hyper)), grads, replica.opt_state, replica.params, offered)
    params = updates.params if isinstance(updates, Moved) else optax.apply_updates(replica.params, updates)
    return replica._replace(params=params, model_state=model_state, opt_state=opt_state), loss


def scheduled(schedule: Schedule | None, hyper: Hyper, step: Int[Array, ""]) -> Hyper:
    """Returns the hyperparameters that a step uses: the rung's, or the schedule's result for them."""
    # A copy, in case the schedule modifies its argument: the replica's own values must not change.
    return dict(hyper) if schedule is None else dict(schedule(dict(hyper), step))


def reported(opt_state: PyTree) -> dict[str, Array] | None:
    """Returns the numbers that an optimiser reports (`jaxpt.core.state.Reported`); None if there are none."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, Reported))
    found = [node.numbers for node in nodes if isinstance(node, Reported)]
    return {name: jnp.asarray(value) for numbers in found for name, value in numbers.items()} or None


def rescale_momentum(opt_state: PyTree, factor: Float[Array, "..."]) -> PyTree:
    """Multiplies every momentum buffer (`optax.TraceState`) of each replica by its factor.

    With factor = old rate / new rate, the velocity (rate times momentum) is the same before and after a swap.

    Args:
        opt_state: leaves [*lead, ...].
        factor: [*lead], one number per replica.
    """

    def scale(node: Any) -> Any:
        if not isinstance(node, optax.TraceState):
            return node
        return optax.TraceState(
            jax.tree.map(
                lambda t: t * factor.astype(t.dtype).reshape(factor.shape + (1,) * (t.ndim - factor.ndim)),
                node.trace,
            )
        )

    return jax.tree.map(scale, opt_state, is_leaf=lambda node: isinstance(node, optax.TraceState))
