"""The processes of a sweep on this machine, found by a mark in the environment that they inherit from one another."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import psutil

MARK = "MUSE_SWEEP"
TICK_SECONDS = 0.1


def marked(mark: str) -> list[psutil.Process]:
    """The processes that were started with this mark and still run, this one not among them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark and _runs(process):
                found.append(process)
    return found


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def trains(process: psutil.Process) -> bool:
    """Whether a process is a training, which saves its state when whoever started it is gone."""
    with suppress(psutil.Error):
        return "muse" in process.cmdline()[:4] and "train" in process.cmdline()[:5]
    return False


def end(mark: str, seconds: float) -> None:
    """Kill what is marked but trainings, which have so many seconds to save their state and end."""
    deadline = time.monotonic() + seconds
    while found := marked(mark):
        late = time.monotonic() > deadline
        for process in found:
            if late or not trains(process):
                with suppress(psutil.Error):
                    process.kill()
        time.sleep(TICK_SECONDS)
