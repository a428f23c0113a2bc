"""Splits that are larger than memory: cut into tokens in parallel, kept in files, and read from there as they are used.

A split is `<key>.ids` (int32), `<key>.starts` (int64), `<key>.unk` (bool, where a piece of `<unk>` is in it) and
`<key>.json`, which is written last. The key is of the bytes of its files and of the tokenizer. What a split is does not
depend on the way: read whole or in blocks, it has the same ids, hence the same trainings.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import torch

from muse.host.cores import usable_cores
from muse.host.files import replaced, sha256_of, write_atomic
from muse.host.progress import track

from .corpus import SourceFile
from .encoder import Encoder
from .readers import lines_of
from .streams import BLOCK_BYTES, check_heads, text_blocks
from .tokenizers import UNKNOWN, Tokenizer
from .words import SAMPLE, TextSplit, canonical_words, median_word_bytes

FORMAT = 1  # part of every key: raise it when what is kept of the same text changes
LARGE_BYTES = 2**27  # of the files of a split: beyond, it is read in blocks and kept in files

Encode = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]
Titles = Callable[..., tuple[list[int], list[int]]]


class Facts(NamedTuple):
    """What tells which text a split is."""

    num_characters: int
    num_titles: int
    has_unk: bool


class Mapped(NamedTuple):
    """A split in files, what it was read from, and what tells its text."""

    split: TextSplit
    files: tuple[SourceFile, ...]
    facts: Facts


def is_large(paths: Sequence[Path]) -> bool:
    """Whether the files of a split are read in blocks."""
    return sum(path.stat().st_size for path in paths) > LARGE_BYTES


def mapped_split(name: str, paths: Sequence[Path], tokenizer: Tokenizer, cache_dir: Path, titles: Titles) -> Mapped:
    """Return a split from the cache, or cut it into tokens first; `titles` finds where documents may begin.

    Raises ValueError in one line for files that are no text, OSError where the cache cannot be written.
    """
    check_heads(paths)
    stem = _stem(paths, tokenizer, cache_dir)
    kept = _read(stem)
    if kept is None:
        kept = _Cut(name, paths, tokenizer, titles).write(stem)
    files = tuple(
        SourceFile(str(path), sha256, num_bytes, tuple(normalized))
        for path, (sha256, num_bytes, normalized) in zip(paths, kept["files"], strict=True)
    )
    facts = Facts(kept["num_characters"], kept["num_titles"], kept["has_unk"])
    return Mapped(_split(name, stem, kept), files, facts)


def is_cut(paths: Sequence[Path], tokenizer: Tokenizer, cache_dir: Path) -> bool:
    """Whether the cache has the tokens of a split."""
    return _stem(paths, tokenizer, cache_dir).with_suffix(".json").exists()


def _stem(paths: Sequence[Path], tokenizer: Tokenizer, cache_dir: Path) -> Path:
    contents = [sha256_of(path) for path in paths]
    about = f"mapped {FORMAT} {paths[0].suffix} {contents} {tokenizer.sha256}"
    return cache_dir / hashlib.sha256(about.encode()).hexdigest()


def _read(stem: Path) -> dict[str, object] | None:
    """What `<key>.json` says, where the ids beside it are those it speaks of."""
    try:
        kept = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        whole = stem.with_suffix(".ids").stat().st_size == 4 * kept["num_tokens"]
        return kept if whole and sha256_of(stem.with_suffix(".ids")) == kept["sha256"] else None
    except (OSError, ValueError, KeyError):
        return None


def _split(name: str, stem: Path, kept: Mapping[str, object]) -> TextSplit:
    ids = _tensor(stem.with_suffix(".ids"), kept["num_tokens"], torch.int32)
    starts = _tensor(stem.with_suffix(".starts"), kept["num_documents"], torch.int64)
    inside = _tensor(stem.with_suffix(".unk"), kept["num_tokens"], torch.bool) if kept["inside_unk"] else None
    told = kept["num_words"], kept["num_bytes"], kept["sha256"]
    return TextSplit(name, ids, starts, *told, inside, kept["median_word_bytes"], kept["num_characters"])


def _tensor(path: Path, count: int, dtype: torch.dtype) -> torch.Tensor:
    """A file as a tensor: its pages are read when they are used, and given back when memory is short."""
    return torch.from_file(str(path), shared=False, size=count, dtype=dtype)


class _Cut:
    """One split on its way into files."""

    def __init__(self, name: str, paths: Sequence[Path], tokenizer: Tokenizer, titles: Titles) -> None:
        self.name, self.paths, self.tokenizer, self.titles = name, paths, tokenizer, titles
        self.files: list[SourceFile] = []
        self.sha256 = hashlib.sha256()
        self.num_tokens = self.num_words = self.num_bytes = self.num_characters = 0
        self.titled, self.opening = array("q"), array("q")  # tokens at which documents may begin
        self.has_unk = self.inside_unk = False
        self.sample = ""

    def write(self, stem: Path) -> dict[str, object]:
        """Write the split's files, and return what the last of them says."""
        with (
            replaced(stem.with_suffix(".ids")) as ids_path,
            replaced(stem.with_suffix(".unk")) as unk_path,
            ids_path.open("wb") as ids_file,
            unk_path.open("wb") as unk_file,
        ):
            for text, ids, lengths, blank in _encoded(self._tracked(), self.tokenizer):
                self._take(text, ids, lengths, blank)
                inside = pieces_inside(ids, self.tokenizer.unk_pieces)  # a block ends with a line, so none lies across
                self.inside_unk = self.inside_unk or bool(inside.any())
                ids_file.write(ids.astype("<i4").tobytes())
                unk_file.write(inside.tobytes())
            if self.num_tokens < 2:
                raise ValueError(
                    f"{self.paths[0]}: split {self.name!r} must have at least 2 tokens to have a target, "
                    f"got {self.num_tokens}"
                )
        starts = self.titled or self.opening
        starts[0] = 0  # whatever stands before the first belongs to it
        with replaced(stem.with_suffix(".starts")) as path:
            path.write_bytes(np.asarray(starts, "<i8").tobytes())
        kept = {
            "files": [(file.sha256, file.num_bytes, file.normalized) for file in self.files],
            "num_documents": len(starts),
            "num_titles": len(self.titled),
            "sha256": self.sha256.hexdigest(),
            "median_word_bytes": median_word_bytes(self.sample),
        }
        counted = ("num_tokens", "num_words", "num_bytes", "num_characters", "has_unk", "inside_unk")
        kept |= {name: getattr(self, name) for name in counted}
        write_atomic(stem.with_suffix(".json"), json.dumps(kept) + "\n")
        return kept

    def _tracked(self) -> Iterator[str]:
        blocks = text_blocks(self.paths, self.files.append)
        sizes = [path.stat().st_size for path in self.paths]
        total = sum(-(-size // BLOCK_BYTES) for size in sizes) if self.paths[0].suffix == ".txt" else None
        return track(blocks, f"tokens of {self.name}, MiB of text" if total else f"tokens of {self.name}", total)

    def _take(self, text: str, ids: np.ndarray, lengths: np.ndarray, blank: tuple[bool, bool]) -> None:
        starts = np.cumsum(lengths) - lengths + self.num_tokens
        titled, opening = self.titles(lines_of(text), *blank)
        self.titled.extend(starts[titled].tolist())
        self.opening.extend(starts[opening].tolist())
        self.sha256.update(ids.astype("<i4").tobytes())
        self.num_tokens += len(ids)
        self.num_words += canonical_words(text)
        self.num_bytes += len(text.encode())
        self.num_characters += len(text)
        self.has_unk = self.has_unk or UNKNOWN in text
        if len(self.sample) < SAMPLE:
            self.sample = (self.sample + text)[:SAMPLE]


def pieces_inside(ids: np.ndarray, unk_pieces: Sequence[Sequence[int]]) -> np.ndarray:
    """bool (tokens,): second and later pieces of an `<unk>`, of which `unk_pieces` are the ids."""
    inside = np.zeros(len(ids), bool)
    for pieces in unk_pieces:
        starts = np.flatnonzero(ids[: max(0, len(ids) - len(pieces) + 1)] == pieces[0])
        for place, piece in enumerate(pieces):
            starts = starts[ids[starts + place] == piece]
        inside[starts[:, None] + np.arange(1, len(pieces))] = True
    return inside


def _encoded(blocks: Iterator[str], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray, np.ndarray, tuple]]:
    """Yield each block with its ids, the tokens of its lines, and whether the lines around it are blank, in order.

    A tokenizer with a definition works in a process for each core, a few blocks ahead and no more.
    """
    with ExitStack() as stack:
        count = usable_cores() if tokenizer.definition else 1
        free: SimpleQueue[Encode] = SimpleQueue()
        for _ in range(count):
            encoder = Encoder(tokenizer.definition) if tokenizer.definition else None
            if encoder:
                stack.callback(encoder.close)
            free.put(encoder or tokenizer.encode)
        pool = stack.enter_context(ThreadPoolExecutor(count))

        def encode(text: str) -> tuple[np.ndarray, np.ndarray]:
            encoder = free.get()
            try:
                return encoder(lines_of(text))
            finally:
                free.put(encoder)

        waiting: deque = deque()
        for text, *blank in _between_blanks(blocks):
            waiting.append((text, pool.submit(encode, text), tuple(blank)))
            if len(waiting) > 2 * count:
                text, found, around = waiting.popleft()
                yield text, *found.result(), around
        for text, found, around in waiting:
            yield text, *found.result(), around


def _between_blanks(blocks: Iterator[str]) -> Iterator[tuple[str, bool, bool]]:
    """Yield each block with whether the line before it and the one behind it are blank, as the ends of a text are."""
    before, held = True, None
    for text in blocks:
        if held is not None:
            first = text.partition("\n")[0]
            yield held, before, not first.strip()
            before = not held.removesuffix("\n").rpartition("\n")[2].strip()
        held = text
    if held is not None:
        yield held, before, True
