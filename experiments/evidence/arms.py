"""The arms of the evidence: a rule with its rates, cooldown and energies; all train M replicas for the same steps."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxpt
from experiments.evidence.candidates import Candidate, Sort, averaged, cooled_first
from experiments.evidence.tasks import Task

Arm = Callable[[Task, int], jaxpt.Engine]
COOLDOWN = 0.3


def rule(made: Callable[[], jaxpt.Rule], cooldown: float | None = COOLDOWN) -> Arm:
    """Returns an arm: a rule on the task's ladder, with a cooldown."""
    return lambda task, replicas: task.engine(made(), task.rates(replicas), cooldown=cooldown)


def seldom(made: Callable[[], jaxpt.Rule]) -> Arm:
    """Returns an arm whose periods are a sixth of the run, with a cooldown: four moves, for rules that copy weights."""
    return lambda task, replicas: task.engine(made(), task.rates(replicas), cooldown=COOLDOWN, every=task.steps // 6)


def same(place: float | None, cooldown: float | None) -> Arm:
    """Returns an arm whose replicas all have one rate: at a place on the ladder, from 0 to 1; a deep ensemble."""

    def engine(task: Task, replicas: int) -> jaxpt.Engine:
        low, high = np.log(task.ends)
        rate = float(np.exp(low + (place or 0.0) * (high - low)))
        return task.engine(jaxpt.Independent(), np.full(replicas, rate), cooldown=cooldown)

    return engine


def of_average(
    made: Callable[[], jaxpt.Rule], decay: float | None, cooldown: float | None, *, energy_only: bool
) -> Arm:
    """Returns an arm that is scored, or only exchanges, by averages of the weights (see `candidates.averaged`)."""

    def engine(task: Task, replicas: int) -> jaxpt.Engine:
        start = round((1 - COOLDOWN) * task.steps)
        problem = averaged(task.problem, decay, start, energy_only=energy_only)
        return task.engine(made(), task.rates(replicas), cooldown=cooldown, problem=problem)

    return engine


def of_cold_steps(made: Callable[[], jaxpt.Rule], steps: int) -> Arm:
    """Returns an arm that exchanges by energies after a few steps at the coldest rate (see `candidates`)."""

    def engine(task: Task, replicas: int) -> jaxpt.Engine:
        train = task.data.train
        like = {k: jax.ShapeDtypeStruct((task.batch_size, *v.shape[1:]), v.dtype) for k, v in train.items()}
        problem = cooled_first(task.problem, like, task.ends[0], steps, task.fixed)
        return task.engine(made(), task.rates(replicas), cooldown=COOLDOWN, problem=problem)

    return engine


def searched(rule: Callable[[], jaxpt.Rule], share: float, factor: float, cooldown: float) -> Arm:
    """Returns an arm that begins with a search."""
    search = jaxpt.Search(share, factor=factor)
    return lambda task, replicas: task.engine(rule(), task.rates(replicas), cooldown=cooldown, search=search)


def _rivals() -> dict[str, Arm]:
    return {
        "grid": rule(jaxpt.Independent, None),
        "grid-cosine": rule(jaxpt.Independent, 1.0),
        "grid-cooldown": rule(jaxpt.Independent),
        "pbt": rule(jaxpt.PBT, None),
        "pbt-cooldown": rule(jaxpt.PBT),
        "pbt-tuned": seldom(jaxpt.PBT),
        "copybest-cooldown": rule(jaxpt.CopyBest),
        "middle-cosine": same(0.5, 1.0),
        "swa": of_average(jaxpt.Independent, None, None, energy_only=False),
    }


def _candidates() -> dict[str, Arm]:
    found: dict[str, Arm] = {}
    for strength in (0.3, 1.0, 3.0, 10.0):
        found[f"scaled-{strength:g}"] = rule(partial(Candidate, strength))
    for pairing in ("seo", "deo", "windows"):
        found[f"scaled-1-{pairing}"] = rule(partial(Candidate, 1.0, pairing=pairing))
    for share in (None, 0.5, 0.7):
        found[f"scaled-1-cooldown-{share}"] = rule(partial(Candidate, 1.0), share)
    for target in (0.5, 0.25, 0.1, 0.01):
        found[f"tracked-{target:g}"] = rule(partial(Candidate, target=target))
        found[f"tracked-{target:g}-beta"] = rule(partial(Candidate, target=target, by_rung=False))
    for target in (0.25, 0.1):
        found[f"tracked-{target:g}-windows"] = rule(partial(Candidate, target=target, pairing="windows"))
    for C in (10.0, 100.0, 1000.0):
        found[f"C-{C:g}"] = rule(partial(jaxpt.Tempering, C))
    found["C-100-constant"] = rule(partial(jaxpt.Tempering, 100.0), None)
    found["auto-deo"] = rule(partial(jaxpt.Tempering, "auto", "deo"))
    found["sort"] = rule(Sort)
    found["scaled-1-averages"] = of_average(partial(Candidate, 1.0), 0.99, COOLDOWN, energy_only=True)
    found["scaled-1-coldsteps"] = of_cold_steps(partial(Candidate, 1.0), 5)
    return found


def _searched() -> dict[str, Arm]:
    found = {"tempering": searched(jaxpt.Tempering, 0.1, 2.0, COOLDOWN)}
    found["search, grid-cooldown"] = searched(jaxpt.Independent, 0.1, 2.0, COOLDOWN)
    found["search, grid-cosine"] = searched(jaxpt.Independent, 0.1, 2.0, 0.9)
    found["search, one rate-cosine"] = searched(jaxpt.Independent, 0.1, 1.0, 0.9)
    found["search, pbt-cooldown"] = searched(jaxpt.PBT, 0.1, 2.0, COOLDOWN)
    for share in (0.05, 0.2):
        found[f"tempering, search {share:g}"] = searched(jaxpt.Tempering, share, 2.0, COOLDOWN)
    for factor in (1.5, 4.0):
        found[f"tempering, factor {factor:g}"] = searched(jaxpt.Tempering, 0.1, factor, COOLDOWN)
    for share in (0.5, 0.7):
        found[f"tempering, cooldown {share:g}"] = searched(jaxpt.Tempering, 0.1, 2.0, share)
    for strength in (0.3, 3.0):
        rule = partial(jaxpt.Tempering, strength=strength)
        found[f"tempering, strength {strength:g}"] = searched(rule, 0.1, 2.0, COOLDOWN)
    found["tempering, deo"] = searched(partial(jaxpt.Tempering, pairing="deo"), 0.1, 2.0, COOLDOWN)
    return found


ARMS: Mapping[str, Arm] = {**_rivals(), **_candidates(), **_searched()}
"""{name: function (task, replicas) -> engine}."""


def at_rate(task: Task, replicas: int, rate: float) -> jaxpt.Engine:
    """Returns a deep ensemble at one rate, each falling along half a cosine."""
    return task.engine(jaxpt.Independent(), np.full(replicas, rate), cooldown=1.0)


def settings(engine: jaxpt.Engine) -> dict[str, Any]:
    """Returns what an arm is, in words and numbers."""
    made: Any = engine.rule
    about = {f.name: getattr(made, f.name) for f in dataclasses.fields(made) if f.init}
    return {"rule": type(engine.rule).__name__, **{k: v for k, v in about.items() if isinstance(v, int | float | str)}}


def file_name(arm: str) -> str:
    """Returns the name of an arm's file."""
    return arm.replace(", ", "-").replace(" ", "-").replace(":", "-") + ".json"
