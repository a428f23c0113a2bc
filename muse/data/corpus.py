"""What a corpus is once it was read: splits of tokens, and the files they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class SourceFile:
    """What was read, for the record: a path or hub id, the SHA-256 of its bytes and their number."""

    path: str
    sha256: str
    num_bytes: int
    normalized: tuple[str, ...] = ()  # what was replaced in its text: some of `muse.data.text.normalized`'s names

    @classmethod
    def of_bytes(cls, path: str | Path, content: bytes, normalized: Sequence[str] = ()) -> SourceFile:
        return cls(str(path), hashlib.sha256(content).hexdigest(), len(content), tuple(normalized))


@dataclass(frozen=True)
class TokenSplit:
    """One split as one run of tokens."""

    name: str
    ids: torch.Tensor  # int32 (tokens,)
    document_starts: torch.Tensor  # int64 (documents,), token index where each document begins, the first is 0
    num_words: int  # canonical words: whitespace-separated words plus one for each end of line
    num_bytes: int  # of the text in UTF-8
    sha256: str  # of the ids as little-endian int32
    inside_unk: torch.Tensor | None = None  # bool (tokens,), second and later pieces of an <unk>; None without any
    median_word_bytes: float = 0.0  # of its words in UTF-8; beyond some 30 the text has no spaces to part its words


@dataclass(frozen=True)
class Corpus:
    """The splits of a corpus under one tokenizer, and what was read to make them."""

    name: str
    tokenizer_name: str
    vocab_size: int  # smallest model vocabulary that holds every id
    splits: dict[str, TokenSplit]
    files: tuple[SourceFile, ...]
    entropy_nats_per_token: float | None  # true entropy rate, known for the synthetic corpus only
    decode: Callable[[Sequence[int]], str]
    text: str = ""  # which text was read: `muse.data.corpora.text_of`
    tokenizer_sha256: str = ""  # of its vocabulary, wherever it was read from: `muse.data.tokenizers.vocabulary_sha256`
