"""Corpora by name or folder: which text was read, how it was cut into tokens, and where its documents begin.

A split of N tokens has N - 1 evaluation targets: every token but the first, before which nothing stands (no start
token is invented).
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from muse.catalog import HUB_CORPORA, RAW, SYNTHETIC, WITH_UNK
from muse.host.files import replaced

from .corpus import Corpus, SourceFile, TokenSplit
from .grammar import Grammar
from .mapped import Facts, Mapped, is_cut, is_large, mapped_split, pieces_inside
from .readers import lines_of, read_folder, read_wikitext
from .shards import split_files
from .streams import text_blocks
from .tokenizers import UNKNOWN, Tokenizer, gpt2_tokenizer, vocabulary_sha256, word_tokenizer
from .words import TextSplit, canonical_words, median_word_bytes

SPLITS = ("train", "validation", "test")
SYNTHETIC_TOKENS = {"train": 400_000, "validation": 20_000, "test": 40_000}
SYNTHETIC_SEED = 77  # of the first 150 the one whose validation and test samples lie closest to the exact entropies
CACHE_FORMAT = 1  # part of every cache key: raise it when ids or document starts of the same text change
ARTICLE_TITLE = re.compile(r" = [^=](.*[^=])? = \n?")  # of WikiText; section titles have two or more signs on each side
WIKITEXT_ARTICLES = {"train": 600, "validation": 60, "test": 60}
WIKITEXT_CHARACTERS = {"train": 10_000_000, "validation": 1_000_000, "test": 1_200_000}  # either text has some more
OTHER_TEXT = "another text"
LINE = re.compile(r"[^\n]*\n|[^\n]+")


@dataclass(frozen=True)
class TextCorpus(Corpus):
    """A corpus that takes text as well; apart from Corpus, which is part of every training's key."""

    encode: Callable[[str], list[int]] = field(kw_only=True)
    """Text to ids, the inverse of `decode`: as the splits were made, so words that a corpus of words does not know are
    `<unk>`. The synthetic language has none: ValueError names the word and what it is near."""


def load_corpus(
    corpus: str,
    tokenizer: str,
    *,
    splits: Sequence[str] = SPLITS,
    cache_dir: Path | None = None,
    hub_timeout_seconds: float = 10,
    synthetic_tokens: dict[str, int] | None = None,
) -> TextCorpus:
    """Reads a corpus (a name of the catalog or a folder) with a tokenizer ("gpt2", "corpus" or a folder).

    Token ids are kept in `cache_dir` (default $MUSE_CACHE_DIR, else the user's cache), keyed by the SHA-256 of text and
    tokenizer. Raises ValueError, in one line with the file, for names and files that do not fit, CorpusUnavailable
    within seconds where the hub is needed and away.
    """
    unknown = [name for name in splits if name not in SPLITS]
    if unknown or not splits:
        raise ValueError(f"splits must be some of {', '.join(SPLITS)}, got {tuple(splits)}")
    if corpus == SYNTHETIC:
        return _synthetic_corpus(tokenizer, splits, synthetic_tokens or {})
    if synthetic_tokens:
        raise ValueError(f"synthetic_tokens is for corpus {SYNTHETIC!r}, got corpus {corpus!r}")
    needed = [name for name in SPLITS if name in splits or (tokenizer == "corpus" and name == "train")]
    large = large_splits(corpus, needed)
    if corpus in HUB_CORPORA:
        lines, files = read_wikitext(corpus, needed, hub_timeout_seconds)
    else:
        lines, files = read_folder(Path(corpus), [name for name in needed if name not in large])
    if tokenizer == "corpus":
        encoder = word_tokenizer(_lines_of(large["train"]) if "train" in large else lines["train"])
    else:
        encoder = gpt2_tokenizer(tokenizer, hub_timeout_seconds)
    cache_dir = Path(cache_dir or _default_cache_dir())
    mapped = {name: _mapped(name, large[name], encoder, cache_dir) for name in large if name in splits}
    token_splits = {
        name: mapped[name].split if name in mapped else _tokenized(corpus, name, lines[name], encoder, cache_dir)
        for name in splits
    }
    facts = {name: _facts(lines[name]) for name in lines} | {name: found.facts for name, found in mapped.items()}
    text = HUB_CORPORA.get(corpus) or _text_by(facts)
    files = (*(file for found in mapped.values() for file in found.files), *files, *encoder.files)
    tokens = encoder.vocab_size, token_splits, files, None, encoder.decode
    encode = partial(_encoded, encoder)
    return TextCorpus(corpus, tokenizer, *tokens, text, encoder.vocabulary_sha256, encode=encode)


