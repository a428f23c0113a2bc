"""Where text comes from: the hub, or a folder of text or parquet files, as lines that keep their newline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from muse.catalog import HUB_CORPORA

from .corpus import SourceFile
from .hub import from_cache_or_hub, quiet_datasets
from .shards import split_files
from .tables import MOST_BYTES, text_rows
from .text import binary, no_text, normalized

WIKITEXT_HUB_ID = "Salesforce/wikitext"
HEAD_BYTES = 4096  # of a table that is none, to say what it is

Texts = tuple[dict[str, list[str]], tuple[SourceFile, ...]]  # lines of each split, and the files they came from


def read_wikitext(name: str, splits: Sequence[str], hub_timeout_seconds: float) -> Texts:
    """Lines of the text that a name of `catalog.HUB_CORPORA` stands for."""
    import datasets

    def load():
        with quiet_datasets(local_only=True):
            return datasets.load_dataset(WIKITEXT_HUB_ID, HUB_CORPORA[name])

    fetch = f"import datasets; datasets.load_dataset({WIKITEXT_HUB_ID!r}, {HUB_CORPORA[name]!r})"
    found = from_cache_or_hub(f"corpus {name!r}", WIKITEXT_HUB_ID, "dataset", load, fetch, hub_timeout_seconds)
    source, lines, files = f"{WIKITEXT_HUB_ID}/{HUB_CORPORA[name]}", {}, []
    for split in splits:
        rows, replaced = _normalized(found[split]["text"])
        lines[split] = _lines_of_rows(rows)
        files.append(SourceFile.of_bytes(f"{source}/{split}", "".join(lines[split]).encode(), replaced))
    return lines, tuple(files)


def read_folder(folder: Path, splits: Sequence[str]) -> Texts:
    """Lines of <split>.txt or .parquet (column text), or of their shards; ValueError names the file at fault."""
    lines, files = {}, []
    for name in splits:
        paths = split_files(folder, name)
        if paths[0].suffix == ".txt":
            read = [_text_file(path) for path in paths]
            parts = [one for one, _ in read]
            for part in parts[:-1]:
                part[-1] = part[-1].removesuffix("\n") + "\n"  # a shard ends where a line does
            lines[name] = [line for part in parts for line in part]
            files += [file for _, file in read]
            continue
        contents = [_table_content(path) for path in paths]
        read = [_normalized(rows) for rows in text_rows(paths)]
        lines[name] = _lines_of_rows([row for rows, _ in read for row in rows])
        text = "".join(lines[name])
        if problem := "an empty text" if not text or text.isspace() else binary(text):
            raise ValueError(f"{paths[0]} must be a corpus, got {problem}")
        parts = zip(paths, contents, read, strict=True)
        files += [SourceFile.of_bytes(path, content, replaced) for path, content, (_, replaced) in parts]
    return lines, tuple(files)


def _text_file(path: Path) -> tuple[list[str], SourceFile]:
    content = _content(path)
    text, replaced = decoded(path, content)
    if problem := no_text(text):
        raise ValueError(f"{path} must be a corpus, got {problem}")
    return lines_of(text), SourceFile.of_bytes(path, content, replaced)


def decoded(path: Path, content: bytes) -> tuple[str, Sequence[str]]:
    """Text of a file with its line ends normalised, and what was replaced; ValueError names the file."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8: {error}") from error
    if "\r\r\n" in text:
        raise ValueError(f"{path} must have line ends that can be told apart, got '\\r\\r\\n', which is one or two")
    return normalized(text)


def _table_content(path: Path) -> bytes:
    content = _content(path)
    if not content.startswith(b"PAR1") and (problem := no_text(content[:HEAD_BYTES].decode("latin-1"))):
        raise ValueError(f"{path} must be a parquet file, got {problem}")
    return content


def _normalized(rows: Sequence[str]) -> tuple[list[str], list[str]]:
    """Rows as `normalized` makes them, and all that was replaced in any of them."""
    read = [normalized(row) for row in rows]
    return [row for row, _ in read], sorted({what for _, found in read for what in found})


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path} must be at most {MOST_BYTES:,} bytes, got {path.stat().st_size:,}")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} must be a readable file: {error.strerror or error}") from error


def lines_of(text: str) -> list[str]:
    """Lines with their newline; only a newline ends a line (str.splitlines knows ten more ways)."""
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _lines_of_rows(rows: Sequence[str]) -> list[str]:
    """Lines of a table whose rows are lines, some of which lost their end.

    The hub's WikiText stores the blank line " \\n" as "". An empty row gets back the line end of the first row with
    text, so that a table and the text file it came from give the same tokens; any other row gets the newline it lacks.
    """
    first = next((row for row in rows if row.strip()), "")
    blank = " \n" if first.endswith(" \n") else "\n"
    return lines_of("".join(row if row.endswith("\n") else row + "\n" if row else blank for row in rows))
