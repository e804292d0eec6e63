"""Peers on the same work: M replicas of the paper's LeNet on EMNIST-letters over a ladder of learning rates.

uv run --with torch --with torchvision --with "ray[tune]" benchmarks/peers.py --deo FOLDER --out FILE.json

Arms, in the order in which they run:
    auto_pair        jaxpt: one random pair a period, C found during burn-in
    auto             jaxpt: all even pairs, then all odd ones; C and the ladder found during burn-in
    pbt              jaxpt: population based training
    grid             jaxpt: nothing is exchanged
    torch_grid       PyTorch: one replica after another, on the number of threads that is fastest
    torch_processes  PyTorch: the same in as many processes as there are cores, one thread each
    torch_func       PyTorch: all replicas at once by torch.func
    tune_pbt         Ray Tune: population based training of PyTorch replicas, all trials at once (needs ray[tune])
    deo_code         the published code of arXiv 2211.10837 (needs torchvision and --deo, see `peers_deo`)

All start from the same weights, take the same number of steps on the same minibatches, and are scored by the same
program, on the whole splits; the replica is the one with the lowest error on validation, the mixture the mean
prediction of all. What differs: dropout's random bits, and each peer's own way of exchanging.

Seconds go from the first step to the end of the last one, with the energies (on --probe validation examples) and
exchanges that the arm makes on its way: jaxpt's arms and tune_pbt every period, the other peers none. Start-up is what
comes before: compilation, the start of processes, warming up. Where several processes train, the first step is that of
the first to begin. Scoring, and the few steps by which PyTorch's threads and memory layout are chosen, count nowhere.
torch.compile is not used: it takes a minute, and a step of LeNet is as fast without.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import jaxpt
from benchmarks import record, torch_steps
from benchmarks.peers_task import Task, Trained
from experiments import datasets, report
from experiments.augment import Standardise
from experiments.classification import classifier, mixture_error
from experiments.models import LeNetEMNIST
from jaxpt.core.data import Data
from jaxpt.engine.period import DATA

MOMENTUM = 0.9
_METRICS = {"error": mixture_error}
_PAUSE = 0.5  # seconds between arms: a library's threads may spin for a while after their work


class Work(NamedTuple):
    """What all arms do."""

    options: argparse.Namespace
    seed: int
    data: Data
    engine: jaxpt.Engine
    """With whatever rule."""
    start: Any
    """The engine's state before the first step."""
    task: Task
    """The same for the peers."""


def work(options: argparse.Namespace, data: Data, seed: int) -> Work:
    """Returns the work of one seed."""

    def network(*, rngs: nnx.Rngs) -> nnx.Module:
        return nnx.Sequential(Standardise(size=32), LeNetEMNIST(rngs=rngs))

    engine = jaxpt.Engine(
        classifier(network),
        lambda h: optax.sgd(h["learning_rate"], momentum=MOMENTUM),
        jaxpt.Ladder(learning_rate=jaxpt.geometric(options.coldest, options.hottest, options.replicas)),
        jaxpt.Independent(),
        every=options.every,
        batch_size=options.batch,
        fixed={"dropout_rate": options.dropout},
        probe=options.probe,
        drop_remainder=True,
    )
    start = engine.init(jax.random.key(seed))
    rows, _ = jaxpt.core.data.minibatches(
        jax.random.fold_in(jax.random.key(seed), DATA),
        0,
        num_steps=options.steps,
        num_examples=len(data.train["label"]),
        batch_size=options.batch,
        drop_remainder=True,
    )
    task = Task(
        *(data.train["image"], data.train["label"], data.valid["image"], data.valid["label"]),
        rows=np.asarray(rows),
        rates=engine.ladder.values["learning_rate"],
        weights=to_torch(start.replicas.params),
        momentum=MOMENTUM,
        dropout=options.dropout,
        every=options.every,
        probe=options.probe,
        seed=seed,
    )
    return Work(options, seed, data, engine, start, task)


def to_torch(params: Any) -> dict[str, np.ndarray]:
    """Returns {PyTorch's name: [M, ...]} of stacked weights: channels before rows, features out before features in."""
    weights = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        name, array = _name(path), np.asarray(leaf)
        if name.endswith("weight"):
            array = array.transpose(0, 4, 3, 1, 2) if array.ndim == 5 else array.transpose(0, 2, 1)
        weights[name] = np.array(array[..., None, None] if name.startswith("pool") else array)
    return weights


def from_torch(weights: dict[str, np.ndarray], params: Any) -> Any:
    """Returns stacked weights as a tree like `params`."""

    def leaf(path: Any, like: jax.Array) -> np.ndarray:
        name = _name(path)
        array = weights[name]
        if name.endswith("weight"):
            array = array.transpose(0, 3, 4, 2, 1) if array.ndim == 5 else array.transpose(0, 2, 1)
        return np.ascontiguousarray(array.reshape(like.shape))

    return jax.tree.map_with_path(leaf, params)


