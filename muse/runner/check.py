"""The one check before a run, a training or a benchmark starts: everything that is wrong, one line each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from muse.host.lines import cut, one_line
from muse.host.parents import followed
from muse.params import ParamsError, Settings

from .notebooks import resolve_folders
from .surroundings import surroundings

CHECK_SECONDS = 600
REPORT_BYTES = 2**26
MODULE = "muse.stages.check"


class Question:
    """What only packages and data can tell, asked of a process of its own while the caller does something else."""

    def __init__(self, process: subprocess.Popen, asked: Sequence[dict[str, object]]) -> None:
        self.process, self.asked = process, json.dumps(asked)

    def answer(self) -> dict[str, object]:
        """Return {"hardware", "problems": lists of lines, one for each row, "num_bytes": of all rows}.

        ChildProcessError where the process failed or was killed.
        """
        try:
            output, errors = self.process.communicate(self.asked, timeout=CHECK_SECONDS)
            if self.process.returncode == 0:
                return json.loads(output)
            last = (errors.strip().splitlines() or [f"exit code {self.process.returncode}"])[-1]
        except (subprocess.TimeoutExpired, ValueError) as error:
            last = str(error)
        raise ChildProcessError(f"the check before the start failed, nothing was started: {last}")


@contextmanager
def asked(rows: Sequence[tuple[Settings, bool]]) -> Iterator[Question]:
    """Start to ask about the settings of rows, and about their corpora unless known not to be readable.

    The process that answers is gone when the context ends.
    """
    with tempfile.TemporaryDirectory(prefix="muse-check-") as own:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        pipes |= {"errors": "replace", "env": surroundings(Path(own), **followed())}
        process = subprocess.Popen([sys.executable, "-m", MODULE], **pipes)
        try:
            yield Question(process, [{"settings": row.model_dump(), "readable": readable} for row, readable in rows])
        finally:
            process.kill()
            process.communicate()


def working_folder() -> Path:
    """Return where one works; ParamsError where that folder is gone."""
    try:
        return Path.cwd()
    except OSError as error:
        raise ParamsError(f"the working folder: {error.strerror}; expected one that exists") from error


def resolved(settings: Settings) -> Settings:
    """Return settings whose folders are absolute, seen from where one works."""
    return resolve_folders(settings, working_folder())


def place_problem(path: Path) -> str:
    """Return why no folder can be made or written to at an absolute path, or nothing."""
    try:
        if path == Path(path.anchor):
            return "is the root of the file system"
        for there in (path, *path.parents):
            if there.is_dir():
                return _refusal(there)
            if there.exists() or there.is_symlink():
                return f"{cut(str(there), 100)} is no folder"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def _refusal(folder: Path) -> str:
    """Return why a folder takes no file; asked with a file that has no name, since not every mode tells."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{cut(str(folder), 100)}: {error.strerror}"


def file_problem(path: Path) -> str:
    """Return why no file can be written at an absolute path, or nothing."""
    try:
        if path.is_dir():
            return "is a folder"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return place_problem(path.parent)


def place_problems(settings: Settings, folders: dict[str, Path | None], files: dict[str, Path | None]) -> list[str]:
    """Return what is wrong with the places that are written to: those of (resolved) settings, and options by name."""
    named = {name: getattr(settings, name) for name in ("checkpoint_dir", "results_dir", "cache_dir")}
    places = {name: (Path(value), place_problem, "a folder") for name, value in named.items() if value}
    for paths, ask, kind in ((folders, place_problem, "a folder"), (files, file_problem, "a file")):
        places |= {name: (working_folder() / path, ask, kind) for name, path in paths.items() if path is not None}
    found = {name: (path, ask(path), kind) for name, (path, ask, kind) in places.items()}
    return [
        f"{name}: got {cut(one_line(str(path)), 100)}, expected {kind} that can be written: {why}"
        for name, (path, why, kind) in found.items()
        if why
    ]


def disk_problems(settings: Settings, out: Path | None, num_bytes: int, reports: int = 1) -> list[str]:
    """Return where less is free than is estimated to be written: trainings, less what lies there, and reports."""
    wanted = [("--out", out, reports * REPORT_BYTES if out else 0)]
    wanted.append(("checkpoint_dir", Path(settings.checkpoint_dir), num_bytes))
    found = []
    for name, path, needed in wanted:
        if path is None or not needed:
            continue
        there = next(folder for folder in (path, *path.parents) if folder.is_dir())
        free = shutil.disk_usage(there).free
        if free < needed:
            needed -= sum(file.stat().st_size for file in path.glob("*/*.safetensors"))
        if free < needed:
            found.append(f"{name}: got {_gib(free)} free on its disk, expected {_gib(needed)} for what will be written")
    return found


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def raise_problems(problems: Sequence[str]) -> None:
    """Raise a ParamsError of these lines, each of them once, if there are any."""
    if problems:
        raise ParamsError("\n".join(dict.fromkeys(problems)))
