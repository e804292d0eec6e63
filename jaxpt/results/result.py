"""What comes of a run: the final state, the trace, the scores, the best replica's model, and the ways to keep them."""

import dataclasses
import os
import warnings
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core import tree
from jaxpt.core.decimals import shortest
from jaxpt.core.extras import extra, versions
from jaxpt.core.state import RunState, Trace
from jaxpt.devices.execution import Execution
from jaxpt.devices.processes import is_first
from jaxpt.engine.engine import Engine
from jaxpt.models.scores import is_higher_better
from jaxpt.results.ensemble import Mixture, ladder_of, together
from jaxpt.saving.files import local_path
from jaxpt.saving.keeping import Kept, best_kept
from jaxpt.saving.model_files import save_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxpt.diagnostics.lineage import Lineage
    from jaxpt.results.summary import Summary


@dataclasses.dataclass(frozen=True)
class Best:
    """One replica at the end of a run: the one that did best on validation, say, or one of the coldest.

    Attributes:
        replica: its slot, 0 .. M - 1.
        seed: which seed's ladder it belongs to (an index into `seeds`); None for a run with one seed.
        valid: its energy and metrics on the whole validation split, at the end.
        test: the same on the test split; empty without one.
        model: the user's model with its weights, in evaluation mode.
        rung: {ladder: where it stands after the last exchange}.
        hyper: {name: its hyperparameter there}.
        step: the optimiser steps after which all of this holds; None: the run's last one.
    """

    replica: int
    seed: int | None
    valid: dict[str, float]
    test: dict[str, float]
    model: Any = dataclasses.field(repr=False)
    rung: dict[str, int] = dataclasses.field(default_factory=dict)
    hyper: dict[str, float] = dataclasses.field(default_factory=dict)
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a run.

        >>> result.best().model(valid["x"]).shape  # the replica that is best on validation, ready to call
        (80, 2)
        >>> result.mixture(coldest=3)(valid).shape  # the mean of several replicas' predictions
        (80, 2)
        >>> result.trace.valid["energy"].shape  # [periods, replicas], or [periods, seeds, replicas]
        (20, 4)
        >>> result.trace.rung["learning_rate"][-1].tolist()  # where each replica stands, [periods, replicas]
        [..., ..., ..., ...]
        >>> result.summary()["steps"]  # its str is a short text
        200
        >>> result.report("report.html")  # pictures, settings, diagnosis on one page
        >>> result.save_model("best")  # jaxpt.load_model("best") gets it back

    In several processes whatever looks into the state (all of these but the trace) is called by all or by none.

    Attributes:
        engine: the engine that ran.
        state: the state after the last step.
        trace: one row per period, as NumPy arrays.
        valid: {"energy": [M], metric: [M]} on the whole validation split, at the end; [S, M] with seeds.
        test: the same on the test split; empty without one.
        seconds: wall time of the training, compilation left out.
        compile_seconds: wall time of the compilation.
        replica_images: training examples that all replicas were trained on, repeats counted; batch sizes as in
            `trace.hyper`.
        execution: how the replica axis was executed and on how many devices; `str` says it in words.
        stopped: what ended the run before its last step, if anything did.
        kept: the best replica of all periods of each seed, where `fit` was to keep it; see `best`.
    """

    engine: Engine = dataclasses.field(repr=False)
    state: RunState = dataclasses.field(repr=False)
    trace: Trace = dataclasses.field(repr=False)
    valid: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    seconds: float
    compile_seconds: float
    replica_images: int
    execution: Execution
    stopped: Literal["callback", "patience"] | None = None
    kept: tuple[Kept | None, ...] | None = dataclasses.field(default=None, repr=False)

    @property
    def num_seeds(self) -> int | None:
        """How many ladders there are, one per seed; None for a run with one seed."""
        return self.state.key.shape[0] if self.state.key.ndim else None

    def best(self, on: str = "energy", seed: int | None = None, *, ever: bool = False) -> Best:
        """Returns the replica with the best score on the validation split (ties: the lower energy).

        The best energy is the lowest, the best metric the highest or the lowest, as `jaxpt.Metric` or its name tells.

        Args:
            on: "energy", which may be called "validation" too, or one of the problem's metrics.
            seed: which seed's ladder to look at (an index into `seeds`); needed if the run has several.
            ever: the replica of the lowest energy at any period's end, with weights, scores (those of the trace, on a
                probe if the engine has one) and hyperparameters as they were then, `Best.step`. Needs
                `fit(patience=...)` or `fit(keep_best=True)`.

        Raises:
            ValueError: no such score, or no such seed; nothing tells whether more or less of the score is better;
                `ever` for a metric, or for a run that has not kept it.
        """
        if ever:
            return self._ever(on, seed)
        return self._replicas([self._pick(on, seed)], seed)[0]

    def coldest(self, k: int = 1, seed: int | None = None, *, ladder: str | None = None) -> list[Best]:
        """Returns the replicas on the k coldest rungs after the last exchange, the coldest first.

        Under PBT and CopyBest, which change the values themselves, a rung is a replica's place at the start.

        Args:
            k: how many.
            seed: as in `best`.
            ladder: which ladder's rungs; needed if there are several.

        Raises:
            ValueError: k is not 1 .. M; no such seed or ladder, or none given; the ladder has no inverse temperatures.
        """
        return self._replicas(self._on_rungs(k, seed, ladder), seed)

    def mixture(self, coldest: int | None = None, seed: int | None = None, *, ladder: str | None = None) -> Mixture:
        """Returns what predicts as several replicas do in the mean, ready to call on a batch.

            probabilities = result.mixture(coldest=3)({"image": images})  # [B, K]

        Args:
            coldest: only the replicas on this many coldest rungs; by default all.
            seed: as in `best`.
            ladder: which ladder's rungs; needed with `coldest` if there are several.

        Raises:
            ValueError: the problem has no `predict`; else as in `coldest`.
        """
        lead = self._lead(seed)
        chosen = list(range(self.engine.num_replicas)) if coldest is None else self._on_rungs(coldest, seed, ladder)
        # Selected where they lie, then brought to one device.
        index: Any = (*lead, np.array(chosen))
        weights = tree.take(self._weights(), index)
        return together(self.engine, chosen, seed, *self.engine.placed.gathered(weights))

    def lineage(self, replica: int | None = None, seed: int | None = None) -> "Lineage":
        """Returns the path of hyperparameters that led to a replica's weights, see `jaxpt.lineage`.

        Args:
            replica: which one; by default `best()`.
            seed: as in `best`.

        Raises:
            ValueError: no such replica or seed.
        """
        from jaxpt.diagnostics.lineage import lineage  # which stands on `fit`, and so on this module

        chosen = self._pick("energy", seed) if replica is None else replica
        return lineage(self.trace, chosen, seed, schedule=self.engine.schedule)

    def summary(self) -> "Summary":
        """Returns the run in a few numbers: a dict ready for JSON, whose `str` is a short text."""
        from jaxpt.results.summary import summary  # which stands on this module

        return summary(self)

    def frame(self) -> Any:
        """Returns the trace as a tidy pandas frame, one row per period, seed and replica.

        Columns: period, step, seed (an index into `seeds`; 0 in a run with one), replica, hyper/NAME, loss, parent
        where a rule copies weights, rung/LADDER, test/..., valid/energy and valid/METRIC.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        from jaxpt.results.summary import frame

        return frame(self)

    def plot(self, directory: str | os.PathLike[str] | None = None, seed: int | None = None) -> "dict[str, Figure]":
        """Returns {name: matplotlib figure}: paths over the ladder, scores, acceptance, flow, energies, lineage.

        Pictures of scores and exchanges are of all seeds together; paths and lineage are of one of them.

        Args:
            directory: if given, each is written there as NAME.png; made if need be.
            seed: which seed's paths are shown, by default the first one's.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: no such seed; directory is a URL.
        """
        extra("matplotlib", "plots", "result.plot()")
        from jaxpt.results.pictures import pictures

        folder = None if directory is None else local_path("directory", directory)
        figures = pictures(self, seed)
        if folder is not None and is_first():
            folder.mkdir(parents=True, exist_ok=True)
            for name, figure in figures.items():
                figure.savefig(folder / f"{name.replace('/', '_')}.png")
        return figures

    def report(self, path: str | os.PathLike[str], *, title: str = "Parallel tempering") -> None:
        """Writes one HTML file that holds pictures, settings, diagnosis and the best replica; it needs nothing else.

        Args:
            path: of the file; folders above are made.
            title: of the page.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: path is a URL.
        """
        extra("matplotlib", "plots", "result.report()")
        from jaxpt.results.report import write

        write(self, local_path("path", path), title)

    def save_model(
        self,
        path: str | os.PathLike[str],
        *,
        replica: int | None = None,
        on: str = "energy",
        seed: int | None = None,
        ever: bool = False,
    ) -> None:
        """Writes one replica's weights, and what batch normalisation and its like carry; `jaxpt.load_model` reads them.

        They go into the folder PATH: weights by Orbax, and model.json, which says replica, scores, hyperparameters and
        versions. With a path NAME.safetensors they go into one file of that kind, names joined by dots.

        Args:
            path: of the folder, where an earlier model is replaced, or of the file.
            replica: which one; by default `best(on, seed)`.
            on: as in `best`.
            seed: as in `best`.
            ever: as in `best`, instead of a replica.

        Raises:
            ValueError: no such replica, score or seed; both `ever` and a replica; path is a URL; the folder holds
                something else.
            ModuleNotFoundError: the path ends in .safetensors, and that is not installed.
        """
        from jaxpt.results.summary import about_replica

        if ever:
            if replica is not None:
                raise ValueError(f"ever=True is the best replica of all periods, so leave out replica={replica!r}")
            best, kept = self._ever(on, seed), best_kept(self.kept, self.trace, self._lead(seed))
            params, rest = kept.weights
            save_model(path, params, rest, about_replica(best) | {"step": best.step, "versions": versions()})
            return
        if replica is None:
            replica = self._pick(on, seed)
        if not isinstance(replica, int | np.integer) or not 0 <= replica < self.engine.num_replicas:
            raise ValueError(f"replica must be one of 0 .. {self.engine.num_replicas - 1}, but it is {replica!r}")
        index = (*self._lead(seed), int(replica))
        params, rest = self.engine.placed.gathered(tree.take(self._weights(), index))
        about = about_replica(self._replicas([int(replica)], seed, models=False)[0])
        save_model(path, params, rest, about | {"step": int(self.state.step), "versions": versions()})

    def _ever(self, on: str, seed: int | None) -> Best:
        """Returns the best replica of all periods, see `best`."""
        if on not in ("energy", "validation"):
            raise ValueError(f"ever=True goes by the energy, but on={on!r}; leave it out")
        kept = best_kept(self.kept, self.trace, self._lead(seed))
        build, weights = self.engine.problem.model, jax.tree.map(jnp.asarray, kept.weights)
        return Best(
            int(kept.replica),
            seed,
            {name: shortest(v) for name, v in kept.valid.items()},
            {name: shortest(v) for name, v in kept.test.items()},
            build(*weights) if build else weights,
            {name: int(v) for name, v in kept.rung.items()},
            {name: shortest(v) for name, v in kept.hyper.items()},
            int(kept.step),
        )

    def _pick(self, on: str, seed: int | None) -> int:
        """Returns the slot of the best replica, see `best`."""
        on = "energy" if on == "validation" and on not in self.valid else on
        if on not in self.valid:
            raise ValueError(f"on={on!r} is not a score of this run; there are {', '.join(self.valid)}")
        lead = self._lead(seed)
        # A diverged replica comes last, whatever its other scores say.
        healthy = np.isfinite(self.valid["energy"])
        sign = -1 if is_higher_better(self.engine.problem, on) else 1
        ranked = [np.where(healthy, scores, np.inf)[lead] for scores in (self.valid["energy"], sign * self.valid[on])]
        if not np.isfinite(ranked[0]).any():
            warnings.warn(f"all {len(ranked[0])} replicas have diverged; none is the best", stacklevel=3)
        return int(np.lexsort(ranked)[0])

    def _lead(self, seed: int | None) -> tuple[int, ...]:
        """Returns the index of a seed's ladder; raises ValueError unless there is one."""
        ladders = self.num_seeds
        if ladders and (seed is None or not 0 <= seed < ladders):
            raise ValueError(f"the run has {ladders} seeds; give seed=0 .. {ladders - 1}, not {seed}")
        if seed is not None and not ladders:
            raise ValueError(f"the run has one seed only, so seed={seed} names none; leave it out")
        return () if seed is None else (seed,)

    def _on_rungs(self, k: int, seed: int | None, ladder: str | None) -> list[int]:
        """Returns the replicas on the k coldest rungs."""
        lead, name = self._lead(seed), ladder_of(self.engine, ladder, k)
        rung = self.engine.placed.to_host(self.state.replicas.rung[name])
        return np.argsort(rung[lead])[:k].tolist()

    def _weights(self) -> tuple[Any, Any]:
        return self.state.replicas.params, self.state.replicas.model_state

    def _replicas(self, chosen: list[int], seed: int | None, models: bool = True) -> list[Best]:
        """Returns replicas of one seed, with their models if these are wanted."""
        lead = self._lead(seed)
        rung, hyper = self.engine.placed.to_host((self.state.replicas.rung, self.state.replicas.hyper))
        build = self.engine.problem.model
        found = []
        for replica in chosen:
            index = (*lead, replica)
            weights = self.engine.placed.gathered(tree.take(self._weights(), index)) if models else None
            found.append(
                Best(
                    replica,
                    seed,
                    {name: shortest(v[index]) for name, v in self.valid.items()},
                    {name: shortest(v[index]) for name, v in self.test.items()},
                    build(*weights) if build and weights else weights,
                    {name: int(v[index]) for name, v in rung.items()},
                    {name: shortest(v[index]) for name, v in hyper.items()},
                )
            )
        return found
