"""Files that are written whole or not at all, and folders that one process at a time writes to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"
UNFINISHED = ".{name}.{pid}.tmp"


class FolderInUseError(OSError):
    """Another process holds the lock of a folder."""


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; what was written takes its place when the block ends well.

    A reader sees the old file or the new one, never half of it, and, where `durable`, so does who comes after a power
    cut. After any error, a full disk too, the old file is there and the temporary one is gone.
    """
    temporary = path.with_name(UNFINISHED.format(name=path.name, pid=os.getpid()))
    try:
        yield temporary
        if durable:
            _sync(temporary, os.O_RDWR)
        temporary.replace(path)
        if durable and os.name != "nt":  # Windows cannot open a folder
            _sync(path.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text as `replacing` does, into a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path, *, keep: bool = True) -> Iterator[None]:
    """Hold a folder alone, at once or never: FolderInUseError. A killed process lets go by itself.

    What a killed process had written in part is removed. Without `keep` the lock's file goes when the block ends well.
    """
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(f"another process holds {folder / LOCK_FILE}") from error
    try:
        for unfinished in folder.glob(UNFINISHED.format(name="*", pid="*")):
            unfinished.unlink(missing_ok=True)
        yield
        if not keep:
            (folder / LOCK_FILE).unlink(missing_ok=True)
    finally:
        lock.release()
