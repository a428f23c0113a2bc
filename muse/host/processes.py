"""One call in a process of its own that can be stopped together with everything it started."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection, forkserver
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
TICK_SECONDS = 0.25
CENSUS_SECONDS = 2.0
LONGEST_ERROR = 2000


def warm_up(modules: Sequence[str]) -> None:
    """Start the server that imports these modules once and forks a process for each call.

    It imports what the installed packages hold and this one, not what lies in the working folder or on PYTHONPATH.
    """
    CONTEXT.set_forkserver_preload(list(modules))
    safe = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent)}
    before = {name: os.environ.get(name) for name in safe}
    os.environ.update(safe)  # the server takes them over; there is no other way to give it some
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})


def call(
    function: Callable[..., str | None],
    arguments: Mapping[str, object],
    *,
    log: Path,
    environment: Mapping[str, str],
    timeout_seconds: float | None = None,
    tick: Callable[[], None] = lambda: None,
) -> str | None:
    """Run `function(**arguments)` in a process whose output goes to `log` and return the error text, None for none.

    Neither the process nor any of its descendants outlives the call: not a failure, a timeout (TimeoutError) or an
    exception in the caller such as KeyboardInterrupt.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_child, args=(function, dict(arguments), log, dict(environment), sender))
    process.start()
    sender.close()
    started = time.monotonic()
    next_census = started + TICK_SECONDS
    descendants: set = set()
    try:
        while not connection.wait([process.sentinel], timeout=TICK_SECONDS):
            now = time.monotonic()
            if timeout_seconds is not None and now - started > timeout_seconds:
                raise TimeoutError
            if now >= next_census:
                descendants |= _descendants(process.pid)
                next_census = now + CENSUS_SECONDS
            tick()
        with suppress(EOFError):
            if receiver.poll():
                return receiver.recv()
        return f"the process that ran it died (exit code {process.exitcode})"
    finally:
        _kill(process, descendants)
        receiver.close()


def _descendants(pid: int) -> set:
    """Return the processes below `pid`; kernels lead sessions of their own, so no process group holds them all."""
    import psutil

    with suppress(psutil.Error):
        return set(psutil.Process(pid).children(recursive=True))
    return set()


def _kill(process: multiprocessing.process.BaseProcess, descendants: set) -> None:
    import psutil

    found = descendants | _descendants(process.pid)
    process.kill()  # first, so that it can neither react nor start anything
    process.join()
    while found:
        for descendant in found:
            with suppress(psutil.Error):
                found = found | set(descendant.children(recursive=True))
        for descendant in found:
            with suppress(psutil.Error):
                descendant.kill()
        _, found = psutil.wait_procs(found, timeout=5)
        found = set() if all(not descendant.is_running() for descendant in found) else set(found)


def _child(
    function: Callable[..., str | None],
    arguments: dict[str, object],
    log: Path,
    environment: dict[str, str],
    sender: connection.Connection,
) -> None:
    os.setsid()  # Ctrl-C is for the caller, which then stops this process
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        error = function(**arguments)
    except BaseException as exception:
        traceback.print_exc()
        error = error_text(type(exception).__name__, str(exception))
    sender.send(error)


def _follow_parent() -> None:
    """End this process and all it started when the caller is gone, even when that was killed outright."""
    multiprocessing.parent_process().join()
    for descendant in _descendants(os.getpid()):
        with suppress(Exception):
            descendant.kill()
    os._exit(1)


def error_text(name: str, message: str, cell: str = "") -> str:
    """Return `Name: message (cell)` without colours, cut to a length that fits a page."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message).strip().encode("utf-8", "replace").decode()
    if len(message) > LONGEST_ERROR:
        message = message[:LONGEST_ERROR] + " ..."
    return (f"{name}: {message}" if message else name) + (f" ({cell})" if cell else "")
