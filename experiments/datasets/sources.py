"""Official files in a folder -> checked arrays, upright, and what they are."""

import dataclasses
import gzip
import hashlib
import math
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from experiments.datasets.errors import DataError
from experiments.datasets.official import Archive, ImageSet

Split = tuple[UInt8[np.ndarray, "N H W C"], Int[np.ndarray, " N"]]


@dataclasses.dataclass(frozen=True)
class Source:
    """The files of a set in a folder."""

    wanted: ImageSet
    files: dict[str, Path]
    """The archive, or {part: file}."""

    def stamp(self) -> dict[str, list[int]]:
        """Returns {file name: [bytes, time of change in ns]}, which tells in no time whether files have changed."""
        return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in self.files.values()}


@dataclasses.dataclass(frozen=True)
class Content:
    """What the files hold."""

    train: Split
    """Images upright, labels from 0."""
    test: Split
    official: bool
    """Whether the hashes of all files are those of the official ones."""
    hashes: dict[str, str]
    """{file name: sha256}, of the archive as it is, of parts unzipped."""


def remedy(wanted: ImageSet) -> str:
    """Returns what to do where the files of a set cannot be had or read."""
    urls = " ".join(a.url for a in wanted.archives)
    return (
        f"get {urls} into a folder FOLDER of its own and run: "
        f"uv run -m experiments.datasets prepare {wanted.name} --from FOLDER"
    )


def find(wanted: ImageSet, folder: Path) -> Source | None:
    """Returns the files of the set in the folder, or None if there are none at all.

    The archive goes before its parts. Parts lie in the folder itself, or in one below it as unpacking makes it.

    Raises:
        DataError: there are some files, but not all.
    """
    if wanted.container and (archive := folder / wanted.container.name).is_file():
        return Source(wanted, {wanted.container.name: archive})
    for place in (folder, folder / wanted.folder):
        names = [part.name for part in (*wanted.train, *wanted.test)]
        found = {n: p for n in names for p in (place / f"{n}.gz", place / n) if p.is_file()}
        if found and len(found) < len(names):
            missing = ", ".join(n for n in names if n not in found)
            raise DataError(f"{place}: {missing} missing, {', '.join(found)} found; {remedy(wanted)}")
        if found:
            return Source(wanted, found)
    return None


def read(source: Source) -> Content:
    """Reads and checks all files of a source.

    Raises:
        DataError: a file cannot be read, is truncated, is not what its name says, has the official file's size but not
            its hash, or images and labels disagree.
    """
    wanted = source.wanted
    if wanted.container and wanted.container.name in source.files:
        path = source.files[wanted.container.name]
        parts, hashes = _unpack(wanted, wanted.container, path)
        origin = {name: f"{path}: {name}" for name in parts}
        official = True
    else:
        origin = {name: str(path) for name, path in source.files.items()}
        raw = {name: _bytes(path, wanted) for name, path in source.files.items()}
        parts = {
            name: _unzip(raw[name], path, wanted) if path.suffix == ".gz" else raw[name]
            for name, path in source.files.items()
        }
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
        official = _are_official(wanted, parts, raw, hashes, origin)
    read_split = _read_bin if wanted.train[0].name.endswith(".bin") else _read_idx
    train, test = (
        read_split(wanted, [(origin[p.name], parts[p.name]) for p in split]) for split in (wanted.train, wanted.test)
    )
    return Content(train, test, official and (len(train[1]), len(test[1])) == wanted.counts, hashes)


