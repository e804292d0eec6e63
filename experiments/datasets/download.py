"""Downloads an archive: with a bar, checked by hash, whole or not at all."""

import hashlib
import http.client
import queue
import threading
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.datasets.errors import DataError
from experiments.datasets.official import Archive

PATIENCE = 8.0
"""Seconds until an answer, and between two answers, after which a server counts as unreachable."""


def fetch(archive: Archive, folder: Path, *, remedy: str) -> Path:
    """Returns the archive's path in the folder; what is there already is not downloaded again.

    The bytes go to a .part file, which gets its name when size and hash are right and is removed otherwise.

    Args:
        archive: address, size and hash.
        folder: exists.
        remedy: what a user can do without a network; ends the error's message.

    Raises:
        DataError: the server cannot be reached within `PATIENCE`, refuses, falls silent, or sends something else.
    """
    path = folder / archive.name
    if path.exists():
        return path
    part = folder / f"{archive.name}.part"
    digest = hashlib.sha256()
    try:
        with (
            _open(archive.url) as response,
            part.open("wb") as file,
            tqdm(desc=archive.name, total=archive.size, unit="B", unit_scale=True) as bar,
        ):
            while chunk := response.read(1 << 18):
                digest.update(chunk)
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > archive.size:
                    break
        received = part.stat().st_size
        if (received, digest.hexdigest()) != (archive.size, archive.sha256):
            raise DataError(
                f"{archive.url}: {received:,} bytes with sha256 {digest.hexdigest()[:16]}... came, expected "
                f"{archive.size:,} bytes with {archive.sha256[:16]}...; try again, or {remedy}"
            )
        part.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{archive.url}: cannot be downloaded ({error or type(error).__name__}); {remedy}") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _open(url: str) -> Any:
    """Returns the response, or raises within `PATIENCE`.

    A thread, because urlopen's timeout is for each address and each read, and looking up a name has none at all.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=PATIENCE))
        except Exception as error:  # whatever it is, it is raised below, in the caller's thread
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=PATIENCE)
    except queue.Empty:
        answer = TimeoutError()
    if isinstance(answer, TimeoutError) or isinstance(getattr(answer, "reason", None), TimeoutError):
        raise TimeoutError(f"no answer within {PATIENCE:.0f} seconds")
    if isinstance(answer, Exception):
        raise answer
    return answer
