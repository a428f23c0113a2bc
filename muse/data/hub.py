"""What is read from a hub or its cache: found within seconds, or a clear error that says the ways out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
Loaded = TypeVar("Loaded")


class CorpusUnavailable(ConnectionError):  # noqa: N818 (a state of the world, like its base's subclasses)
    """What was asked for is neither in the local cache nor reachable; the message says which three ways out exist."""


def from_cache_or_hub(
    what: str, repo_id: str, repo_type: str, load: Callable[[bool], Loaded], timeout_seconds: float
) -> Loaded:
    """`load(True)`, from the local Hugging Face cache; else `load(False)`, once the hub has answered in time.

    The question beforehand matters: the libraries retry an unreachable hub for minutes. Raises CorpusUnavailable.
    """
    try:
        return load(True)
    except (OSError, ValueError) as error:  # the libraries' ways to say "not in the cache"
        not_cached = error
    offline = [name for name in OFFLINE_VARIABLES if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if offline:
        reason = f"not in the cache, and {offline[0]} forbids a download"
        raise CorpusUnavailable(_ways_out(what, reason)) from not_cached
    failure = _hub_failure(repo_id, repo_type, timeout_seconds)
    if failure is not None:
        reason = f"not in the cache, and the hub cannot be reached: {failure!r}"
        raise CorpusUnavailable(_ways_out(what, reason)) from failure
    try:
        return load(False)
    except Exception as error:  # any of several libraries' errors, kept as the cause
        raise CorpusUnavailable(_ways_out(what, f"the download failed: {error!r}")) from error


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


def _ways_out(what: str, reason: str) -> str:
    return (
        f"{what} is unavailable ({reason}). Three ways out: "
        "(1) name a local folder: a corpus with train.txt, validation.txt, test.txt or parquet, a tokenizer with "
        "vocab.json and merges.txt; "
        "(2) run the same step once where there is a network and bring its Hugging Face cache along (HF_HOME); "
        "(3) use corpus 'synthetic' with tokenizer 'corpus'."
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
