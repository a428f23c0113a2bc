"""One call in a process of its own that can be stopped together with everything it started, and the notebook calls."""

from __future__ import annotations

import json
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

from muse.records.schema import Reduction

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["muse.runner.warm"]
TICK_SECONDS = 0.25
CENSUS_SECONDS = 2.0
LONGEST_ERROR = 2000


def warm_up() -> None:
    """Start the server that imports papermill and nbconvert once, with `warm`, and forks a process for each call."""
    CONTEXT.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


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


def execute_notebook(notebook: Path, output: Path, parameters: dict[str, object]) -> str | None:
    """Execute the notebook with these parameters into `output`; return how it failed, or None."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            notebook, output, parameters=parameters, kernel_name="python3", progress_bar=False, log_output=True
        )
    except PapermillExecutionError as error:
        return error_text(error.ename, error.evalue, f"cell In [{error.exec_count}]")
    except Exception as error:
        traceback.print_exc()
        return error_text(type(error).__name__, str(error), last_cell(output))
    return None


def last_cell(notebook: Path) -> str:
    """Return which cell of a half executed notebook was started last, or '' when that cannot be told."""
    try:
        cells = [
            cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
        ]
        started = [i for i, cell in enumerate(cells, 1) if cell["metadata"]["papermill"]["start_time"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if not started:
        return "before the first cell"
    lines = "".join(cells[started[-1] - 1]["source"]).strip().splitlines()
    return f"cell In [{started[-1]}]" + (f": {lines[0][:80]}" if lines else "")


def export_page(
    notebook: Path, page: Path, *, inline_assets: bool, language: str, reductions: Sequence[Reduction], **about: object
) -> str | None:
    """Export an executed notebook as a page; pages that do not hold their assets share the run's `assets` folder.

    A run that is smaller than published in any way (`reductions`) says so on each of its pages.
    """
    from muse.report import page as report

    assets = page.parent.parent / "assets"
    if not inline_assets and not assets.is_dir():
        report.write_assets(assets)
    notice = report.scale_label(reductions, language)
    report.export_html(notebook, page, inline_assets=inline_assets, language=language, notice=notice, **about)
    return None
