"""A process that ends with the one that started it, however that ended, and may save its work first."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PARENT_VARIABLE = "MUSE_PARENT_PID"
GRACE_VARIABLE = "MUSE_PARENT_GRACE_SECONDS"
CHECK_SECONDS = 0.5


def followed(grace_seconds: float | None = None) -> dict[str, str]:
    """Return what the environment of a child holds that is to follow this process.

    With `grace_seconds` it is killed, with the group that it leads, when it has not ended so long after this process.
    """
    if os.name != "posix":
        return {}
    return {PARENT_VARIABLE: str(os.getpid()), GRACE_VARIABLE: "" if grace_seconds is None else str(grace_seconds)}


def follow_parent() -> None:
    """Where the parent asks for it, send SIGTERM to this process once the parent is gone."""
    grace = os.environ.pop(GRACE_VARIABLE, "")
    if parent := _parent():
        threading.Thread(target=_watch, args=(parent, grace), daemon=True).start()


def _watch(parent: int, grace: str) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    if grace:
        time.sleep(float(grace))
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def _parent() -> int:
    """Return the process to follow, 0 for none; the children of this one are not bound to it."""
    return int(os.environ.pop(PARENT_VARIABLE, 0))


@contextmanager
def following_parent() -> Iterator[None]:
    """Within the block end this process as `follow_parent` does, without a thread: it is about to be forked."""
    parent = _parent()

    def check(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(1)

    if not parent:
        yield
        return
    before = signal.signal(signal.SIGALRM, check)
    signal.setitimer(signal.ITIMER_REAL, CHECK_SECONDS, CHECK_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
