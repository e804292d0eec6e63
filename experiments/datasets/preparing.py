"""Prepares our data sets once: archive or folder -> checked arrays -> a set that tensorflow-datasets reads."""

import contextlib
import io
import os
from pathlib import Path

from experiments.datasets import download, files, prepared, sources
from experiments.datasets.errors import DataError
from experiments.datasets.official import SETS, VERSION, ImageSet


def default_dir() -> Path:
    """Returns where tensorflow-datasets keeps its data unless told otherwise."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepare(name: str, source: Path | None = None, to: Path | None = None) -> Path:
    """Prepares a data set and returns the folder that holds it, TO/jaxpt_NAME/VERSION.

    It appears there whole or not at all. One that is there already and was made of the same files is kept; one that
    was made of others is replaced.

    Args:
        name: emnist_letters, cifar10 or mnist.
        source: folder with the official archive or its parts; without it, the archive is downloaded into TO/downloads,
            unless the official split is prepared already.
        to: folder for prepared sets; tensorflow-datasets' own if it is not given.

    Raises:
        DataError: no such set; files missing, unreachable or damaged; TO cannot be written.
    """
    if name not in SETS:
        raise DataError(
            f"{name!r} cannot be prepared here, only {', '.join(SETS)}; prepare others by their own builders"
        )
    wanted, to = SETS[name], to or default_dir()
    try:
        with files.alone(to):
            if source is not None:
                return _prepare_from(wanted, source, to)
            if prepared.note(place(wanted, to)).get("official") and prepared.is_whole(place(wanted, to)):
                return place(wanted, to)
            return _prepare_from(wanted, _download(wanted, to), to)
    except OSError as error:
        raise DataError(
            f"{error.filename or to}: {error.strerror or error}; give a folder with room that can be written: "
            f"uv run -m experiments.datasets prepare {name} {f'--from {source} ' if source else ''}--to FOLDER"
        ) from error


def place(wanted: ImageSet, to: Path) -> Path:
    """Returns where a set of ours lies in a folder of prepared sets."""
    return to / f"jaxpt_{wanted.name}" / VERSION


def _download(wanted: ImageSet, to: Path) -> Path:
    """Returns the folder with the official archive, downloaded as far as it is not there yet."""
    folder = to / "downloads" / f"jaxpt_{wanted.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for archive in wanted.archives:
            download.fetch(archive, folder, remedy=sources.remedy(wanted))
    finally:
        with contextlib.suppress(OSError):  # unless something is in them
            folder.rmdir()
            folder.parent.rmdir()
    return folder


def _prepare_from(wanted: ImageSet, folder: Path, to: Path) -> Path:
    """As `prepare`, from a folder, with `to` locked."""
    source = sources.find(wanted, folder)
    if source is None:
        names = [wanted.container.name] if wanted.container else []
        names.append(", ".join(part.name for part in (*wanted.train, *wanted.test)))
        raise DataError(f"{folder}: expected {' or '.join(names)}, found none of them; {sources.remedy(wanted)}")
    stamp = source.stamp()
    content = sources.read(source)
    goal = place(wanted, to)
    known = prepared.note(goal)
    if known.get("hashes") == content.hashes and prepared.is_whole(goal):
        prepared.write_note(goal, known | {"stamp": stamp})
        return goal
    with files.part(to, f"jaxpt_{wanted.name}") as new:
        _build(wanted, content, new)
        made = place(wanted, new)
        mark = prepared.fingerprint(made)
        facts = {"official": content.official, "hashes": content.hashes, "stamp": stamp, "fingerprint": mark}
        prepared.write_note(made, facts)
        # Decoding gives the same arrays (PNG loses nothing), in as much time again.
        prepared.keep(dict(zip(prepared.NAMES, (*content.train, *content.test), strict=True)), made, mark)
        goal.parent.mkdir(exist_ok=True)
        if goal.exists():
            goal.rename(new / "replaced")
        made.rename(goal)
    return goal


def _build(wanted: ImageSet, content: sources.Content, folder: Path) -> None:
    import tensorflow_datasets as tfds

    from experiments.datasets.builders import BUILDERS

    # The builder shows its own bars; tensorflow-datasets' would name folders that are gone when it is done.
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            BUILDERS[wanted.name](content=content, data_dir=folder).download_and_prepare()
    finally:
        tfds.enable_progress_bar()


def is_current(wanted: ImageSet, source: sources.Source, to: Path) -> bool:
    """Whether what is prepared in `to` was made of these very files, by their sizes and times."""
    return prepared.note(place(wanted, to)).get("stamp") == source.stamp()
