"""The folder of a run: made afresh, locked while the run writes to it, an earlier run moved aside."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from muse.host.files import LOCK_FILE as LOCK
from muse.host.files import FolderInUseError, locked
from muse.params import ParamsError


def check_folder(folder: Path) -> None:
    """Raise ParamsError unless `folder`, and the place an earlier run moves to, are free or folders of runs."""
    for path in (folder, previous_folder(folder)):
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else {""} if path.exists() else set()
        if names - {LOCK} and "run.json" not in names:
            raise ParamsError(f"--out: {path} is there but holds no run; expected a new folder or that of a run")


def previous_folder(folder: Path) -> Path:
    """Return where an earlier run in `folder` is moved to."""
    return folder.with_name(f"{folder.name}.previous")


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """Make the empty folder of a run, moving an earlier run aside, and yield where that is; hold a lock meanwhile."""
    check_folder(folder)
    previous = previous_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if any(path.name != LOCK for path in folder.iterdir()):
                if previous.exists():
                    shutil.rmtree(previous)
                folder.rename(previous)
                (previous / LOCK).unlink()
        for name in ("records", "notebooks", "logs", "pages"):
            (folder / name).mkdir(parents=True)
    except OSError as error:
        raise ParamsError(f"--out: {folder}: {error.strerror} ({error.filename})") from error
    with _lock(folder):
        yield previous


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder; ParamsError when another run holds it."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder, keep=False))
        except FolderInUseError as error:
            raise ParamsError(f"--out: another run is writing to {folder}") from error
        yield
