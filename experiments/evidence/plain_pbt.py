"""Population based training in plain JAX and NumPy: does `jaxpt.PBT` lose diversity because of a fault, or of greed?

uv run -m experiments.evidence.plain_pbt --data-dir /data/emnist_letters --seeds 6 --out plain-pbt.json

The task is `letters14` with its careless ladder. The plain loop shares no code with jaxpt: network, SGD, minibatches,
selection and exploration are written here, after Jaderberg et al. (arXiv 1711.09846). Only the data is common. Runs
that the file holds already are not repeated.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int

import jaxpt
from experiments import report
from experiments.evidence import tasks
from experiments.evidence.__main__ import scored
from experiments.evidence.tables import plus_minus
from jaxpt.saving import files

REPLICAS, BATCH, STEPS, BURN_IN = 8, 16, 6000, 300
LOW, HIGH = 0.0064, 0.64
COOLED = 60
"""Steps in which a copy is cooled before it is scored, with the score "cooled"."""
SHOWN = 600
"""Steps between the rows of the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How PBT is run."""

    every: int = 60
    """Steps between selections; 0: never, a grid."""
    clip: bool = True
    """Keep explored rates within the ladder's ends, as `jaxpt.PBT` does."""
    score: Literal["energy", "error", "cooled", "random"] = "energy"
    """What selects: the validation energy or error, the energy of a cooled copy, or (a control) a random number."""
    cooldown: float = 0.0
    """Share of the run, at its end, without selection, in which rates fall to zero along half a cosine."""

    @property
    def start(self) -> int:
        """The step at which the cooldown begins."""
        return STEPS - round(self.cooldown * STEPS)


