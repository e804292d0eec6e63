"""Checkpoints of a whole run by Orbax: written in the background, atomic, verified before use."""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from jaxpt.core import tree
from jaxpt.core.errors import CheckpointError, in_words
from jaxpt.core.state import RunState, Trace
from jaxpt.devices import allocator
from jaxpt.devices.processes import refuse_together
from jaxpt.saving import settings
from jaxpt.saving.files import digest, is_stray, local_path, write
from jaxpt.saving.keeping import Kept, abstract, lowest_energy, rank
from jaxpt.saving.lock import lock
from jaxpt.saving.progress import Progress

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run in DIRECTORY/checkpoints/STEP; the latest two and the best are kept.

    A checkpoint is complete once DIRECTORY/checksums/STEP.json, written last, holds the SHA-256 of its files. The next
    process removes incomplete checkpoints that a killed process left behind.

    Args:
        directory: the run's directory; created if needed.

    Raises:
        CheckpointError: the directory cannot be written, or another run is using it; a checkpoint's file is missing, or
            has changed since it was written.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = local_path("directory", directory).absolute()
        self._steps, self._sums = self.directory / "checkpoints", self.directory / "checksums"
        self._leads = jax.process_index() == 0
        self._saving: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, "jaxpt-checkpoint")
        with contextlib.ExitStack() as opened:
            refused = None
            if self._leads:
                try:
                    self._prepare(opened)
                except CheckpointError as error:
                    refused = error
            refuse_together(refused, CheckpointError)
            _check_all_see(self._sums.is_dir(), self.steps, self.directory)
            for step in self.steps:  # before Orbax reads any of them
                self._check_files(step)
            policy = ocp.training.preservation_policies
            best = policy.BestN(get_metric_fn=rank, reverse=True, n=1)
            with _quietly():
                self._orbax = ocp.training.Checkpointer(
                    self._steps,
                    preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(2), best]),
                    cleanup_tmp_directories=True,
                )
            self._opened = opened.pop_all()

    @property
    def steps(self) -> list[int]:
        """The steps of the whole checkpoints, ascending."""
        return sorted(int(path.stem) for path in self._sums.glob("*.json") if path.stem.isdecimal())

    def match(self, described: Mapping[str, Any]) -> None:
        """Checks that the directory's run has the same settings; writes them if the directory has no run.

        Args:
            described: the run's description from `jaxpt.saving.settings.describe`.

        Raises:
            ValueError: it has other settings; the message lists the differences.
            CheckpointError: its settings file is damaged, or in the format of another release.
        """
        file = self.directory / "settings.json"
        if not self.steps:
            if self._leads:
                write(file, json.dumps(described, indent=1))
            return
        then = self._settings()
        if then is None:
            raise CheckpointError(f"{file} is missing; give another directory")
        if changed := settings.differences(then, described):
            shares = any(one.startswith(("search / steps", "cooldown / st")) for one in changed)
            raise ValueError(
                f"{self.directory} holds a run with other settings (then -> now): {'; '.join(changed)}. "
                + "A search or cooldown that is a share of the run changes with `steps`. " * shares
                + "Restore them to resume it, or give another directory"
            )
        if then["versions"] != described["versions"]:
            warnings.warn(
                f"the run in {self.directory} began with {then['versions']} and goes on with {described['versions']}: "
                "last bits may differ, and problem, optimizer, schedule and rule could not be compared",
                stacklevel=4,
            )
            if self._leads:  # from now on they can be
                write(file, json.dumps({**then, **{key: described[key] for key in ("versions", "programs")}}, indent=1))

    def note(self, about: Mapping[str, Any]) -> None:
        """Writes what the run aims at, ready for JSON, for readers of the directory; they can do without."""
        if self._leads:
            with contextlib.suppress(OSError):  # on a full disk the next checkpoint says so
                write(self.directory / "run.json", json.dumps(about))

    def save(self, state: RunState, trace: Trace, progress: Progress, kept: Mapping[str, Kept]) -> None:
        """Begins to write a checkpoint and returns once the arrays may be overwritten.

        Args:
            state: the state after a whole period.
            trace: all rows so far, as NumPy arrays.
            progress: what belongs to them besides arrays.
            kept: the best replicas so far, from `Keeper.saved`; empty if none are kept.

        Raises:
            CheckpointError: this checkpoint or the previous one cannot be written.
        """
        self.wait()
        allocator.trim()  # nothing runs on the devices now, so a CPU program's memory is free as well
        step = int(trace.step[-1])
        lost, lowest = lowest_energy(np.asarray(trace.valid["energy"][-1]))
        with self._failing_at(step), _quietly():
            response = self._orbax.save_checkpointables_async(
                step,
                {"state": _flat(state), "trace": _flat(trace), **({"kept": _flat(kept)} if kept else {})},
                metrics={"lost_seeds": lost, **({"energy": lowest} if np.isfinite(lowest) else {})},
                custom_metadata=progress.as_dict(),
                force=True,
                overwrite=True,
            )
            self._saving = self._pool.submit(self._seal, step, response)

    def wait(self) -> None:
        """Waits until the checkpoint being written is complete; raises CheckpointError if that fails."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Ends background work and unlocks the directory; ignores background errors, since `wait` reports them."""
        self._pool.shutdown()
        with _quietly(), contextlib.suppress(Exception):
            self._orbax.close()
        self._opened.close()

    def load(
        self, state: RunState, trace: Trace, prng: Any, step: int | None = None
    ) -> tuple[RunState, Trace, Progress, dict[str, Kept]]:
        """Returns the contents of a complete checkpoint: state, trace, progress, and the best replicas if kept.

        Args:
            state: the state as shapes, with the sharding to load it into; the devices need not be those of the save.
            trace: a trace as shapes; its number of rows is arbitrary.
            prng: the generator of its keys.
            step: the checkpoint's step; by default the latest.

        Raises:
            CheckpointError: the checkpoint cannot be read.
        """
        step = self.steps[-1] if step is None else step
        progress = self.progress(step)
        with self._reading(step):
            rows = jax.tree.map(lambda leaf: np.zeros((progress.periods, *leaf.shape[1:]), leaf.dtype), trace)
            wanted = {"state": _flat(state), "trace": _flat(rows)}
            has_kept = (self._steps / str(step) / "kept").exists()
            names: Any = self._orbax.checkpointables_metadata(step).metadata["kept"] if has_kept else ()
            form = abstract(state, trace, {name.partition("/")[0] for name in names})
            loaded = self._orbax.load_checkpointables(step, {**wanted, **({"kept": _flat(form)} if form else {})})
        kept = jax.tree.map(np.asarray, _like(form, loaded["kept"], prng)) if form else {}
        return _like(state, loaded["state"], prng), _like(rows, loaded["trace"], prng), progress, kept

    def progress(self, step: int) -> Progress:
        """Returns the progress in a checkpoint; reads no arrays."""
        with self._reading(step):
            return Progress.from_dict(self._orbax.metadata(step).custom_metadata)

    def rows(self, step: int) -> dict[str, np.ndarray]:
        """Returns the trace in a checkpoint, {name: array}."""
        with self._reading(step):
            loaded = self._orbax.load_checkpointables(step, {"trace": None})
        return {name: np.asarray(leaf) for name, leaf in loaded["trace"].items()}

    def _prepare(self, opened: contextlib.ExitStack) -> None:
        """Locks the directory and removes incomplete checkpoints; the first process does so before any reads."""
        with in_words(f"{self.directory} cannot hold checkpoints; give another directory"):
            self.directory.mkdir(parents=True, exist_ok=True)
            opened.enter_context(lock(self.directory))
            self._settings()
            self._sums.mkdir(exist_ok=True)
            self._steps.mkdir(exist_ok=True)
            self._clear()

    def _seal(self, step: int, response: Any) -> None:
        with self._failing_at(step):
            response.result()
            if self._leads:
                files = {str(path.relative_to(self._steps)): path for path in self._files(step)}
                sums = {name: digest(path) for name, path in files.items() if not is_stray(name)}
                write(self._sums / f"{step}.json", json.dumps(sums, indent=1))
                for old in set(self.steps) - {step}:
                    if not (self._steps / str(old)).exists():
                        (self._sums / f"{old}.json").unlink()
            allocator.trim()

    def settings(self) -> dict[str, Any]:
        """Returns the settings in the run's directory; raises CheckpointError if they are missing or damaged."""
        found = self._settings()
        if found is None:
            raise CheckpointError(f"{self.directory} notes no settings of a run")
        return found

    def _settings(self) -> dict[str, Any] | None:
        """Returns the settings in the run's directory, None if there are none; reads only this release's format."""
        file = self.directory / "settings.json"
        if not file.exists():
            return None
        try:
            then = json.loads(file.read_text())
            release, _ = then["format"], then["versions"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file} is damaged ({error}); give another directory") from error
        if release != settings.FORMAT:
            raise CheckpointError(
                f"{self.directory} holds a run in format {release}, but this release reads and writes format "
                f"{settings.FORMAT}; resume it with the release that wrote it, or give another directory"
            )
        return then

    def _written(self, step: int) -> dict[str, str]:
        """Returns {file: SHA-256} as recorded when the checkpoint was completed."""
        file = self._sums / f"{step}.json"
        with in_words(f"{file} is damaged; remove it to do without that checkpoint"):
            return {str(name): str(sha) for name, sha in dict(json.loads(file.read_text())).items()}

    def _files(self, step: int) -> list[Path]:
        return sorted(path for path in (self._steps / str(step)).rglob("*") if path.is_file())

    def _clear(self) -> None:
        """Removes unfinished checkpoints, and those that a killed process had begun to remove."""
        for step in self.steps[:-1]:
            if not all((self._steps / name).exists() for name in self._written(step)):
                # In this order: if killed in between, the checkpoint lacks files and is removed next time.
                shutil.rmtree(self._steps / str(step), ignore_errors=True)
                (self._sums / f"{step}.json").unlink()
        whole = set(self.steps)
        others = [int(path.name) for path in self._steps.iterdir() if path.name.isdecimal()]
        others = [step for step in others if step > max(whole, default=-1)]
        # A run waits for the checksums before it saves again, so there is at most one such checkpoint.
        if len(others) > 1 or (others and self._settings() is None):
            raise CheckpointError(
                f"{self._steps} holds checkpoints without checksums ({str(sorted(others))[1:-1]}): they are of "
                "something else, or have lost them; move them away, or give another directory"
            )
        for step in others:
            shutil.rmtree(self._steps / str(step))

    def _check_files(self, step: int) -> None:
        written = self._written(step)
        found = {str(path.relative_to(self._steps)): path for path in self._files(step)}
        ours = [name for name in sorted(written | found) if not is_stray(name)]
        wrong = [name for name in ours if name not in found or written.get(name) != digest(found[name])]
        if wrong:
            earlier = [other for other in self.steps if other < step]
            advice = (
                f"remove {self._steps / str(step)} and {self._sums / f'{step}.json'} to go on from step {earlier[-1]}"
                if earlier
                else f"there is no earlier one: remove {self.directory} to start anew, or give another directory"
            )
            raise CheckpointError(
                f"the checkpoint of step {step} in {self.directory} is damaged: {', '.join(wrong[:3])} "
                f"{'is missing' if wrong[0] not in found else 'is not as it was written'}; {advice}"
            )

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        with in_words(f"the checkpoint of step {step} in {self.directory} cannot be read"), _quietly():
            yield

    def _failing_at(self, step: int) -> contextlib.AbstractContextManager[None]:
        kept = f"; the one of step {self.steps[-1]} is whole" if self.steps else ""
        return in_words(f"the checkpoint of step {step} cannot be written to {self.directory}{kept}")


