"""The result of a run: final state, trace, scores and the best replica's model, and methods that save them."""

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import PyTree

from jaxpt.core import tree
from jaxpt.core.extras import extra, versions
from jaxpt.devices.processes import is_first
from jaxpt.results.draws import draws, inference_data
from jaxpt.results.members import Ensemble, together
from jaxpt.results.record import Best, Record, all_weights, best_ever, complete, lead_of, on_rungs, pick, replicas_of
from jaxpt.results.summary import Summary, about_replica, frame, summary
from jaxpt.results.weights import chosen_members
from jaxpt.saving.files import local_path
from jaxpt.saving.keeping import best_kept
from jaxpt.saving.model_files import save_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Result(Record):
    """The result of a run.

        >>> result.best().model(valid["x"]).shape  # the replica that is best on validation, ready to call
        (80, 2)
        >>> result.ensemble(coldest=3)(valid).shape  # the mean of several replicas' predictions
        (80, 2)
        >>> result.trace.valid["energy"].shape  # [periods, replicas], or [periods, seeds, replicas]
        (20, 4)
        >>> result.trace.rung["learning_rate"][-1].tolist()  # where each replica stands, [periods, replicas]
        [..., ..., ..., ...]
        >>> result.summary()["steps"]  # its str is a short text
        200
        >>> result.report("report.html")  # pictures, settings, diagnosis on one page
        >>> result.save_model("best")  # jaxpt.load_model("best") gets it back

    With several processes, methods that read the state (all of these but the trace) must be called by all or by none.

    Attributes:
        engine: the engine that ran.
        state: the state after the last step.
        trace: one row per period, as NumPy arrays.
        valid: {"energy": [M], metric: [M]} on the whole validation split, at the end; [S, M] with seeds.
        test: the same on the test split; empty without one.
        seconds: wall time of the training, compilation left out.
        compile_seconds: wall time of the compilation.
        replica_images: training examples used by all replicas together, repeats included; batch sizes as in
            `trace.hyper`.
        execution: how the replica axis was executed and on how many devices; its `str` is a short description.
        stopped: the cause if the run ended before its last step.
        kept: each seed's best replica of all periods, if `fit` kept it; see `best`.
    """

    def best(self, on: str = "energy", seed: int | None = None, *, ever: bool = False) -> Best:
        """Returns the replica with the best score on the validation split (ties: the lower energy).

        The best energy is the lowest. The best metric is the highest or the lowest, depending on `jaxpt.Metric` or on
        the metric's name.

        Args:
            on: "energy" (or "validation", a synonym), or one of the problem's metrics.
            seed: the seed whose ladder is searched (an index into `seeds`); needed if the run has several.
            ever: return the replica with the lowest energy at the end of any period. Its weights, scores (those of the
                trace, on a probe batch if the engine has one) and hyperparameters are those of that time, `Best.step`.
                Needs `fit(patience=...)` or `fit(keep_best=True)`.

        Raises:
            ValueError: no such score or seed; it is unknown whether higher or lower scores are better; `ever` for a
                metric, or for a run that has not kept it.
        """
        if ever:
            return best_ever(self, on, seed)
        return replicas_of(self, [pick(self, on, seed)], seed)[0]

    def coldest(self, k: int = 1, seed: int | None = None, *, ladder: str | None = None) -> list[Best]:
        """Returns the replicas on the k coldest rungs after the last exchange, the coldest first.

        Under PBT and CopyBest, which change the values themselves, a rung is a replica's place at the start.

        Args:
            k: number of replicas.
            seed: as in `best`.
            ladder: the ladder whose rungs are meant; needed if there are several.

        Raises:
            ValueError: k is not 1 .. M; no such seed or ladder, or none given; the ladder has no inverse temperatures.
        """
        return replicas_of(self, on_rungs(self, k, seed, ladder), seed)

    def ensemble(
        self,
        coldest: int | None = None,
        seed: int | None = None,
        *,
        ladder: str | None = None,
        best: int | None = None,
        weighted_on: Any = None,
    ) -> Ensemble:
        """Returns the mean prediction of several replicas, as an object to call on a batch, to score and to save.

            probabilities = result.ensemble(coldest=3)({"image": images})  # [B, K]
            result.ensemble(best=3).save("three")
            result.ensemble(weighted_on=valid).weights  # their shares, those that predict the split best

        Args:
            coldest: use only the replicas on this many coldest rungs; by default all.
            seed: as in `best`.
            ladder: the ladder whose rungs are meant; needed with `coldest` if there are several.
            best: instead, use only this many replicas, those with the lowest energies on the validation split at the
                end.
            weighted_on: instead, use all replicas with the weights of `jaxpt.ensemble_weights` on these examples,
                leaves [N, ...], which should be validation data. Replicas of a weight below 1e-4 are left out.

        Raises:
            ValueError: the problem has no `predict`; more than one way to choose is given; `best` is not 1 .. M;
                weighted_on holds no arrays, or no replica has finite energies there; otherwise as in `coldest`.
        """
        chosen, weights = chosen_members(self, coldest, seed, ladder, best, weighted_on)
        # Selected on their own devices, so that only the chosen ones move to one device.
        index: Any = (*lead_of(self, seed), np.array(chosen))
        scores = {
            split: {name: v[index] for name, v in found.items()}
            for split, found in (("valid", self.valid), ("test", self.test))
        }
        params, rest = self.engine.placed.gathered(tree.take(all_weights(self), index))
        return together(self.engine, chosen, seed, weights, scores, params, rest)

    def draws(self, rungs: int | None = None, *, thin: int = 1, ladder: str | None = None) -> PyTree:
        """Returns the draws of a sampler's run after burn-in, one per period, gathered by rung from all replicas.

        Args:
            rungs: the number of rungs, from the coldest on; by default the coldest alone, without an axis of rungs.
            thin: keep one draw in this many.
            ladder: the ladder whose rungs are meant; needed if there are several.

        Returns:
            A pytree of NumPy arrays like the weights (or like the results of `Engine.draws`), with leaves [draws, ...]
            or [draws, rungs, ...]; with seeds [draws, S, ...] or [draws, S, rungs, ...].

        Raises:
            ValueError: the run has kept no draws; thin or rungs is out of range; several ladders, and none is chosen.
        """
        return draws(self, rungs, thin, ladder)

    def inference_data(self, *, thin: int = 1) -> Any:
        """Returns the coldest rung's draws after burn-in as arviz takes them, with the seeds as chains.

        A group "posterior" has a variable for each leaf of the weights; weights that are one array are called "w". The
        result is an `arviz.InferenceData`, or from arviz 1.0 on a DataTree. `arviz.summary(data)` gives ESS and R-hat.

        Args:
            thin: as in `draws`.

        Raises:
            ModuleNotFoundError: arviz is not installed.
            ValueError: as for `draws`.
        """
        return inference_data(self, thin)

    mixture = ensemble  # the earlier name, kept until 0.1.0 is released

    def summary(self) -> Summary:
        """Returns the run's main numbers: a dict ready for JSON, whose `str` is a short text."""
        return summary(self)

    def frame(self) -> Any:
        """Returns the trace as a tidy pandas frame, one row per period, seed and replica.

        Columns: period, step, seed (an index into `seeds`; 0 in a run with one seed), replica, cooldown (its factor, if
        there is one), hyper/NAME, loss, parent (if the rule copies weights), rung/LADDER, test/..., valid/energy and
        valid/METRIC.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return frame(self)

    def plot(self, directory: str | os.PathLike[str] | None = None, seed: int | None = None) -> "dict[str, Figure]":
        """Returns {name: matplotlib figure}: paths along the ladder, scores, acceptance, flow, energies, lineage.

        Pictures of scores and exchanges cover all seeds; paths and lineage are those of one seed.

        Args:
            directory: if given, each figure is written there as NAME.png; created if needed.
            seed: the seed whose paths are shown; by default the first.

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
        """Writes one self-contained HTML file with pictures, settings, diagnosis and the best replica.

        Args:
            path: path of the file; its parent folders are created.
            title: title of the page.

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
        """Writes one replica's weights and model state (such as batch statistics); `jaxpt.load_model` reads them.

        They go into the folder PATH: weights by Orbax, and model.json with the replica, its scores and hyperparameters,
        and package versions. A path NAME.safetensors gives one file of that kind, names joined by dots.

        Args:
            path: path of the folder, where an earlier model is replaced, or of the file.
            replica: the replica to save; by default `best(on, seed)`.
            on: as in `best`.
            seed: as in `best`.
            ever: as in `best`, instead of a replica.

        Raises:
            ValueError: no such replica, score or seed; both `ever` and a replica; path is a URL; the folder holds
                files other than a model.
            ModuleNotFoundError: the path ends in .safetensors, and safetensors is not installed.
        """
        if ever:
            if replica is not None:
                raise ValueError(f"ever=True is the best replica of all periods, so leave out replica={replica!r}")
            best, kept = best_ever(self, on, seed), best_kept(self.kept, self.trace, lead_of(self, seed))
            weights = complete(self.engine, *kept.weights)
            save_model(path, *weights, about_replica(best) | {"step": best.step, "versions": versions()})
            return
        if replica is None:
            replica = pick(self, on, seed)
        if not isinstance(replica, int | np.integer) or not 0 <= replica < self.engine.num_replicas:
            raise ValueError(f"replica must be one of 0 .. {self.engine.num_replicas - 1}, but it is {replica!r}")
        index = (*lead_of(self, seed), int(replica))
        params, rest = complete(self.engine, *self.engine.placed.gathered(tree.take(all_weights(self), index)))
        about = about_replica(replicas_of(self, [int(replica)], seed, models=False)[0])
        save_model(path, params, rest, about | {"step": int(self.state.step), "versions": versions()})
