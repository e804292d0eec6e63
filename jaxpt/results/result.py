"""What comes of a run: the final state, the trace, the scores, the best replica's model, and the ways to keep them."""

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpt.core import tree
from jaxpt.core.extras import extra, versions
from jaxpt.devices.processes import is_first
from jaxpt.results.ensemble import Mixture, together
from jaxpt.results.record import Best, Record, all_weights, best_ever, lead_of, on_rungs, pick, replicas_of
from jaxpt.results.summary import Summary, about_replica, frame, summary
from jaxpt.saving.files import local_path
from jaxpt.saving.keeping import best_kept
from jaxpt.saving.model_files import save_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Result(Record):
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
            return best_ever(self, on, seed)
        return replicas_of(self, [pick(self, on, seed)], seed)[0]

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
        return replicas_of(self, on_rungs(self, k, seed, ladder), seed)

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
        lead = lead_of(self, seed)
        chosen = list(range(self.engine.num_replicas)) if coldest is None else on_rungs(self, coldest, seed, ladder)
        # Selected where they lie, then brought to one device.
        index: Any = (*lead, np.array(chosen))
        weights = tree.take(all_weights(self), index)
        return together(self.engine, chosen, seed, *self.engine.placed.gathered(weights))

    def summary(self) -> Summary:
        """Returns the run in a few numbers: a dict ready for JSON, whose `str` is a short text."""
        return summary(self)

    def frame(self) -> Any:
        """Returns the trace as a tidy pandas frame, one row per period, seed and replica.

        Columns: period, step, seed (an index into `seeds`; 0 in a run with one), replica, hyper/NAME, loss, parent
        where a rule copies weights, rung/LADDER, test/..., valid/energy and valid/METRIC.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
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
        if ever:
            if replica is not None:
                raise ValueError(f"ever=True is the best replica of all periods, so leave out replica={replica!r}")
            best, kept = best_ever(self, on, seed), best_kept(self.kept, self.trace, lead_of(self, seed))
            params, rest = kept.weights
            save_model(path, params, rest, about_replica(best) | {"step": best.step, "versions": versions()})
            return
        if replica is None:
            replica = pick(self, on, seed)
        if not isinstance(replica, int | np.integer) or not 0 <= replica < self.engine.num_replicas:
            raise ValueError(f"replica must be one of 0 .. {self.engine.num_replicas - 1}, but it is {replica!r}")
        index = (*lead_of(self, seed), int(replica))
        params, rest = self.engine.placed.gathered(tree.take(all_weights(self), index))
        about = about_replica(replicas_of(self, [int(replica)], seed, models=False)[0])
        save_model(path, params, rest, about | {"step": int(self.state.step), "versions": versions()})