def _name(path: Any) -> str:
    """conv1.weight of layers.1.conv1.kernel.value."""
    layer, kind = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value").split(".")[-2:]
    return f"{layer}.{'weight' if kind == 'kernel' else kind}"


def by_jaxpt(rule: Callable[[int], jaxpt.Rule], work: Work) -> tuple[Trained, Any]:
    """Trains by a rule, made of the periods of burn-in, and returns the final state, too."""
    exchanging = rule is not _pbt  # copies begin at once, as in Ray Tune
    burn_in = work.options.steps // 4 if exchanging else 0
    engine = dataclasses.replace(work.engine, rule=rule(burn_in // work.options.every), burn_in=burn_in)
    called, begun = time.perf_counter(), []  # all before the first step is start-up, as with the peers
    result = jaxpt.fit(
        engine,
        *work.data[:2],
        steps=work.options.steps,
        seed=work.seed,
        progress=False,
        callbacks=[lambda status: begun.append(time.perf_counter() - status.seconds)],
    )
    info = result.trace.info
    moves = info.accepted if info.parents is None else info.parents != np.arange(engine.num_replicas)
    how = f"{result.execution}; {moves.sum()} {'swaps' if info.parents is None else 'copies'}"
    return Trained({}, result.seconds, begun[0] - called, how, result.replica_images), result.state


def by_peer(train: Callable[[Task], Trained], work: Work) -> tuple[Trained, Any]:
    """Trains by a peer and returns the final weights in a state of jaxpt's."""
    trained = train(work.task)
    params = from_torch(trained.weights, work.start.replicas.params)
    replicas = work.start.replicas._replace(params=params)
    state = work.engine.placed.put(work.start._replace(replicas=replicas), jaxpt.core.state.state_axes(0))
    return trained, state


def _pair(burn_in: int) -> jaxpt.Rule:
    return jaxpt.Tempering("auto", window=max(1, min(32, burn_in // 4)))


def _deo(burn_in: int) -> jaxpt.Rule:
    window = min(32, burn_in // 4)  # the ladder adapts four times at least, or not at all
    return jaxpt.Tempering("auto", "deo", adapt_ladder=window > 0, window=max(1, window))


def _pbt(burn_in: int) -> jaxpt.Rule:
    return jaxpt.PBT()


def _grid(burn_in: int) -> jaxpt.Rule:
    return jaxpt.Independent()


Arm = Callable[[Work], tuple[Trained, Any]]
OURS: dict[str, Arm] = {
    "auto_pair": partial(by_jaxpt, _pair),
    "auto": partial(by_jaxpt, _deo),
    "pbt": partial(by_jaxpt, _pbt),
    "grid": partial(by_jaxpt, _grid),
}
THEIRS = ("torch_grid", "torch_processes", "torch_func", "tune_pbt", "deo_code")


def arms(options: argparse.Namespace) -> tuple[dict[str, Arm], dict[str, str]]:
    """Returns the chosen arms that can run, and why the others are left out."""
    found: dict[str, Callable[[Task], Trained]] = {}
    reasons = dict.fromkeys(THEIRS, torch_steps.missing())
    if not reasons["torch_grid"]:
        from benchmarks import peers_deo, peers_torch

        found["torch_grid"], found["torch_processes"] = peers_torch.one_after_another, peers_torch.in_processes
        found["torch_func"] = peers_torch.at_once
        reasons["deo_code"] = peers_deo.missing(options.deo, options.replicas)
        found["deo_code"] = partial(peers_deo.published, folder=options.deo)
        if importlib.util.find_spec("ray"):
            from benchmarks import peers_tune

            found["tune_pbt"] = peers_tune.population
        else:
            reasons["tune_pbt"] = "Ray is not installed"
    left_out = {name: reason for name, reason in reasons.items() if reason and name in options.arms}
    run = OURS | {name: partial(by_peer, found[name]) for name in THEIRS if not reasons[name]}
    return {name: arm for name, arm in run.items() if name in options.arms}, left_out


def check_networks(work: Work) -> None:
    """Raises RuntimeError if PyTorch's network is not ours: energies of the first weights on a probe."""
    from benchmarks import peers_torch
    from benchmarks.peers_task import probe_rows

    rows = probe_rows(work.task, 0)
    ours = work.engine.evaluate(work.start, jax.tree.map(lambda leaf: leaf[rows], work.data.valid))["energy"]
    theirs = [peers_torch.Replica(work.task, m, "channels-last").energy(rows) for m in range(len(ours))]
    if not np.allclose(ours, theirs, rtol=1e-4):
        raise RuntimeError(
            f"the networks differ: energies {np.asarray(ours)} in jaxpt, {np.asarray(theirs)} in PyTorch"
        )


def measure(name: str, arm: Arm, work: Work) -> dict[str, Any]:
    """Returns one arm's row."""
    time.sleep(_PAUSE)
    trained, state = arm(work)
    scores = [jax.tree.map(np.asarray, work.engine.evaluate(state, split)) for split in work.data[1:]]
    mixture = jaxpt.ensemble(work.engine, state, work.data.test, _METRICS)["error"]
    healthy = np.isfinite(scores[0]["energy"])
    error, energy = (np.where(healthy, scores[0][on], np.inf) for on in ("error", "energy"))
    best = int(np.lexsort([energy, error])[0])
    steps, replicas = work.task.rows.shape[0], len(work.task.rates)
    images = trained.images or steps * replicas * work.task.rows.shape[1]
    return {
        "arm": name,
        "seed": work.seed,
        "replicas": replicas,
        "batch": work.task.rows.shape[1],
        "steps": steps,
        "every": work.task.every,
        "seconds": trained.seconds,
        "startup_seconds": trained.startup_seconds,
        "wall_seconds": trained.startup_seconds + trained.seconds,
        "replica_images": images,
        "images_per_second": images / trained.seconds,
        "replica": best,
        "validation_error": report.number(100 * error[best]),
        "test_error": report.number(100 * scores[1]["error"][best]) if healthy.any() else None,
        "mixture_test_error": report.number(100 * mixture),
        "diverged": int((~healthy).sum()),
        "how": trained.how,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Returns Markdown: medians of times and means of errors over seeds."""
    title = ("arm", "s", "start-up s", "images/s", "test error %", "of the mixture %", "diverged", "how (first seed)")
    shown = [title]
    for name in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == name]
        seconds, startup, rate = (
            statistics.median(row[key] for row in own) for key in ("seconds", "startup_seconds", "images_per_second")
        )
        errors = [_mean([row[key] for row in own]) for key in ("test_error", "mixture_test_error")]
        diverged = sum(row["diverged"] for row in own)
        shown.append((name, f"{seconds:.1f}", f"{startup:.1f}", f"{rate:,.0f}", *errors, str(diverged), own[0]["how"]))
    return "\n".join(report.markdown(shown))


def _mean(values: list[float | None]) -> str:
    return "-" if None in values else f"{statistics.fmean(values):.2f}"


def main() -> None:
    """Runs the arms seed by seed and writes as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=[*OURS, *THEIRS], default=[*OURS, *THEIRS])
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2000, help="a multiple of --every; a quarter is burn-in")
    parser.add_argument("--every", type=int, default=50, help="steps in a period, for Ray Tune an iteration")
    parser.add_argument("--probe", type=int, default=1024, help="validation examples behind an energy")
    parser.add_argument("--coldest", type=float, default=0.01, help="smallest learning rate; ratios are equal")
    parser.add_argument("--hottest", type=float, default=0.1, help="largest one")
    parser.add_argument("--dropout", type=float, default=0.05, help="of all replicas")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--dataset", default="emnist_letters", help="images of 28x28 pixels, at most 26 classes")
    parser.add_argument("--data-dir", type=Path, help="folder with the data; else it is downloaded once")
    parser.add_argument("--deo", type=Path, help="folder with the published code of arXiv 2211.10837")
    parser.add_argument("--out", type=Path, help="JSON file, written after every arm")
    options = parser.parse_args()
    if options.steps % options.every:
        parser.error(f"--steps {options.steps} must be a multiple of --every {options.every}")
    jaxpt.use_all_cores()
    chosen, left_out = arms(options)
    for name, reason in left_out.items():
        print(f"left out: {name} ({reason})", file=sys.stderr)
    data, dataset = datasets.load(options.dataset, data_dir=options.data_dir)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        job = work(options, data, seed)
        if set(chosen) & set(THEIRS):
            check_networks(job)
        for name, arm in chosen.items():
            rows.append(measure(name, arm, job))
            print(f"seed {seed}, {name}: {rows[-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
            peers = {"left_out": left_out, "dataset": dataset, "peer_versions": peer_versions()}
            record.write(options.out, rows, seeds=options.seeds, **peers)
    print(table(rows))


def peer_versions() -> dict[str, str]:
    """Returns those of the peers that are installed."""
    names = [name for name in ("torch", "torchvision", "ray") if importlib.util.find_spec(name)]
    return {name: importlib.metadata.version(name) for name in names}


if __name__ == "__main__":
    main()
