"""Checks that an engine's hyperparameters are those that model, optimiser and schedule read."""

import jax
import jax.numpy as jnp
import optax

from jaxpt.engine.reads import check_kept, has_state, reading
from jaxpt.engine.replica import scheduled
from jaxpt.engine.spec import Spec, abstract_hyper

_INJECTED = (optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState)


def check_names(engine: Spec) -> None:
    """Raises ValueError unless every given hyperparameter is read where swaps take effect, and all read are given."""
    hyper = abstract_hyper(engine)
    given = ", ".join(hyper) or "none"
    if missing := sorted(engine.problem.hyperparameters - set(hyper)):
        raise ValueError(
            f"the model reads the hyperparameter(s) {', '.join(missing)}, but ladders and fixed hold {given}; add what "
            "is missing to one of them"
        )
    try:
        found = reading(engine.problem, engine.optimizer, engine.schedule, hyper)
    except KeyError as error:
        if error.args and error.args[0] in hyper:
            raise
        raise ValueError(
            f"the optimizer or schedule reads the hyperparameter {error}, but ladders and fixed hold {given}; add it "
            "to one of them"
        ) from error
    known = found.names | engine.problem.hyperparameters | {"batch_size"}
    after = jax.eval_shape(lambda h: dict(scheduled(engine.schedule, h, jnp.zeros((), jnp.int32))), hyper)
    if lost := sorted(set(hyper) & engine.problem.hyperparameters - set(after)):
        raise ValueError(f"the schedule drops {', '.join(lost)}, which the model reads; return {{**h, ...}}")
    for part, hint in ((engine.beginning, "search=jaxpt.Search(0.1"), (engine.ending, "cooldown=jaxpt.Cooldown(0.3")):
        if part is not None and (lost := sorted(set(part.names) - set(after))):
            raise ValueError(
                f"the {hint.partition('=')[0]} lowers {', '.join(lost)}, but ladders and fixed hold {given}; name what "
                f"it lowers, such as {hint}, names={next(iter(hyper))!r})"
            )
    if not engine.problem.reads_hyper:
        check_all_read(engine, known)
    if has_state(found.opt_state, _INJECTED):
        raise ValueError(
            "optax.inject_hyperparams keeps its first values in the optimizer's state, so swaps would not reach it; "
            "leave it out: the optimizer is built anew from the hyperparameters in every step"
        )
    on_ladders = {name for ladder in engine.ladders.values() for name in ladder.values}
    changes = engine.rule.exchanges or engine.diverged == "respawn" or engine.beginning is not None
    lowered = {name for part in (engine.beginning, engine.ending) if part is not None for name in part.names}
    check_kept(found, (on_ladders if changes else set()) | lowered)
    if engine.rescale_momentum is None:
        return
    if engine.rescale_momentum not in hyper:
        raise ValueError(f"rescale_momentum must be one of {given}, but it is {engine.rescale_momentum!r}")
    if not has_state(found.opt_state, (optax.TraceState,)):
        raise ValueError(
            f"rescale_momentum={engine.rescale_momentum!r} finds no momentum (optax.trace) in the optimizer's state; "
            "leave it out, or use optax.sgd(..., momentum=...)"
        )


def check_all_read(engine: Spec, known: set[str]) -> None:
    """Raises ValueError if a given hyperparameter is not among the known names."""
    if unknown := sorted(set(abstract_hyper(engine)) - known):
        raise ValueError(
            f"nothing reads the hyperparameter(s) {', '.join(unknown)}: the model, the optimizer, the schedule and the "
            f"loss read {', '.join(sorted(known - {'batch_size'})) or 'none'}; check the spelling, or leave them out"
        )
