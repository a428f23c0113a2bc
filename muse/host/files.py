"""Files that are whole or not there, and a folder that one process has alone."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
UNFINISHED = ".tmp"


class FolderInUseError(RuntimeError):
    """A folder that another holder has."""


@contextmanager
def replaced(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a path to write a file to; when the block ends, that file takes the place of `path` in one step.

    Whoever reads `path` finds the old file or the new one, after a kill as well and, if `durable`, after a power cut.
    An error, such as a full disk, leaves the old file and nothing beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{secrets.token_hex(8)}{UNFINISHED}"  # a folder: some writers make temporary files as well
    aside.mkdir()
    try:
        new = aside / path.name
        yield new
        with suppress(OSError):  # of a file system without permissions
            new.chmod(aside.stat().st_mode & 0o666)  # as umask says; some writers give them to the owner alone
        if durable:
            _sync(new, os.O_RDWR)
        new.replace(path)
        if durable:
            with suppress(OSError):  # not every system can sync a folder
                _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        if error.filename is None and error.errno:  # of a write to an open file: say which
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text, in UTF-8, as `replaced` does."""
    with replaced(path, durable=durable) as new:
        new.write_text(text, encoding="utf-8")


def is_unfinished(path: Path) -> bool:
    """Whether a path is what a killed process had begun to write."""
    return path.name.startswith(".") and path.name.endswith(UNFINISHED)


def check_no_dangling_link(path: Path) -> None:
    """Raise FileNotFoundError for a path that is, or lies below, a link to nothing: writing would make its target."""
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            raise FileNotFoundError(f"{part}: a link to {part.readlink()}, which does not exist")


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes had begun to write in a folder that this process holds."""
    for path in filter(is_unfinished, folder.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def hold(folder: Path) -> AbstractContextManager[object]:
    """Create a folder and take it, at once, until the context ends; FolderInUseError if another holder has it.

    The lock goes with its process, however that ends. Its file stays: only a holder may remove it, as its last act.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK

    def check_is_here(handle: int) -> None:
        """The folder may have been moved between the opening of its lock's file and the lock."""
        if not os.path.samestat(os.fstat(handle), lock.stat()):
            raise FolderInUseError(f"{folder}: in use")

    try:
        return FileLock(lock, blocking=False, fallback_to_soft=False, on_acquired=check_is_here).acquire()
    except (Timeout, FileNotFoundError) as error:
        raise FolderInUseError(f"{folder}: in use") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
