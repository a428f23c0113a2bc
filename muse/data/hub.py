"""What is read from a hub or its cache: found within seconds, or a clear error that says the ways out."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from muse.host.lines import cut, one_line

FILES = {"dataset": "train.txt, validation.txt, test.txt or parquet", "model": "vocab.json, merges.txt"}
"""What a folder must hold that stands for a repository, by the repository's type."""

LONGEST_REASON = 60  # characters; the error's cause has all of it
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
Loaded = TypeVar("Loaded")


class CorpusUnavailable(ConnectionError):  # noqa: N818 (a state of the world, like its base's subclasses)
    """What was asked for is neither in the local cache nor reachable; the message says which three ways out exist."""


def from_cache_or_hub(
    what: str, repo_id: str, repo_type: str, load: Callable[[], Loaded], fetch: str, timeout_seconds: float
) -> Loaded:
    """`load()`, from the local Hugging Face cache; where nothing is there, `fetch` fills it first from the hub.

    The hub has to answer a question in time, and then to send something in each such time: the libraries retry one that
    is away or silent for minutes. So `fetch` is Python for a process that can be ended. Raises CorpusUnavailable.
    """
    try:
        return load()
    except (OSError, ValueError) as error:  # the libraries' ways to say "not in the cache"
        not_cached = error
    offline = [name for name in OFFLINE_VARIABLES if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if offline:
        reason = f"not cached; {offline[0]} forbids a download"
        raise CorpusUnavailable(_ways_out(what, repo_type, reason)) from not_cached
    failure = _hub_failure(repo_id, repo_type, timeout_seconds)
    if failure is not None:
        reason = f"not cached; no hub: {str(failure) or type(failure).__name__}"
        raise CorpusUnavailable(_ways_out(what, repo_type, reason)) from failure
    try:
        _fetched(fetch, f"{repo_type}s--{repo_id.replace('/', '--')}", timeout_seconds)
        return load()
    except Exception as error:  # any of several libraries' errors, kept as the cause
        reason = f"download failed: {str(error) or type(error).__name__}"
        raise CorpusUnavailable(_ways_out(what, repo_type, reason)) from error


def _hub_failure(repo_id: str, repo_type: str, timeout_seconds: float) -> Exception | None:
    """Why the hub does not answer a question about the repository within the time; None where it does."""
    from huggingface_hub import HfApi

    failures: list[Exception] = [TimeoutError(f"no answer within {timeout_seconds:g} s")]

    def ask() -> None:
        try:
            HfApi().repo_info(repo_id, repo_type=repo_type, timeout=timeout_seconds)
            failures.clear()
        except Exception as error:  # handed to the caller
            failures[0] = error

    thread = threading.Thread(target=ask, daemon=True)  # a name look-up has no time limit of its own
    thread.start()
    thread.join(timeout_seconds)
    return failures[0] if failures else None


FETCH = """import os, sys, threading
def follow_parent():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=follow_parent, daemon=True).start()
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 2**16
"""  # a file grows while it comes, so that a slow hub is told from a silent one
LONGEST = 60  # times the timeout: a download that still comes is ended then
BUSY = 0.2  # share of a core that a process uses which imports or unpacks, and one that waits does not
TICK_SECONDS = 0.25


def _fetched(code: str, folder_name: str, timeout_seconds: float) -> None:
    """Runs `code` in a process and ends it where nothing came for the time; OSError with its last words."""
    from huggingface_hub import constants

    environment = os.environ | {"HF_ENDPOINT": constants.ENDPOINT, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-P", "-c", FETCH + code + "\nos._exit(0)"]
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            _wait(child, Path(constants.HF_HUB_CACHE) / folder_name, timeout_seconds)
        finally:
            child.kill()
            child.wait()
            child.stdin.close()
        log.seek(0)
        last = log.read().decode("utf-8", "replace").strip().splitlines()[-1:] or ["no word of it"]
    if child.returncode:
        raise OSError(last[0][:300])


def _wait(child: subprocess.Popen, folder: Path, timeout_seconds: float) -> None:
    """Until the process has ended; TimeoutError where neither the folder grew nor it computed for the time."""
    import psutil

    process, started = psutil.Process(child.pid), time.monotonic()
    moved, seen = started, (0, 0.0)
    while child.poll() is None:
        time.sleep(TICK_SECONDS)
        now, size = time.monotonic(), _size(folder)
        try:
            busy = sum(process.cpu_times()[:2])
        except psutil.Error:  # it has just ended
            continue
        if size != seen[0] or busy - seen[1] > BUSY * TICK_SECONDS:
            moved = now
        seen = size, busy
        if now - moved > timeout_seconds:
            raise TimeoutError(f"the hub answered, then sent nothing for {timeout_seconds:g} s")
        if now - started > LONGEST * timeout_seconds:
            raise TimeoutError(f"not at its end after {LONGEST * timeout_seconds:g} s")


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:  # renamed meanwhile
            continue
    return total


def _ways_out(what: str, repo_type: str, reason: str) -> str:
    """One line that is shown whole, also behind the names of the settings at fault (muse.host.lines)."""
    return (
        f"{what} is unavailable ({cut(one_line(reason), LONGEST_REASON)}). Ways out: "
        f"(1) a local folder ({FILES[repo_type]}); (2) HF_HOME of a run with a network; "
        "(3) corpus 'synthetic', tokenizer 'corpus'."
    )


@contextmanager
def quiet_datasets(local_only: bool = False) -> Iterator[None]:
    """The datasets library without progress bars (widgets break batch runs) and, if asked, without the network."""
    import datasets

    bars, offline = not datasets.are_progress_bars_disabled(), datasets.config.HF_HUB_OFFLINE
    datasets.disable_progress_bars()
    datasets.config.HF_HUB_OFFLINE = local_only or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
        if bars:
            datasets.enable_progress_bars()