def _flat(arrays: PyTree) -> dict[str, Any]:
    """Returns {name: array} of a tree, keys as plain numbers. Names stay valid if the tree's classes change.

    Leaves out arrays without elements, which Orbax cannot save.
    """
    leaves = jax.tree.leaves_with_path(arrays)
    assert len({tree.name(path) for path, _ in leaves}) == len(leaves), "two leaves have the same name"
    return {tree.name(path): _plain(leaf) for path, leaf in leaves if leaf.size}


def _plain(leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return tree.plain(leaf)
    numbers = jax.eval_shape(tree.plain, leaf)
    sharding = leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=sharding)


def _like(form: T, flat: Mapping[str, Any], prng: Any) -> T:
    """Returns named arrays as a tree with the structure of `form`."""

    def leaf(path: Any, wanted: Any) -> Any:
        if not wanted.size:
            return np.zeros(wanted.shape, wanted.dtype)
        found = flat[tree.name(path)]
        typed = jnp.issubdtype(wanted.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(found, impl=prng) if typed else found

    return jax.tree_util.tree_map_with_path(leaf, form)


def _check_all_see(there: bool, steps: Sequence[int], directory: Path) -> None:
    """Raises CheckpointError unless all processes see the same checkpoints."""
    if jax.process_count() == 1:
        return
    seen = np.asarray(multihost_utils.process_allgather(np.array([there, len(steps), max(steps, default=0)])))
    if (seen != seen[0]).any():
        raise CheckpointError(
            f"the processes see different checkpoints in {directory}: it must be on a disk that all of them share"
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppresses warnings that a library addresses to its developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
