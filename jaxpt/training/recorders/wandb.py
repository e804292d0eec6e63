"""A run's periods in Weights & Biases."""

import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from jaxpt.core.extras import extra
from jaxpt.training.recorders.base import Run
from jaxpt.training.recorders.tracker import FIRST, Part, Per, Rows, Tracker, optional

_BLOCK, _HEAD = 32768, 7  # bytes of a block of W&B's file, and of the head of the file and of each piece of a record
_WHOLE, _FIRST, _LAST = 1, 2, 4  # kinds of pieces: a whole record, its first and its last part
_PATIENCE, _PAUSE = 10.0, 0.1  # seconds


class WandB(Tracker):
    """Keeps every period in Weights & Biases, by default as one W&B run for each ladder; the x axis is the step.

        recorders=[jaxpt.WandB("my-project", mode="offline")]  # needs no account; `wandb sync` uploads it later
        recorders=[jaxpt.WandB("my-project", per="replica")]  # one W&B run for each replica

    The W&B run of a ladder has `loss`, `valid/NAME`, `test/NAME`, `hyper/NAME`, `rung/LADDER` and, if the rule copies
    weights, `parent`: for each replica (`valid/energy/replica_03`), for the one with the lowest energy in that period
    (`valid/energy/best`), and losses and scores as the mean over replicas that have not diverged
    (`valid/energy/mean`). It also has `exchange/LADDER/accepted` and `exchange/LADDER/C`, `cooldown`, `diverged` (how
    many replicas have), `seconds` of training, and `period`. The W&B run of a replica has the replica's own numbers,
    without the last part of the names. Numbers that are not finite are NaN. The settings of the run are in the config.
    With S seeds there are S ladders, and as many W&B runs, or S M for replicas.

    A run with a directory keeps its W&B runs there: their ids in DIRECTORY/trackers.json, and their files in
    DIRECTORY/wandb. A resumed run continues them with the rows that they lack, so each step is there once. The point of
    a last period that was short stays when the run becomes longer. Without a directory each call begins new W&B runs.

    If W&B fails, the run warns and goes on without it.

    Args:
        project: the project's name.
        entity: user or team; by default W&B's own.
        name: name of the W&B run, followed by the seed or replica if there are several, which share it as their group;
            by default the name of the run's directory.
        per: "ladder", one W&B run for all replicas of a ladder, or "replica", one for each.
        mode: "online", "offline" or "disabled"; by default W&B's own, the environment variable WANDB_MODE.
        tags: tags of the W&B runs.
        config: further settings to show in the config.

    Raises:
        ModuleNotFoundError: wandb is not installed.
        ValueError: an argument has a wrong type or value, by W&B's rules as well.
    """

    service: ClassVar[str] = "Weights & Biases"

    def __init__(
        self,
        project: str = "jaxpt",
        *,
        entity: str | None = None,
        name: str | None = None,
        per: Per = "ladder",
        mode: Literal["online", "offline", "disabled"] | None = None,
        tags: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__(name, per, config)
        self._wandb = extra("wandb", "wandb", "WandB()")
        if mode not in (None, "online", "offline", "disabled"):
            raise ValueError(f'mode must be "online", "offline", "disabled" or None, W&B\'s own, but it is {mode!r}')
        if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
            raise ValueError(f"tags must be a list of texts, but it is {tags!r}")
        if optional("project", project) is None:
            raise ValueError("project must be the name of a W&B project, but it is None")
        self._options = {"project": project, "entity": optional("entity", entity), "mode": mode, "tags": list(tags)}
        try:
            self._wandb.Settings(project=project, entity=entity, run_name=name, run_tags=tuple(tags))
        except Exception as error:
            raise ValueError(f"W&B refuses the arguments of WandB(): {error}") from error

    @property
    def target(self) -> str:
        """The project that the W&B runs belong to."""
        return f"wandb {self._options['entity'] or 'default'}/{self._options['project']}"

    def open(self, run: Run) -> None:
        """Begins the W&B runs, or resumes those of the directory, see `Recorder`."""
        self._folder = run.directory
        self._runs: dict[str, Any] = {}
        super().open(run)

    def begin(self, part: Part, known: str | None, name: str | None, config: dict[str, Any]) -> tuple[str, int]:
        """Begins or resumes a W&B run."""
        # Runs of one process side by side: the console and the machine's load are not those of any one of them.
        first = not self._runs
        settings = {"console": "off", **({} if first else {"silent": True, "x_disable_stats": True})}
        begun = self._runs[part.label] = self._init(
            id=known,
            resume="allow" if known else None,
            name=name,
            group=self.group,
            job_type="ladder" if part.replica is None else "replica",
            dir=self._folder,
            reinit="create_new",
            settings=self._wandb.Settings(**settings),
        )
        begun.config.update(config, allow_val_change=True)
        if begun.disabled:
            return begun.id, FIRST
        if known and begun.offline:
            return begun.id, _last_offline(Path(begun.dir).parents[1], begun.id)
        return begun.id, begun.starting_step - 1

    def _init(self, **options: Any) -> Any:
        """Returns a new W&B run; waits for one with the same id that W&B, in this process, has not quite ended."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._wandb.init(**self._options, **options)
            except Exception as error:
                if "in use" not in str(error) or time.monotonic() > until:
                    raise
            time.sleep(_PAUSE)

    def write(self, label: str, rows: Rows) -> None:
        """Logs further rows."""
        for step, row in rows:
            self._runs[label].log(row, step=step)

    def end(self, error: BaseException | None) -> None:
        """Finishes the W&B runs, with an exit code as a process has."""
        code = 0 if error is None else getattr(error, "code", 1)
        for begun in self._runs.values():
            begun.finish(exit_code=code)
        for begun in self._runs.values():
            if begun.offline:  # a run that is resumed at once reads these files
                _wait_for_end(Path(begun.dir).with_name(f"run-{begun.id}.wandb"))


def _last_offline(folder: Path, id: str) -> int:
    """Returns the last step in the files of earlier offline runs with this id."""
    found = [FIRST]
    for path in folder.glob(f"offline-run-*-{id}*/run-{id}.wandb"):
        found += [record.history.step.num for record in records(path) if record.WhichOneof("record_type") == "history"]
    return max(found)


def _wait_for_end(path: Path) -> None:
    """Waits until W&B has written the end of a run into its file, which it does a moment after `finish` returns."""
    until = time.monotonic() + _PATIENCE
    while path.exists() and time.monotonic() < until:
        if any(record.WhichOneof("record_type") == "exit" for record in records(path, _BLOCK)):
            return
        time.sleep(_PAUSE)


def records(path: Path, last: int | None = None) -> Iterator[Any]:
    """Yields the records in W&B's file of a run, which has the form of LevelDB's logs; the last may be incomplete.

    Args:
        path: the file.
        last: yield only those that begin in the last so many bytes, or somewhat earlier.
    """
    proto = extra("wandb.proto.wandb_internal_pb2", "wandb", "WandB()")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        begin = 0 if last is None else max(0, size - last) // _BLOCK * _BLOCK
        file.seek(begin)
        held, at, part = file.read(), 0 if begin else _HEAD, None
    while at + _HEAD <= len(held):
        if (left := _BLOCK - at % _BLOCK) < _HEAD:  # too little room for a piece at a block's end
            at += left
            continue
        length, kind = struct.unpack("<HB", held[at + 4 : at + _HEAD])
        piece = held[at + _HEAD : at + _HEAD + length]
        at += _HEAD + length
        if at > len(held):
            return
        part = piece if kind in (_WHOLE, _FIRST) else None if part is None else part + piece
        if kind in (_WHOLE, _LAST) and part is not None:
            yield proto.Record.FromString(part)
