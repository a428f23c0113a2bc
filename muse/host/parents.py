"""A process that ends with the one that started it, however that ended, and may save its work first."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PARENT_VARIABLE = "MUSE_PARENT_PID"
CHECK_SECONDS = 0.5


def followed() -> dict[str, str]:
    """Return what the environment of a child holds that is to follow this process."""
    return {PARENT_VARIABLE: str(os.getpid())} if os.name == "posix" else {}


def follow_parent() -> None:
    """Where the parent asks for it, send SIGTERM to this process once the parent is gone."""
    if parent := _parent():
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


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
