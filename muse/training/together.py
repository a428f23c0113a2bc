"""Starts the processes that train one model together: the same command once for each card, and the end of all with one.

Each leads a session of its own, so Ctrl-C reaches this process alone, which lets all of them save what one writes. When
this process is gone they are told to end, and do not outlive it for long.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from muse.host.cores import usable_cores
from muse.host.exit_codes import FAILED, INTERRUPTED, OK
from muse.host.lines import cut, one_line
from muse.host.parents import followed
from muse.host.progress import PROGRESS_FILE_VARIABLE
from muse.host.signals import Interrupted, Interruptions
from muse.params import ParamsError, Settings

from .ranks import LOST, MEETING, RANK, SIZE

TICK_SECONDS = 0.1
GRACE_SECONDS = 30.0
"""How long interrupted processes have to save their state."""

ENDING_SECONDS = 5.0
"""How long the others have to end by themselves once one has: all see the same error."""

ORPHAN_SECONDS = 8.0
"""How long they have once the process that started them is gone."""


def check_share(settings: Settings, size: int, devices: Sequence[str | None]) -> None:
    """Raise ParamsError unless there is a card for each process, and a batch has a part of equal size for each."""
    if size < 1:
        raise ParamsError(f"--gpus-per-model: got {size}, expected at least 1")
    if devices != [None] and size > len(devices):
        raise ParamsError(f"--gpus-per-model: got {size}, expected at most the {len(devices)} CUDA devices in sight")
    n_seq = settings.train_n_seq or settings.n_seq
    for tokens in settings.batch_tokens:
        if (tokens // n_seq) % size:
            batch = f"the {tokens // n_seq} sequences of batch_tokens = {tokens}"
            raise ParamsError(f"--gpus-per-model: got {size}, expected a number that divides {batch}")


class Together:
    """The processes of one training; on leaving none of them is left."""

    def __init__(self, arguments: Sequence[str], devices: Sequence[str | None]) -> None:
        """`arguments` of muse, and for each process its card, None for the CPU."""
        self.arguments, self.devices = arguments, devices
        self.started: list[subprocess.Popen] = []

    def __enter__(self) -> Together:
        self.own = tempfile.TemporaryDirectory(prefix="muse-")
        self.folder = Path(self.own.name)
        for rank in range(len(self.devices)):
            self._start(rank)
        return self

    def errors(self, rank: int) -> Path:
        """The file of what a process other than the first says on its standard error."""
        return self.folder / f"{rank}.err"

    def _start(self, rank: int) -> None:
        size, device = len(self.devices), self.devices[rank]
        defaults = {"OMP_NUM_THREADS": str(max(1, usable_cores() // size))}
        if sys.platform == "linux":  # all are on this machine
            defaults |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        own = {RANK: str(rank), SIZE: str(size), MEETING: str(self.folder / "meeting")} | followed(ORPHAN_SECONDS)
        own |= {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        environment = defaults | os.environ | own
        streams = {}
        if rank:
            environment.pop(PROGRESS_FILE_VARIABLE, None)
            environment["TQDM_DISABLE"] = "1"
            streams = {"stdout": subprocess.DEVNULL, "stderr": self.errors(rank).open("wb")}
        command = [sys.executable, "-m", "muse", *self.arguments]
        with contextlib.closing(streams["stderr"]) if rank else contextlib.nullcontext():
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True, **streams
            )
        self.started.append(process)

    def wait(self, check: Callable[[], None]) -> int:
        """Wait until one has ended and the others had time to follow; return the first one's exit code.

        Where the first one could not say why it ended, a line says which process was the first to end.
        """
        while not (ended := self._ended()):
            check()
            time.sleep(TICK_SECONDS)
        first_to_end = ended[0]
        code = self.started[first_to_end].returncode
        seconds = GRACE_SECONDS if code in (OK, INTERRUPTED) else ENDING_SECONDS if code > 0 else 0.0
        self._wait(seconds, check)
        own = self.started[0].poll()
        if own is None or own < 0 or own == LOST:
            print(f"muse: {self._told(first_to_end, code)}", file=sys.stderr)
            return FAILED
        return own or (FAILED if code else OK)

    def _ended(self) -> list[int]:
        return [rank for rank, process in enumerate(self.started) if process.poll() is not None]

    def _told(self, rank: int, code: int) -> str:
        lines = self.errors(rank).read_text(errors="replace").split("\n") if rank else []
        said = [line for line in lines if line.strip()]
        last = f": {cut(one_line(said[-1].strip()))}" if said else ""
        return f"process {rank + 1} of {len(self.started)} ended with exit code {code}{last}; the same command resumes"

    def _wait(self, seconds: float, check: Callable[[], None] = lambda: None) -> None:
        deadline = time.monotonic() + seconds
        while len(self._ended()) < len(self.started) and time.monotonic() < deadline:
            check()
            time.sleep(TICK_SECONDS)

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Let an interrupted training save its state; kill every process's session in any case."""
        if kind is not None:
            for process in self.started:
                process.terminate()
            self._wait(GRACE_SECONDS)
        for process in self.started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.own.cleanup()


def train_together(arguments: Sequence[str], devices: Sequence[str | None]) -> int:
    """Run a command of muse in one process for each of these cards and return the first one's exit code."""
    group = Together(arguments, devices)
    try:
        with Interruptions(wait=True, insist=False) as signals, group:
            return group.wait(signals.check)
    except Interrupted:
        if group.started[0].returncode != INTERRUPTED:  # which has said so
            raise
        return INTERRUPTED
