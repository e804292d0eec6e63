"""Atomic file writes, and checks of users' paths."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

# pathlib turns "gs://bucket" into "gs:/bucket", so one slash is enough. A single letter is a Windows drive.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# After a folder, where `Path.absolute` leaves them, only the usual schemes count.
_URL_WITHIN = re.compile(r"[/\\](gs|gcs|s3a?|file|https?|ftp|hdfs|dbfs|az|abfss?|wasbs?|hf):/", re.IGNORECASE)
# Files left by macOS, Windows, NFS and FUSE, ext4, file servers and editors.
_STRAY = re.compile(
    r"\.DS_Store|\._.*|\.Spotlight-V100|\.Trashes|\.fseventsd|\.AppleDouble|\.localized|Icon\r"
    r"|Thumbs\.db|ehthumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information"
    r"|\.nfs.+|\.fuse_hidden.+|lost\+found|\.Trash-\d+|\.directory|@eaDir|\.snapshot"
    r"|.*~|\..*\.sw[a-p]|\.#.*|#.*#",
    re.IGNORECASE,
)


def local_path(name: str, path: Any) -> Path:
    """Returns a path of this machine's file system, with `~` and `~user` expanded.

    Args:
        name: the argument's name, for the message.
        path: a string or `os.PathLike`.

    Raises:
        ValueError: path has another type, is a URL (gs://, s3://, file://), or is in the home of an unknown user.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a path, a string or pathlib.Path, but it is {path!r}")
    if _URL.match(text) or _URL_WITHIN.search(text):
        raise ValueError(
            f"{name}={text!r} looks like a URL, but only paths of the local file system can be used; give a local "
            "path, of a mounted bucket for example, or copy the files afterwards"
        )
    if text.startswith("~") and (text := os.path.expanduser(text)).startswith("~"):
        raise ValueError(
            f"{name}={text!r} begins with ~, but there is no such home folder; give the absolute path of a folder "
            "whose name begins with ~"
        )
    return Path(text)


def is_stray(name: str) -> bool:
    """Returns whether a relative path's name, or that of a folder in it, is one that file systems or editors create."""
    return any(_STRAY.fullmatch(part) for part in Path(name).parts)


def write(path: Path, text: str) -> None:
    """Writes a file atomically."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