def text_of(lines: Mapping[str, Sequence[str]]) -> str:
    """Which text these lines of splits are: WikiText-2 by articles and size, with rare words or `<unk>` instead.

    Of any other text no more than that is said, and whether it holds `<unk>`.
    """
    return _text_by({name: _facts(split) for name, split in lines.items()})


def _facts(lines: Sequence[str]) -> Facts:
    return Facts(sum(map(len, lines)), len(_titles(lines)[0]), any(UNKNOWN in line for line in lines))


def _text_by(facts: Mapping[str, Facts]) -> str:
    has_unk = any(split.has_unk for split in facts.values())
    if all(_is_wikitext(name, split) for name, split in facts.items()):
        return WITH_UNK if has_unk else RAW
    return f"{OTHER_TEXT} with {UNKNOWN}" if has_unk else OTHER_TEXT


def _is_wikitext(name: str, facts: Facts) -> bool:
    return facts.num_characters >= WIKITEXT_CHARACTERS[name] and facts.num_titles == WIKITEXT_ARTICLES[name]


def large_splits(corpus: str, splits: Sequence[str]) -> dict[str, list[Path]]:
    """The files of those splits of a folder that are read in blocks and kept in files; ValueError for its faults."""
    if corpus in (SYNTHETIC, *HUB_CORPORA):
        return {}
    files = {name: split_files(Path(corpus), name) for name in splits}
    return {name: paths for name, paths in files.items() if is_large(paths)}


def is_cheap(corpus: str, tokenizer: str, splits: Sequence[str], cache_dir: Path | None = None) -> bool:
    """Whether `load_corpus` has no text larger than memory to cut into tokens."""
    large = large_splits(corpus, splits)
    if not large or tokenizer == "corpus":
        return not large
    encoder, cache_dir = gpt2_tokenizer(tokenizer), Path(cache_dir or _default_cache_dir())
    return all(is_cut(paths, encoder, cache_dir) for paths in large.values())


def _lines_of(paths: Sequence[Path]) -> Iterator[str]:
    return (line for text in text_blocks(paths) for line in lines_of(text))


