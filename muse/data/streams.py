"""Text of files larger than memory, block by block: each ends where a line does, as lines that keep their newline."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from muse.host.files import sha256_of

from .corpus import SourceFile
from .readers import HEAD_BYTES, decoded
from .tables import stream_rows
from .text import binary, no_text, normalized

BLOCK_BYTES = 2**20
LONGEST_LINE_BYTES = 2**26
EMPTY = "an empty text"  # as `no_text` calls it; of a block it is no problem

OnFile = Callable[[SourceFile], None]


def text_blocks(paths: Sequence[Path], on_file: OnFile = lambda file: None) -> Iterator[str]:
    """Yield the text of a split's files in order, some BLOCK_BYTES at a time; `on_file` gets each that is through.

    The text is that of `read_folder`: of one text file as it is, of shards with a newline between them, of tables by
    lines. Raises ValueError in one line that names the file at fault.
    """
    if paths[0].suffix == ".parquet":
        yield from _of_tables(paths, on_file)
        return
    for path in paths:
        last = ""
        for text in _of_text(path, on_file):
            yield text
            last = text
        if path != paths[-1] and not last.endswith("\n"):
            yield "\n"


def _of_text(path: Path, on_file: OnFile) -> Iterator[str]:
    whole, num_bytes, replaced, first = hashlib.sha256(), 0, set(), True
    for content in _byte_blocks(path):
        whole.update(content)
        num_bytes += len(content)
        text, found = decoded(path, content)
        if (problem := no_text(text) if first else binary(text)) and problem != EMPTY:
            raise ValueError(f"{path} must be a corpus, got {problem}")
        replaced |= set(found)
        first = False
        yield text
    if not num_bytes:
        raise ValueError(f"{path} must be a corpus, got {EMPTY}")
    on_file(SourceFile(str(path), whole.hexdigest(), num_bytes, tuple(sorted(replaced))))


def _byte_blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file in pieces that end with a newline, but for the last."""
    try:
        with path.open("rb") as file:
            while content := file.read(BLOCK_BYTES):
                content += file.readline(LONGEST_LINE_BYTES)
                if len(content) >= LONGEST_LINE_BYTES:
                    raise ValueError(f"{path} must have lines of at most {LONGEST_LINE_BYTES:,} bytes")
                yield content
    except OSError as error:
        raise ValueError(f"{path} must be a readable file: {error.strerror or error}") from error


def _of_tables(paths: Sequence[Path], on_file: OnFile) -> Iterator[str]:
    """Rows as lines, by the rules of `_lines_of_rows`: an empty row is a blank line as the first row with text ends."""
    blank, leading = "", 0  # how a blank line looks, once a row with text is known; empty rows before that
    for path in paths:
        replaced: set[str] = set()
        for rows in stream_rows(path):
            parts = []
            for row in rows:
                text, found = normalized(row)
                replaced |= set(found)
                if not blank and text.strip():
                    blank = " \n" if text.endswith(" \n") else "\n"
                    parts.append(blank * leading)
                if not blank and not text:
                    leading += 1
                else:
                    parts.append(text if text.endswith("\n") else text + "\n" if text else blank)
            block = "".join(parts)
            if problem := binary(block):
                raise ValueError(f"{path} must be a corpus, got {problem}")
            yield from [block] * bool(block)
        on_file(SourceFile(str(path), sha256_of(path), path.stat().st_size, tuple(sorted(replaced))))
    if not blank:
        raise ValueError(f"{paths[0]} must be a corpus, got {EMPTY}")


def check_heads(paths: Sequence[Path]) -> None:
    """Raise ValueError in one line for a file that begins or ends as no text and no table, before all of it is read."""
    for path in paths:
        try:
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
                file.seek(max(0, path.stat().st_size - HEAD_BYTES))
                tail = file.read(HEAD_BYTES)
        except OSError as error:
            raise ValueError(f"{path} must be a readable file: {error.strerror or error}") from error
        table = path.suffix == ".parquet"
        if table and head.startswith(b"PAR1"):
            problem = None if tail.endswith(b"PAR1") else "one without its end"
        else:
            problem = no_text(head.decode("utf-8", "replace")) or binary(tail.decode("utf-8", "replace"))
        if problem and problem != EMPTY:
            raise ValueError(f"{path} must be {'a parquet file' if table else 'a corpus'}, got {problem}")
