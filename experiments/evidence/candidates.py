"""Rules that were tried as the default of `jaxpt.Tempering`, and energies other than those of the weights.

All are written from outside the package. Those that won are in `jaxpt`; the others stay here, so that the tables can
be computed again.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

import jaxpt
from jaxpt.rules.exchange import energy_spread


def _static(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidate(jaxpt.Rule):
    """Swaps of neighbours on one ladder; the factor on energies is scaled by their spread, or follows the acceptance.

    The log acceptance ratio of the rungs i and i + 1 is C (b_i - b_{i+1})(E_i - E_{i+1}). b is the number of the rung
    (0, -1, -2, ...) or the ladder's beta. C is `strength` / spread of the energies now; or, with a target, it follows:
    after each exchange log C changes by step (acceptance - target), where the acceptance is the mean that all pairs
    would have had, and step = min(0.5, 600 / (t^0.8 + 1000)) as in Deng et al. (arXiv 2211.10837).

    Attributes:
        strength: acceptance ratio per rung and spread; not used with a target.
        target: the acceptance that C follows; None: C is scaled.
        pairing: as in `jaxpt.Tempering`; "windows": even pairs in one window of exchanges, odd ones in the next, at
            most one swap of a pair in a window of ceil((log P + log log P) / -log(1 - S)) exchanges for a rate S.
        rate: S.
        by_rung: whether b is the number of the rung.
        log_C: state: the factor that follows.
        last: state: the window in which each pair swapped last.
    """

    strength: float = 1.0
    target: float | None = _static(None)
    pairing: str = _static("random_adjacent")
    rate: float = _static(0.1)
    by_rung: bool = _static(True)
    log_C: Float[Array, ""] | float = 0.0
    last: Int[Array, " P"] | int = -1

    def init(self, ladders: Any) -> "Candidate":
        """Returns the rule at the start of a run."""
        rungs = next(iter(ladders.values())).num_rungs
        return dataclasses.replace(self, last=jnp.full(rungs - 1, -1, jnp.int32))

    def propose(self, key: Key[Array, ""], seen: jaxpt.Observation) -> tuple[jaxpt.Move, "Candidate", jaxpt.Info]:
        """Exchanges (see `jaxpt.Rule`)."""
        (name, ladder), *others = seen.ladders.items()
        assert not others, "one ladder only"
        rungs = seen.energy.shape[0]
        beta = jnp.arange(rungs, 0, -1, dtype=jnp.float32) if self.by_rung else ladder.beta
        window = seen.turn // self._length(rungs - 1)
        C = self.strength / energy_spread(seen.energy) if self.target is None else jnp.exp(jnp.asarray(self.log_C))
        rung, info = jaxpt.exchange(
            key,
            beta,
            seen.energy,
            seen.rung[name],
            C=C,
            pairing=self._in_windows(window) if self.pairing == "windows" else self.pairing,
            turn=seen.turn,
            allowed=seen.allowed,
        )
        rule = dataclasses.replace(self, last=jnp.where(info.accepted, window, self.last))
        if self.target is not None:
            step = jnp.minimum(0.5, 600 / (seen.turn.astype(jnp.float32) ** 0.8 + 1000))
            change = step * (info.probability.mean() - self.target)
            rule = dataclasses.replace(rule, log_C=jnp.asarray(self.log_C) + jnp.where(seen.allowed, change, 0.0))
        moved = {key: value[rung] for key, value in ladder.values.items()}
        return jaxpt.Move({name: rung}, {**seen.hyper, **moved}), rule, info

    def _length(self, pairs: int) -> int:
        """Returns the exchanges in a window."""
        pairs = max(pairs, 3)  # log log 2 is negative
        return math.ceil((math.log(pairs) + math.log(math.log(pairs))) / -math.log1p(-self.rate))

    def _in_windows(self, window: Int[Array, ""]) -> Any:
        """Returns the pairing of one window: every second pair, but for those that have swapped in it."""

        def pairing(key: Key[Array, ""], turn: Int[Array, ""], num_rungs: int) -> Array:
            del key, turn
            return (jnp.arange(num_rungs - 1) % 2 == window % 2) & (self.last != window)

        return pairing


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sort(jaxpt.Rule):
    """After each period the replica with the k-th lowest energy takes the k-th coldest rung: sorting without chance."""

    needs_beta = False

    def propose(self, key: Key[Array, ""], seen: jaxpt.Observation) -> tuple[jaxpt.Move, "Sort", jaxpt.Info]:
        """Sorts (see `jaxpt.Rule`)."""
        del key
        (name, ladder), *others = seen.ladders.items()
        assert not others, "one ladder only"
        place = jnp.argsort(jnp.argsort(jnp.where(jnp.isfinite(seen.energy), seen.energy, jnp.inf)))
        rung = jnp.where(seen.allowed, place, seen.rung[name]).astype(seen.rung[name].dtype)
        moved = {key: value[rung] for key, value in ladder.values.items()}
        return jaxpt.Move({name: rung}, {**seen.hyper, **moved}), self, jaxpt.Info.none(len(place))


def averaged(
    problem: jaxpt.Problem, decay: float | None, start: int = 0, *, energy_only: bool = False
) -> jaxpt.Problem:
    """Returns a problem that is scored with an average of the weights over the steps, kept in the model's state.

    Args:
        problem: the problem.
        decay: of an exponential average; None: the mean of all weights from step `start` on (stochastic weight
            averaging, arXiv 1803.05407); before it the weights themselves.
        start: first step of the mean.
        energy_only: only the energy is that of the average; metrics, predictions and models are of the weights.
    """

    def init(key: Key[Array, ""]) -> tuple[Any, Any]:
        params, state = problem.init(key)
        return params, {"state": state, "mean": params, "steps": jnp.zeros((), jnp.int32)}

    def loss(params: Any, held: Any, batch: Any, hyper: Any, key: Any) -> tuple[Array, Any]:
        values, state = problem.loss(params, held["state"], batch, hyper, key)
        count = held["steps"] - start
        share = 1 - decay if decay is not None else jnp.where(count > 0, 1 / (count + 1), 1.0)
        # The weights before this step: an average that lags one step behind.
        now = jax.lax.stop_gradient(params)
        mean = jax.tree.map(lambda m, p: m + share * (p - m), held["mean"], now)
        return values, {"state": state, "mean": mean, "steps": held["steps"] + 1}

    def evaluate(params: Any, held: Any, batch: Any) -> dict[str, Array]:
        scores = problem.evaluate(held["mean"], held["state"], batch)
        if energy_only:
            scores = {**problem.evaluate(params, held["state"], batch), "energy": scores["energy"]}
        return scores

    own: Any = (lambda params, held: params) if energy_only else (lambda params, held: held["mean"])
    build, predict = problem.model, problem.predict
    return problem._replace(
        init=init,
        loss=loss,
        evaluate=evaluate,
        model=build and (lambda params, held: build(own(params, held), held["state"])),
        predict=predict and (lambda params, held, batch: predict(own(params, held), held["state"], batch)),
    )


def cooled_first(problem: jaxpt.Problem, like: Any, rate: float, steps: int, hyper: dict[str, float]) -> jaxpt.Problem:
    """Returns a problem whose energy is that of the weights after a few steps at a cold learning rate.

    The steps are of plain SGD on the last minibatches, which the model's state keeps. Only the energy is computed so.

    Args:
        problem: the problem, whose loss draws no random numbers that matter.
        like: a minibatch, as shapes.
        rate: the cold learning rate.
        steps: how many minibatches are kept, and steps done.
        hyper: values of the hyperparameters that the loss reads.
    """

    def init(key: Key[Array, ""]) -> tuple[Any, Any]:
        params, state = problem.init(key)
        kept = jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape), leaf.dtype), like)
        return params, {"state": state, "kept": kept}

    def loss(params: Any, held: Any, batch: Any, given: Any, key: Any) -> tuple[Array, Any]:
        values, state = problem.loss(params, held["state"], batch, given, key)
        # At most a minibatch: what checks a problem hands in all examples at once.
        latest = jax.tree.map(lambda old, new: new[None, : old.shape[1]], held["kept"], batch)
        kept = jax.tree.map(lambda old, new: jnp.concatenate([old[1:], new]), held["kept"], latest)
        return values, {"state": state, "kept": kept}

    def evaluate(params: Any, held: Any, batch: Any) -> dict[str, Array]:
        def step(params: Any, minibatch: Any) -> tuple[Any, None]:
            values = {name: jnp.float32(value) for name, value in hyper.items()}
            objective = lambda p: problem.loss(p, held["state"], minibatch, values, jax.random.key(0))[0].mean()  # noqa: E731
            updates = jax.tree.map(lambda g: -rate * g, jax.grad(objective)(params))
            return optax.apply_updates(params, updates), None

        cold, _ = jax.lax.scan(step, params, held["kept"])
        energy = problem.evaluate(cold, held["state"], batch)["energy"]
        return {**problem.evaluate(params, held["state"], batch), "energy": energy}

    build, predict = problem.model, problem.predict
    return problem._replace(
        init=init,
        loss=loss,
        evaluate=evaluate,
        model=build and (lambda params, held: build(params, held["state"])),
        predict=predict and (lambda params, held, batch: predict(params, held["state"], batch)),
    )
