"""Text to deterministic next-token batches: what was read, how it was cut, and which tokens count.

A split of N tokens has N - 1 evaluation targets: every token but the first, before which nothing stands (no start
token is invented). Windows do not overlap, so each target is predicted once, from at most n_seq tokens before it.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from muse.host.files import replaced

from .batches import num_targets
from .grammar import Grammar
from .hub import SourceFile
from .readers import read_folder, read_wikitext
from .tokenizers import Tokenizer, gpt2_tokenizer, word_tokenizer

SPLITS = ("train", "validation", "test")
SYNTHETIC_TOKENS = {"train": 400_000, "validation": 20_000, "test": 40_000}
SYNTHETIC_SEED = 77  # of the first 150 the one whose validation and test samples lie closest to the exact entropies
CACHE_FORMAT = 1  # part of every cache key: raise it when ids or document starts of the same text change
ARTICLE_TITLE = re.compile(r" = [^=](.*[^=])? = \n?")  # of WikiText; section titles have two or more signs on each side


@dataclass(frozen=True)
class TokenSplit:
    """One split as one run of tokens."""

    name: str
    ids: torch.Tensor  # int32 (tokens,)
    document_starts: torch.Tensor  # int64 (documents,), token index where each document begins, the first is 0
    num_words: int  # canonical words: whitespace-separated words plus one for each end of line
    num_bytes: int  # of the text in UTF-8
    sha256: str  # of the ids as little-endian int32


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


def load_corpus(
    corpus: str,
    tokenizer: str,
    *,
    splits: Sequence[str] = SPLITS,
    cache_dir: Path | None = None,
    hub_timeout_seconds: float = 10,
    synthetic_tokens: dict[str, int] | None = None,
) -> Corpus:
    """Reads a corpus ("synthetic", "wikitext-2" or a folder) with a tokenizer ("gpt2", "corpus" or a folder).

    Token ids are kept in `cache_dir` (default $MUSE_CACHE_DIR, else the user's cache), keyed by the SHA-256 of text and
    tokenizer. Raises ValueError for names and files that do not fit, CorpusUnavailable within seconds where the hub is
    needed and away.
    """
    unknown = [name for name in splits if name not in SPLITS]
    if unknown or not splits:
        raise ValueError(f"splits must be some of {', '.join(SPLITS)}, got {tuple(splits)}")
    if corpus == "synthetic":
        return _synthetic_corpus(tokenizer, splits, synthetic_tokens or {})
    if synthetic_tokens:
        raise ValueError(f"synthetic_tokens is for corpus 'synthetic', got corpus {corpus!r}")
    needed = [name for name in SPLITS if name in splits or (tokenizer == "corpus" and name == "train")]
    if corpus == "wikitext-2":
        lines, files = read_wikitext(needed, hub_timeout_seconds)
    else:
        lines, files = read_folder(Path(corpus), needed)
    if tokenizer == "corpus":
        encoder = word_tokenizer(lines["train"])
    else:
        encoder = gpt2_tokenizer(tokenizer, hub_timeout_seconds)
    cache_dir = Path(cache_dir or _default_cache_dir())
    token_splits = {name: _tokenized(name, lines[name], encoder, cache_dir) for name in splits}
    return Corpus(corpus, tokenizer, encoder.vocab_size, token_splits, files + encoder.files, None, encoder.decode)


def evaluation_windows(ids: torch.Tensor, n_seq: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields int64 (inputs, targets), both (T,), without overlap; T is n_seq but for a shorter tail that is kept."""
    if n_seq < 1:
        raise ValueError(f"n_seq must be at least 1, got {n_seq}")
    for start in range(0, num_targets(ids), n_seq):
        window = ids[start : start + n_seq + 1].long()
        yield window[:-1], window[1:]


def _synthetic_corpus(tokenizer: str, splits: Sequence[str], sizes: dict[str, int]) -> Corpus:
    """The language of muse.grammar at its default sizes, a seed for each split; its symbols are its tokens."""
    if tokenizer != "corpus":
        raise ValueError(f"corpus 'synthetic' has symbols of its own: tokenizer must be 'corpus', got {tokenizer!r}")
    wrong = {name: size for name, size in sizes.items() if name not in SPLITS or size < 2}
    if wrong:
        raise ValueError(f"synthetic_tokens must give {', '.join(SPLITS)} at least 2 tokens each, got {wrong}")
    grammar, made, files = Grammar(), {}, []
    for name in splits:
        seed = [SYNTHETIC_SEED, SPLITS.index(name)]
        ids = grammar.sample({**SYNTHETIC_TOKENS, **sizes}[name], seed)
        text = grammar.decode(ids.tolist()).encode()
        made[name] = _token_split(name, ids, np.flatnonzero(ids == 0), num_words=len(ids), num_bytes=len(text))
        files.append(SourceFile.of_bytes(f"muse.data.grammar.Grammar().sample({len(ids)}, seed={seed})", text))
    return Corpus("synthetic", "corpus", grammar.vocab_size, made, tuple(files), grammar.entropy_nats(), grammar.decode)


def _first_lines(lines: Sequence[str]) -> list[int]:
    """Line index where each document begins.

    WikiText: an article, from a title between blank lines (the "= 1 =" of a formula inside a paragraph is none). Text
    without such titles: a paragraph, from a line after a blank one. Whatever stands before the first belongs to it.
    """
    blank = [True, *(not line.strip() for line in lines), True]  # blank[i + 1] is line i
    opening = [i for i, line in enumerate(lines) if blank[i] and not blank[i + 1]]
    titles = [i for i in opening if blank[i + 2] and ARTICLE_TITLE.fullmatch(lines[i])]
    return [0, *(titles or opening)[1:]]


def _token_split(name: str, ids: np.ndarray, document_starts: np.ndarray, num_words: int, num_bytes: int) -> TokenSplit:
    starts = torch.from_numpy(document_starts.astype(np.int64))
    return TokenSplit(name, torch.from_numpy(ids.astype(np.int32)), starts, num_words, num_bytes, _sha256_of_ids(ids))


def _sha256_of_ids(ids: np.ndarray) -> str:
    return hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()


def _tokenized(name: str, lines: list[str], tokenizer: Tokenizer, cache_dir: Path) -> TokenSplit:
    """Ids and document starts of a split, from the cache where the same text met the same tokenizer before."""
    text = "".join(lines)
    content = text.encode()
    if not content:
        raise ValueError(f"split {name!r} of the corpus is empty")
    key = f"{CACHE_FORMAT} {hashlib.sha256(content).hexdigest()} {tokenizer.sha256}"
    path = cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
    cached = _read_cache(path)
    if cached is None:
        ids, lengths = tokenizer.encode(lines)
        if len(ids) < 2:
            raise ValueError(f"split {name!r} must have at least 2 tokens to have a target, got {len(ids)}")
        cached = ids, (np.cumsum(lengths) - lengths)[_first_lines(lines)]
        _write_cache(path, *cached)
    return _token_split(name, *cached, num_words=len(text.split()) + text.count("\n"), num_bytes=len(content))


def _default_cache_dir() -> Path:
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MUSE_CACHE_DIR") or user / "muse")


def _read_cache(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """(ids, document starts) of a cache file; None where it is absent or not what was written."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            ids, starts, sha256 = file["ids"], file["document_starts"], str(file["sha256"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (ids, starts) if _sha256_of_ids(ids) == sha256 else None


def _write_cache(path: Path, ids: np.ndarray, document_starts: np.ndarray) -> None:
    """Written whole or not at all. Warns where it cannot be written."""
    try:
        with replaced(path) as temporary, temporary.open("wb") as file:
            np.savez(file, ids=ids, document_starts=document_starts, sha256=_sha256_of_ids(ids))
    except OSError as error:
        warnings.warn(f"token ids were not cached in {path.parent}: {error}", stacklevel=2)
