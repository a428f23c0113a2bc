"""One call in a process of its own that can be stopped together with everything it started."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, forkserver, util
from pathlib import Path

from .parents import PARENT_VARIABLE, followed, following_parent

CONTEXT = multiprocessing.get_context("forkserver")
TICK_SECONDS = 0.25
CENSUS_SECONDS = 2.0
LONGEST_ERROR = 2000
GRACE_SECONDS = 5.0
"""How long what a stopped call has started has to save its work."""

LONGEST_FOLDER_OF_SOCKETS = 60
"""A socket's path has 103 bytes at most (macOS), of which its own name and folder take 35."""


def warm_up(modules: Sequence[str]) -> None:
    """Start the server that imports these modules once, within `getting_ready`, and forks a process for each call.

    It imports what the installed packages hold and this one, not what lies in the working folder or on PYTHONPATH.
    """
    CONTEXT.set_forkserver_preload(list(modules))
    own = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent), **followed()}
    before = {name: os.environ.get(name) for name in own}
    with _room_for_sockets(), _deaf_to_ctrl_c():
        os.environ.update(own)  # the server takes them over; there is no other way to give it some
        try:
            forkserver.ensure_running()
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                os.environ.update({name: value} if value is not None else {})


@contextmanager
def getting_ready() -> Iterator[None]:
    """Within the block, which is all that the server does before it serves, it ends when the driver is gone.

    Once it has served it ends at once: to take apart what it has imported took seconds of a busy machine.
    """
    serves = PARENT_VARIABLE in os.environ
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # it is ignored by now, and no child expects a block
    with following_parent():
        yield
    if serves:
        atexit.register(_end_at_once, os.getpid())


def _end_at_once(server: int) -> None:
    if os.getpid() == server:
        os._exit(0)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Start a process that ignores Ctrl-C from its first moment, while this one only hears it later."""
    if threading.current_thread() is not threading.main_thread():  # which alone has handlers
        yield
        return
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def _room_for_sockets() -> Iterator[None]:
    """Have the server's sockets in /tmp where the folder for temporary files has too long a name for them."""
    chosen = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_FOLDER_OF_SOCKETS and os.path.isdir("/tmp"):
        tempfile.tempdir = "/tmp"
    try:
        util.get_temp_dir()  # which keeps what it finds
        yield
    finally:
        tempfile.tempdir = chosen


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
    exception in the caller such as KeyboardInterrupt. What it has started hears SIGTERM first: a training saves its
    state.
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
        _end(process, descendants)
        receiver.close()


def _descendants(pid: int) -> set:
    """Return the processes below `pid`; kernels lead sessions of their own, so no process group holds them all."""
    import psutil

    with suppress(psutil.Error):
        return set(psutil.Process(pid).children(recursive=True))
    return set()


def _end(process: multiprocessing.process.BaseProcess, descendants: set) -> None:
    """End a call: what it started gets the time to save its work, unless the caller is interrupted once more."""
    try:
        if process.is_alive():
            _terminate(descendants | _descendants(process.pid))
    finally:
        _kill(process, descendants)


def _terminate(descendants: set) -> None:
    """Ask processes to end and wait a little."""
    import psutil

    for descendant in descendants:
        with suppress(psutil.Error):
            descendant.terminate()
    _still_running(descendants, GRACE_SECONDS)


def _still_running(processes: set, seconds: float) -> set:
    """Wait for processes to end and return those that have not; one that its parent has not asked for has ended too."""
    import psutil

    def runs(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    deadline = time.monotonic() + seconds
    while (left := set(filter(runs, processes))) and time.monotonic() < deadline:
        time.sleep(0.02)
    psutil.wait_procs(processes - left, timeout=0)  # the first process of a container has inherited them
    return left


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
        found = _still_running(found, 5)


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
    _terminate(_descendants(os.getpid()))
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
