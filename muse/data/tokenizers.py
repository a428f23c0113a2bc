"""Lines of text to token ids and back: GPT-2's byte-level BPE from the hub or a folder, or a corpus's own words."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

GPT2_HUB_ID = "openai-community/gpt2"
TOKENIZER_FILES = ("vocab.json", "merges.txt")  # required of a folder; the others are read where they exist
OPTIONAL_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
UNKNOWN, NEWLINE = "<unk>", "\n"

Loaded = TypeVar("Loaded")


class CorpusUnavailable(ConnectionError):  # noqa: N818 (a state of the world, like its base's subclasses)
    """What was asked for is neither in the local cache nor reachable; the message says which three ways out exist."""


@dataclass(frozen=True)
class SourceFile:
    """What was read, for the record: a path or hub id, the SHA-256 of its bytes and their number."""

    path: str
    sha256: str
    num_bytes: int

    @classmethod
    def of_bytes(cls, path: str | Path, content: bytes) -> SourceFile:
        return cls(str(path), hashlib.sha256(content).hexdigest(), len(content))


@dataclass(frozen=True)
class Tokenizer:
    """A mapping from lines (newline kept) to ids; `sha256` names the mapping, so that it can key a cache."""

    name: str
    vocab_size: int  # smallest vocabulary that holds every id
    sha256: str
    files: tuple[SourceFile, ...]
    encode: Callable[[list[str]], tuple[np.ndarray, np.ndarray]]  # lines -> int32 ids (tokens,), int64 tokens per line
    decode: Callable[[Sequence[int]], str]


def gpt2_tokenizer(source: str, hub_timeout_seconds: float = 10) -> Tokenizer:
    """GPT-2's tokenizer from the hub (`source` "gpt2") or from a folder with vocab.json and merges.txt."""
    if source != "gpt2":
        return _folder_tokenizer(Path(source))
    from transformers import GPT2TokenizerFast

    def load(local_only: bool):
        return _checked(GPT2TokenizerFast.from_pretrained(GPT2_HUB_ID, local_files_only=local_only), GPT2_HUB_ID)

    tokenizer = from_cache_or_hub("the gpt2 tokenizer", GPT2_HUB_ID, "model", load, hub_timeout_seconds)
    return _wrap(source, tokenizer, files=())


def _folder_tokenizer(folder: Path) -> Tokenizer:
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    if missing:
        expected = "'gpt2', 'corpus' or a folder with vocab.json and merges.txt"
        raise ValueError(f"tokenizer must be {expected}, got {str(folder)!r}: no {' and no '.join(missing)} there")
    from transformers import GPT2TokenizerFast

    present = [folder / name for name in TOKENIZER_FILES + OPTIONAL_FILES if (folder / name).is_file()]
    files = tuple(SourceFile.of_bytes(path, path.read_bytes()) for path in present)
    tokenizer = _checked(GPT2TokenizerFast.from_pretrained(str(folder), local_files_only=True), str(folder))
    return _wrap(str(folder), tokenizer, files)


def _checked(tokenizer, name: str):
    """The tokenizer; ValueError where it loses text, as the empty one does that transformers makes of missing files."""
    text = " = A title = \n"
    given_back = tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False)
    if given_back != text:
        raise ValueError(f"tokenizer {name!r} must give back the text it is given, got {given_back!r} for {text!r}")
    return tokenizer


def _wrap(name: str, tokenizer, files: tuple[SourceFile, ...]) -> Tokenizer:
    """A transformers tokenizer as a Tokenizer; without files of its own, its definition is what is recorded."""
    tokenizer.model_max_length = 10**9  # a long line is no mistake here: lines are joined and cut into windows later
    definition = tokenizer.backend_tokenizer.to_str().encode()

    def encode(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        from datasets import Dataset

        return tokenize_dataset(Dataset.from_dict({"text": lines}), tokenizer)

    return Tokenizer(
        name,
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        sha256=hashlib.sha256(definition).hexdigest(),
        files=files or (SourceFile.of_bytes(GPT2_HUB_ID, definition),),
        encode=encode,
        decode=lambda ids: tokenizer.decode(list(ids), clean_up_tokenization_spaces=False),
    )


def tokenize_dataset(dataset, tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Tokenizes the `text` column row by row and joins it: int32 ids (tokens,) and int64 tokens per row (rows,).

    A batch of rows becomes one row, so every column that was there before (an attention mask, say) has to go.
    """

    def join(batch: dict) -> dict:
        rows = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        ids = np.concatenate([np.asarray(row, np.int32) for row in rows])
        return {"ids": [ids], "lengths": [[len(row) for row in rows]]}

    with quiet_datasets():
        joined = dataset.map(
            join, batched=True, remove_columns=dataset.column_names, keep_in_memory=True, load_from_cache_file=False
        )
    joined = joined.with_format("numpy")
    ids, lengths = ([row[column] for row in joined] for column in ("ids", "lengths"))
    return np.concatenate(ids).astype(np.int32), np.concatenate(lengths).astype(np.int64)


def word_tokenizer(training_lines: Iterable[str]) -> Tokenizer:
    """The corpus's own vocabulary: <unk>, the newline and every word of the training split, frequent ones first."""
    counts = Counter(word for line in training_lines for word in line.split())
    words = [UNKNOWN, NEWLINE, *sorted(counts.keys() - {UNKNOWN}, key=lambda word: (-counts[word], word))]
    ids = {word: index for index, word in enumerate(words)}
    definition = "\0".join(words).encode()

    def encode(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [[ids.get(word, 0) for word in line.split()] + [1] * line.endswith(NEWLINE) for line in lines]
        flat = np.fromiter((index for row in rows for index in row), np.int32)
        return flat, np.array([len(row) for row in rows], np.int64)

    def decode(token_ids: Sequence[int]) -> str:
        return " ".join(words[index] for index in token_ids).replace(f"{NEWLINE} ", NEWLINE)

    file = SourceFile.of_bytes("vocabulary of the training split", definition)
    return Tokenizer("corpus", len(words), file.sha256, (file,), encode, decode)


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