def _unpack(wanted: ImageSet, archive: Archive, path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Returns the parts, unzipped, in an archive whose hash is right, and that hash."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != archive.sha256:
            raise DataError(
                f"{path}: {path.stat().st_size:,} bytes with sha256 {digest[:16]}..., expected {archive.size:,} bytes "
                f"with {archive.sha256[:16]}...: it is damaged or not the official archive; "
                f"remove it and {remedy(wanted)}"
            )
        names = [part.name for part in (*wanted.train, *wanted.test)]
        if archive.name.endswith(".zip"):
            with zipfile.ZipFile(path) as z:
                members = {n: _unzip(z.read(f"{wanted.folder}/{n}.gz"), path, wanted) for n in names}
        else:
            with tarfile.open(path) as t:
                members = {n: t.extractfile(f"{wanted.folder}/{n}").read() for n in names}  # type: ignore[union-attr]
    except (OSError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {remedy(wanted)}") from error
    return members, {archive.name: digest}


def _bytes(path: Path, wanted: ImageSet) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy(wanted)}") from error


def _unzip(data: bytes, path: Path, wanted: ImageSet) -> bytes:
    """Returns the content of a .gz, which lies at the path or inside the archive that does."""
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is truncated or damaged ({error}); remove it and {remedy(wanted)}") from error


def _are_official(
    wanted: ImageSet, parts: dict[str, bytes], raw: dict[str, bytes], hashes: dict[str, str], origin: dict[str, str]
) -> bool:
    """Whether all parts are the official ones; an official size with another hash is an error, not another set."""
    verdicts = []
    for part in (*wanted.train, *wanted.test):
        if part.sha256 is None:
            data = raw[part.name]
            verdicts.append(hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == part.gz_blob)
            continue
        verdicts.append(hashes[part.name] == part.sha256)
        if len(parts[part.name]) == part.size and not verdicts[-1]:
            raise DataError(
                f"{origin[part.name]}: has the official size but sha256 {hashes[part.name][:16]}..., expected "
                f"{part.sha256[:16]}...: it is damaged or of another data set; remove it and {remedy(wanted)}"
            )
    return all(verdicts)


def _read_idx(wanted: ImageSet, files: list[tuple[str, bytes]]) -> Split:
    """Images [N, H, W] and labels [N], both uint8 behind a header of big-endian numbers."""
    arrays = []
    for (origin, data), axes in zip(files, (3, 1), strict=True):
        magic, head = bytes([0, 0, 8, axes]), 4 + 4 * axes
        if data[:4] != magic:
            raise DataError(
                f"{origin}: begins with {data[:4].hex()!r}, expected {magic.hex()} (idx, uint8, {axes} axes): "
                f"it is not such a file; remove it and {remedy(wanted)}"
            )
        shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, head, 4)]
        size = head + math.prod(shape)
        if len(data) != size:
            raise DataError(
                f"{origin}: {len(data):,} bytes, its header says {shape} and so {size:,}: it is truncated or "
                f"damaged; remove it and {remedy(wanted)}"
            )
        arrays.append(np.frombuffer(data, np.uint8, offset=head).reshape(shape))
    images, labels = arrays
    (origin, _), (label_origin, _) = files
    if images.shape[1:] != wanted.shape[:2] or len(images) != len(labels) or not len(labels):
        raise DataError(
            f"{origin}: images {list(images.shape)}, and {len(labels):,} labels in {label_origin}; expected as many "
            f"images of {wanted.shape[:2]} as labels, at least one; {remedy(wanted)}"
        )
    upright = images.swapaxes(1, 2) if wanted.transposed else images
    return np.ascontiguousarray(upright)[..., None], _labels(wanted, labels, label_origin)


def _read_bin(wanted: ImageSet, files: list[tuple[str, bytes]]) -> Split:
    """Records of a label and the image's channels, each uint8 [H, W], in one or more files."""
    height, width, channels = wanted.shape
    record = 1 + height * width * channels
    images, labels = [], []
    for origin, data in files:
        if len(data) % record or not data:
            raise DataError(
                f"{origin}: {len(data):,} bytes, expected a multiple of {record:,} (a label and an image): "
                f"it is truncated or damaged; remove it and {remedy(wanted)}"
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, record)
        images.append(records[:, 1:].reshape(-1, channels, height, width).transpose(0, 2, 3, 1))
        labels.append(_labels(wanted, records[:, 0], origin))
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels)


def _labels(wanted: ImageSet, labels: np.ndarray, origin: str) -> np.ndarray:
    """Labels from 0, int32."""
    first, last = wanted.first_label, wanted.first_label + len(wanted.classes) - 1
    if labels.min() < first or labels.max() > last:
        raise DataError(
            f"{origin}: labels {labels.min()} .. {labels.max()}, expected {first} .. {last}: it is damaged or of "
            f"another data set; remove it and {remedy(wanted)}"
        )
    return labels.astype(np.int32) - first