def _mapped(name: str, paths: Sequence[Path], encoder: Tokenizer, cache_dir: Path) -> Mapped:
    try:
        return mapped_split(name, paths, encoder, cache_dir, _titles)
    except OSError as error:
        why = error.strerror or error
        raise ValueError(
            f"cache_dir: got {cache_dir}, expected a folder with room for the tokens of {name}: {why}"
        ) from error


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text, line by line as those of the splits."""
    lines = LINE.findall(text)
    return tokenizer.encode(lines)[0].tolist() if lines else []


def _synthetic_corpus(tokenizer: str, splits: Sequence[str], sizes: dict[str, int]) -> TextCorpus:
    """The language of muse.grammar at its default sizes, a seed for each split; its symbols are its tokens."""
    if tokenizer != "corpus":
        raise ValueError(f"corpus {SYNTHETIC!r} has symbols of its own: tokenizer must be 'corpus', got {tokenizer!r}")
    wrong = {name: size for name, size in sizes.items() if name not in SPLITS or size < 2}
    if wrong:
        raise ValueError(f"synthetic_tokens must give {', '.join(SPLITS)} at least 2 tokens each, got {wrong}")
    grammar, made, files = _usual_grammar(), {}, []
    for name in splits:
        seed = [SYNTHETIC_SEED, SPLITS.index(name)]
        ids = grammar.sample({**SYNTHETIC_TOKENS, **sizes}[name], seed)
        text = grammar.decode(ids.tolist())
        made[name] = _token_split(name, ids, np.flatnonzero(ids == 0), text, len(content := text.encode()))
        files.append(SourceFile.of_bytes(f"muse.data.grammar.Grammar().sample({len(ids)}, seed={seed})", content))
    symbols = vocabulary_sha256({grammar.decode([index]): index for index in range(grammar.vocab_size)})
    known = grammar.entropy_nats(), grammar.decode, SYNTHETIC, symbols
    return TextCorpus(SYNTHETIC, "corpus", grammar.vocab_size, made, tuple(files), *known, encode=grammar.encode)


@cache
def _usual_grammar() -> Grammar:
    """The grammar at its default sizes, which takes a second to lay out: once a process."""
    return Grammar()


def _titles(lines: Sequence[str], before: bool = True, behind: bool = True) -> tuple[list[int], list[int]]:
    """Line indices of WikiText's titles of articles, between blank lines, and of all lines after a blank one.

    The "= 1 =" of a formula inside a paragraph is no title. `before` and `behind` say whether there are blank lines
    around these, as at the ends of a text.
    """
    blank = [before, *(not line.strip() for line in lines), behind]  # blank[i + 1] is line i
    opening = [i for i, line in enumerate(lines) if blank[i] and not blank[i + 1]]
    return [i for i in opening if blank[i + 2] and ARTICLE_TITLE.fullmatch(lines[i])], opening


def _first_lines(lines: Sequence[str]) -> list[int]:
    """Line index where each document begins: an article, or a paragraph of a text without titles of articles.

    Whatever stands before the first belongs to it.
    """
    titles, opening = _titles(lines)
    return [0, *(titles or opening)[1:]]


def _token_split(
    name: str, ids: np.ndarray, starts: np.ndarray, text: str, num_bytes: int, unk_pieces: Sequence = ()
) -> TextSplit:
    ids, starts = ids.astype(np.int32), torch.from_numpy(starts.astype(np.int64))
    sha256, inside_unk = _sha256_of_ids(ids), _inside_unk(ids, unk_pieces)
    split = torch.from_numpy(ids), starts, canonical_words(text), num_bytes, sha256, inside_unk
    return TextSplit(name, *split, median_word_bytes(text), len(text))


def _inside_unk(ids: np.ndarray, unk_pieces: Sequence[Sequence[int]]) -> torch.Tensor | None:
    """bool (tokens,) as `pieces_inside`; None without any."""
    inside = pieces_inside(ids, unk_pieces)
    return torch.from_numpy(inside) if inside.any() else None


def _sha256_of_ids(ids: np.ndarray) -> str:
    return hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()


def _tokenized(corpus: str, name: str, lines: list[str], tokenizer: Tokenizer, cache_dir: Path) -> TokenSplit:
    """Ids and document starts of a split, from the cache where the same text met the same tokenizer before."""
    text = "".join(lines)
    content = text.encode()
    if not content:
        raise ValueError(f"{corpus}: split {name!r} is empty")
    key = f"{CACHE_FORMAT} {hashlib.sha256(content).hexdigest()} {tokenizer.sha256}"
    path = cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
    cached = _read_cache(path)
    if cached is None:
        ids, lengths = tokenizer.encode(lines)
        if len(ids) < 2:
            raise ValueError(f"{corpus}: split {name!r} must have at least 2 tokens to have a target, got {len(ids)}")
        cached = ids, (np.cumsum(lengths) - lengths)[_first_lines(lines)]
        _write_cache(path, *cached)
    return _token_split(name, *cached, text, len(content), tokenizer.unk_pieces)


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
