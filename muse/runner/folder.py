"""The folder of a run: made afresh, locked while the run writes to it, an earlier run moved aside."""

from __future__ import annotations

import glob
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from muse.host.files import LOCK, UNFINISHED, FolderInUseError, hold
from muse.params import ParamsError

PARTS = ("records", "notebooks", "logs", "pages")
REPORT_FILE = "report.json"
"""Written last: a folder that has it holds a run that came to its end."""


def check_folder(folder: Path) -> None:
    """Raise ParamsError unless `folder`, and the places an earlier run moves to, are free or folders of runs."""
    if folder == Path(folder.anchor):
        raise ParamsError(f"--out: got {folder}, the root of the file system, expected a folder of its own")
    for path in (folder, previous_folder(folder), unfinished_folder(folder)):
        if path.exists() and (not path.is_dir() or (_is_used(path) and not (path / "run.json").exists())):
            raise ParamsError(f"--out: {path} is there but holds no run; expected a new folder or that of a run")


def check_no_run(folder: Path) -> None:
    """Raise ParamsError where the folder that is to hold the runs of a matrix holds a run itself."""
    if (folder / "run.json").exists():
        raise ParamsError(f"--out: {folder} holds a run, expected a folder for the runs of a matrix")


def previous_folder(folder: Path) -> Path:
    """Return where an earlier finished run in `folder` is moved to."""
    return folder.with_name(f"{folder.name}.previous")


def unfinished_folder(folder: Path) -> Path:
    """Return where an earlier run in `folder` is moved to that was killed or interrupted."""
    return folder.with_name(f"{folder.name}.unfinished")


def is_finished(folder: Path) -> bool:
    """Return whether a run in this folder came to its end; one whose report cannot be read gets the benefit."""
    try:
        return not json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))["run"].get("interrupted", False)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """Make the empty folder of a run, moving an earlier run aside, and yield where that is; hold a lock meanwhile.

    A finished run takes the place of the finished one before it, an unfinished one that of an unfinished one: however
    many runs are killed, the last finished one stays, under its own name or as `<folder>.previous`.
    """
    previous = previous_folder(folder)
    with ExitStack() as held:
        try:
            check_folder(folder)
            held.enter_context(_hold(folder))
            if _is_used(folder):
                _move(folder, previous if is_finished(folder) else unfinished_folder(folder))
                held.close()
                held.enter_context(_hold(folder))
                if _is_used(folder):  # another run was faster
                    raise ParamsError(f"--out: another run has written to {folder}")
            held.callback((folder / LOCK).unlink, missing_ok=True)  # while it is held: who waits sees it is gone
            for path in folder.iterdir():
                if path.name != LOCK:  # begun by a run that was killed before it wrote anything
                    _remove(path)
            for name in PARTS:
                (folder / name).mkdir()
        except OSError as error:
            raise ParamsError(f"--out: {folder}: {error.strerror} ({error.filename})") from error
        yield previous


def _move(folder: Path, place: Path) -> None:
    """Move a run's folder to another place; what was there goes last, under a name of nothing.

    A kill in between leaves no folder that is neither whole nor free.
    """
    if place.exists():
        place.rename(folder.with_name(f".{folder.name}.{secrets.token_hex(8)}{UNFINISHED}"))
    folder.rename(place)
    (place / LOCK).unlink(missing_ok=True)
    for old in folder.parent.glob(f".{glob.escape(folder.name)}.*{UNFINISHED}"):
        shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_used(folder: Path) -> bool:
    """Whether a folder holds more than what a run leaves that is killed before its first file."""
    return any(not _is_nothing(path) for path in folder.iterdir())


def _is_nothing(path: Path) -> bool:
    begun = path.name.startswith(".") and path.name.endswith(UNFINISHED)
    return path.name == LOCK or begun or (path.name in PARTS and path.is_dir() and not any(path.iterdir()))


def _hold(folder: Path) -> AbstractContextManager[object]:
    """Hold a folder until the context or the process ends; ParamsError when another run holds it."""
    try:
        return hold(folder)
    except FolderInUseError as error:
        raise ParamsError(f"--out: another run is writing to {folder}") from error
