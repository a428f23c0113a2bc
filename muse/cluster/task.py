"""What a worker of an engine does: one training as a process in a session of its own. It imports little."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from muse.host.exit_codes import INTERRUPTED
from muse.host.parents import followed

TICK_SECONDS = 0.1
ORPHAN_SECONDS = 8.0
"""How long a training has to save its state once its worker is gone."""


class RowInterruptedError(RuntimeError):
    """A training that was told to end, and saved its state: its job is over, another one goes on."""


def train(
    arguments: Sequence[str], log: str, folder: str, environment: Mapping[str, str], devices: Sequence[str]
) -> int:
    """Run `muse train` with these arguments in a folder, what it prints goes to a log; return its exit code.

    It waits while an earlier process of the same row, whose worker was lost, still saves its state: that one holds a
    lock until it has ended. When the manager of this worker is gone, this process ends, and the training follows.
    """
    manager, worker = os.getppid(), int(os.environ.get("PARSL_WORKER_RANK", 0))
    chosen = {"CUDA_VISIBLE_DEVICES": devices[worker % len(devices)]} if devices else {}
    command = [sys.executable, "-m", "muse", "train", *arguments]
    with _held(_lock_of(Path(log)), manager) as lock, open(log, "ab", buffering=0) as stream:
        with contextlib.suppress(OSError):
            stream.write(f"$ {shlex.join(command)}  # on {platform.node()}\n".encode())
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | dict(environment) | chosen | followed(ORPHAN_SECONDS),
            stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            pass_fds=[lock],
        )  # fmt: skip
        while process.poll() is None:
            _end_with(manager)
            time.sleep(TICK_SECONDS)
    if process.returncode == INTERRUPTED:
        raise RowInterruptedError(f"interrupted on {platform.node()}")
    return process.returncode


def _lock_of(log: Path) -> Path:
    return log.parent / "parsl" / f"{log.stem}.lock"


def _end_with(manager: int) -> None:
    if os.getppid() != manager:
        os._exit(1)


@contextlib.contextmanager
def _held(path: Path, manager: int):
    """Hold a lock, once it is free; whoever inherits its file holds it as well."""
    import fcntl

    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _end_with(manager)
                time.sleep(TICK_SECONDS)
        yield file.fileno()


def problems(arguments: Sequence[str], paths: Sequence[tuple[str, str]], folder: str) -> list[str]:
    """What keeps a worker from training: folders that it does not see, and what `muse check` says there."""
    here = platform.node()
    missing = [f"{name}: {path} is not there" for name, path in paths if not Path(path).exists()]
    if missing or not Path(folder).is_dir():
        return [f"worker on {here}: {line}" for line in missing or [f"the working folder: {folder} is not there"]]
    command = [sys.executable, "-m", "muse", "check", *arguments]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    lines = [line.removeprefix("muse: ") for line in done.stderr.splitlines() if line.strip()]
    return [f"worker on {here}: {line}" for line in lines or ["muse check failed"]] if done.returncode else []
