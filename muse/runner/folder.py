"""The folder of a run: made afresh, locked while the run writes to it, an earlier run moved aside."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from muse.host.files import LOCK, FolderInUseError, hold
from muse.params import ParamsError


def check_folder(folder: Path) -> None:
    """Raise ParamsError unless `folder`, and the place an earlier run moves to, are free or folders of runs."""
    if folder == Path(folder.anchor):
        raise ParamsError(f"--out: got {folder}, the root of the file system, expected a folder of its own")
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
    previous = previous_folder(folder)
    with ExitStack() as held:
        try:
            check_folder(folder)
            held.enter_context(_hold(folder))
            if _is_used(folder):
                if previous.exists():
                    shutil.rmtree(previous)
                folder.rename(previous)
                (previous / LOCK).unlink()
                held.close()
                held.enter_context(_hold(folder))
                if _is_used(folder):  # another run was faster
                    raise ParamsError(f"--out: another run has written to {folder}")
            held.callback((folder / LOCK).unlink, missing_ok=True)  # while it is held: who waits sees it is gone
            for name in ("records", "notebooks", "logs", "pages"):
                (folder / name).mkdir()
        except OSError as error:
            raise ParamsError(f"--out: {folder}: {error.strerror} ({error.filename})") from error
        yield previous


def _is_used(folder: Path) -> bool:
    return any(path.name != LOCK for path in folder.iterdir())


def _hold(folder: Path) -> AbstractContextManager[object]:
    """Hold a folder until the context or the process ends; ParamsError when another run holds it."""
    try:
        return hold(folder)
    except FolderInUseError as error:
        raise ParamsError(f"--out: another run is writing to {folder}") from error