SETTINGS = {
    "pbt": Setting(),
    "pbt, free rates": Setting(clip=False),
    "pbt, by error": Setting(score="error"),
    "pbt, at random": Setting(score="random"),
    "pbt, cooldown": Setting(cooldown=0.3),
    "pbt, every 300, cooldown": Setting(every=300, cooldown=0.3),
    "pbt, every 1000, cooldown": Setting(every=1000, cooldown=0.3),
    "pbt, by cooled energy, cooldown": Setting(score="cooled", cooldown=0.3),
    "pbt, every 300, by cooled energy, cooldown": Setting(every=300, score="cooled", cooldown=0.3),
    "grid, cooldown": Setting(every=0, cooldown=0.3),
}
# Until the cooldown "pbt, cooldown" has the course of "pbt".
PLAIN = tuple(f"plain: {name}" for name in SETTINGS if name != "pbt, cooldown")
OURS = tuple(f"jaxpt: {name}" for name, s in SETTINGS.items() if s.score == "energy" and s.clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Plain PBT beside `jaxpt.PBT`."""

    data_dir: Path
    """Folder with EMNIST letters."""
    out: Path = Path("runs/plain-pbt.json")
    """Where the results go."""
    seeds: int = 6
    """How many."""
    first_seed: int = 100
    """The first of them, in a row."""
    runs: tuple[str, ...] = (*PLAIN, *OURS)
    """Which."""


Weights = dict[str, Array]
Split = dict[str, Array]


def init(key: Array) -> Weights:
    """Returns the weights of the network of `tasks.MLP`: LeCun normal, biases 0."""
    one, two = jax.random.split(key)
    normal = jax.nn.initializers.lecun_normal()
    return {"W1": normal(one, (196, 96)), "b1": jnp.zeros(96), "W2": normal(two, (96, 26)), "b2": jnp.zeros(26)}


def log_probabilities(w: Weights, images: Float[Array, "B 196"]) -> Float[Array, "B 26"]:
    """Returns the log probability of each class."""
    return jax.nn.log_softmax(jnp.maximum(images @ w["W1"] + w["b1"], 0) @ w["W2"] + w["b2"])


def nll(w: Weights, images: Float[Array, "B 196"], labels: Int[Array, " B"]) -> Float[Array, ""]:
    """Returns the mean cross-entropy."""
    return -jnp.take_along_axis(log_probabilities(w, images), labels[:, None], 1).mean()


def each(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a jitted function of every seed and replica; its last argument is shared by all of them."""
    replicas = lambda *xs, shared: jax.lax.map(lambda x: function(*x, shared), xs)  # noqa: E731
    return jax.jit(lambda *xs: jax.lax.map(lambda x: replicas(*x, shared=xs[-1]), xs[:-1]))


@each
def train(w: Weights, rates: Float[Array, " T"], rows: Int[Array, "T B"], split: Split) -> Weights:
    """Returns the weights after T steps of SGD."""

    def step(w: Weights, given: tuple[Array, Array]) -> tuple[Weights, None]:
        rate, row = given
        gradient = jax.grad(nll)(w, split["image"][row], split["label"][row])
        return jax.tree.map(lambda p, g: p - rate * g, w, gradient), None

    return jax.lax.scan(step, w, (rates, rows))[0]


@each
def evaluate(w: Weights, split: Split) -> tuple[Array, Array]:
    """Returns energy and error."""
    logp = log_probabilities(w, split["image"])
    rows = jnp.arange(len(logp))
    return -logp[rows, split["label"]].mean(), (logp.argmax(-1) != split["label"]).mean()


probabilities = each(lambda w, images: jnp.exp(log_probabilities(w, images)))


def select(
    random: np.random.Generator, score: Float[np.ndarray, " M"], rates: Float[np.ndarray, " M"], clip: bool
) -> tuple[Int[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Returns each replica's parent and new rate: truncation selection, then perturbation or resampling."""
    parents, new, quarter = np.arange(REPLICAS), rates.copy(), REPLICAS // 4
    order = np.argsort(np.where(np.isfinite(score), score, np.inf))
    for loser in order[-quarter:]:
        winner = random.choice(order[:quarter])
        parents[loser] = winner
        if random.random() < 0.25:
            new[loser] = np.exp(random.uniform(np.log(LOW), np.log(HIGH)))
        else:
            new[loser] = rates[winner] * random.choice([0.8, 1.2])
        if clip:
            new[loser] = np.clip(new[loser], LOW, HIGH)
    return parents, new


def falling(x: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Returns half a cosine, from 1 at x <= 0 to 0 at x >= 1."""
    return (1 + np.cos(np.pi * np.clip(x, 0, 1))) / 2


def _taken(leaf: Array, parents: Int[np.ndarray, "S M"]) -> Array:
    return leaf[np.arange(len(leaf))[:, None], parents]


def plain(setting: Setting, seeds: list[int], data: dict[str, Split]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the scores of each seed, and the course of all."""
    count, period = len(seeds), setting.every or STEPS
    random = [np.random.default_rng(seed) for seed in seeds]
    own: list[Any] = [jax.vmap(init)(jax.random.split(jax.random.key(seed), REPLICAS)) for seed in seeds]
    w = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
    rates = np.tile(np.geomspace(LOW, HIGH, REPLICAS), (count, 1))
    roots = np.tile(np.arange(REPLICAS), (count, 1))
    size, course = len(data["train"]["label"]), []
    orders: list[Any] = [[] for _ in seeds]

    def trained(w: Weights, factors: Float[np.ndarray, " T"]) -> Weights:
        return train(w, (rates[..., None] * factors).astype(np.float32), drawn(len(factors)), data["train"])

    def drawn(steps: int) -> Int[np.ndarray, "S M T B"]:
        for k in range(count):
            while len(orders[k]) < steps * BATCH:
                orders[k] = np.concatenate([orders[k], random[k].permutation(size)]).astype(int)
        rows = np.stack([order[: steps * BATCH].reshape(steps, BATCH) for order in orders])
        orders[:] = [order[steps * BATCH :] for order in orders]
        return np.repeat(rows[:, None], REPLICAS, 1)  # all replicas see the same minibatches, as in jaxpt

    for begin in range(0, STEPS, period):
        end = min(begin + period, STEPS)
        course.append((begin, rates, roots))
        w = trained(w, falling((np.arange(begin, end) - setting.start) / max(1, STEPS - setting.start)))
        if not (BURN_IN < end <= setting.start and end < STEPS and setting.every):
            continue
        judged = trained(w, falling(np.arange(COOLED) / COOLED)) if setting.score == "cooled" else w
        energy, error = (np.asarray(x) for x in evaluate(judged, data["valid"]))
        chance = np.stack([own.random(REPLICAS) for own in random])
        score = {"error": error, "random": chance}.get(setting.score, energy)
        moves = [select(random[k], score[k], rates[k], setting.clip) for k in range(count)]
        parents, rates = (np.stack(x) for x in zip(*moves, strict=True))
        w = jax.tree.map(partial(_taken, parents=parents), w)
        roots = np.take_along_axis(roots, parents, 1)
    course.append((STEPS, rates, roots))

    energy, error = (np.asarray(x) for x in evaluate(w, data["valid"]))
    of_test, labels = np.asarray(probabilities(w, data["test"]["image"])), np.asarray(data["test"]["label"])
    wrong = lambda p: 100 * float((p.argmax(-1) != labels).mean())  # noqa: E731
    best = [np.lexsort((energy[k], error[k]))[0] for k in range(count)]  # by error, then by energy
    found = [
        {"best": wrong(own[one]), "ensemble": wrong(own.mean(0)), "rate": float(rate[one])}
        for own, one, rate in zip(of_test, best, rates, strict=True)
    ]
    return found, _course(*(np.stack(x) for x in zip(*course, strict=True)))


def ours(setting: Setting, seeds: list[int], task: tasks.Task) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the same of `jaxpt.PBT`."""
    rule = jaxpt.PBT() if setting.every else jaxpt.Independent()
    timed = dataclasses.replace(task, every=setting.every or task.every)
    engine = timed.engine(rule, task.rates(REPLICAS), cooldown=setting.cooldown or None)
    result = jaxpt.fit(engine, task.data.train, task.data.valid, steps=STEPS, seeds=seeds, progress=False)
    trace = jax.tree.map(np.asarray, result.trace)
    rates, roots = trace.hyper["learning_rate"], [np.tile(np.arange(REPLICAS), (len(seeds), 1))]
    for parents in trace.info.parents if setting.every else ():
        roots.append(np.take_along_axis(roots[-1], parents, 1))
    last = np.asarray(result.state.replicas.hyper["learning_rate"])[None]
    rates, steps = np.concatenate([rates, last]), np.append(0, trace.step)
    if not setting.every:
        roots = [roots[0]] * len(steps)
    every = scored(result, task)
    found = [{"best": s["best"]["error"], "ensemble": s["all"]["error"], "rate": s["best_rate"]} for s in every]
    return found, _course(steps, rates, np.stack(roots))


def _course(
    steps: Int[np.ndarray, " P"], rates: Float[np.ndarray, "P S M"], roots: Int[np.ndarray, "P S M"]
) -> dict[str, Any]:
    """Returns rates (geometric means) and ancestors that are left after each `SHOWN` steps; means over the seeds."""
    at = [int(np.flatnonzero(steps <= step)[-1]) for step in range(0, STEPS + 1, SHOWN)]
    ancestors = np.array([[len(np.unique(own)) for own in row] for row in roots])
    return {
        "step": list(range(0, STEPS + 1, SHOWN)),
        "rate": [round(float(np.exp(np.log(rates[k]).mean())), 5) for k in at],
        "ancestors": [round(float(ancestors[k].mean()), 2) for k in at],
        "one ancestor from step": [int(steps[np.argmax(a == 1)]) if (a == 1).any() else None for a in ancestors.T],
    }


def main(options: Options) -> None:
    """Runs what is missing, and prints a line for each run."""
    task = tasks.letters14("careless", options.data_dir)
    flat = lambda images: jnp.asarray((images.reshape(len(images), -1) / 255 - 0.17) / 0.33, jnp.float32)  # noqa: E731
    data = {
        name: {"image": flat(split["image"]), "label": jnp.asarray(split["label"], jnp.int32)}
        for name, split in task.data._asdict().items()
    }
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    runs = json.loads(options.out.read_text())["runs"] if options.out.exists() else {}
    for name in options.runs:
        if name in runs and runs[name]["seeds"] == seeds:
            continue
        started = time.perf_counter()
        code, _, key = name.partition(": ")
        setting = SETTINGS[key]
        run = partial(plain, data=data) if code == "plain" else partial(ours, task=task)
        found, course = run(setting, seeds)
        scores = {key: [round(float(one[key]), 4) for one in found] for key in found[0]}
        runs[name] = {"seeds": seeds, "setting": dataclasses.asdict(setting), **scores, "course": course}
        about = {"task": "letters14", "ladder": "careless", "dataset": task.dataset, "steps": STEPS, "seeds": seeds}
        files.write(options.out, json.dumps({**about, **report.provenance(), "runs": runs}, indent=1) + "\n")
        best, together = (plus_minus(scores[name]) for name in ("best", "ensemble"))
        print(f"{name}: best {best}, ensemble {together} ({time.perf_counter() - started:.0f} s)", flush=True)
        print(f"  rates {course['rate']}, ancestors {course['ancestors']}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
