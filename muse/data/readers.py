"""Where text comes from: the hub, or a folder of text or parquet files, as lines that keep their newline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from muse.catalog import CORPORA, HUB_CORPORA

from .corpus import SourceFile
from .hub import from_cache_or_hub, quiet_datasets

WIKITEXT_HUB_ID = "Salesforce/wikitext"

Texts = tuple[dict[str, list[str]], tuple[SourceFile, ...]]  # lines of each split, and the files they came from


def read_wikitext(name: str, splits: Sequence[str], hub_timeout_seconds: float) -> Texts:
    """Lines of the text that a name of `catalog.HUB_CORPORA` stands for."""
    import datasets

    def load(local_only: bool):
        with quiet_datasets(local_only):
            return datasets.load_dataset(WIKITEXT_HUB_ID, HUB_CORPORA[name])

    found = from_cache_or_hub(f"corpus {name!r}", WIKITEXT_HUB_ID, "dataset", load, hub_timeout_seconds)
    lines = {split: _lines_of_rows(found[split]["text"]) for split in splits}
    source = f"{WIKITEXT_HUB_ID}/{HUB_CORPORA[name]}"
    return lines, tuple(SourceFile.of_bytes(f"{source}/{split}", "".join(lines[split]).encode()) for split in splits)


def read_folder(folder: Path, splits: Sequence[str]) -> Texts:
    """Lines of <split>.txt, or of <split>.parquet or <split>-*.parquet (column text)."""
    if not folder.is_dir():
        raise ValueError(f"corpus must be {', '.join(CORPORA)} or an existing folder, got {str(folder)!r}")
    lines, files = {}, []
    for name in splits:
        text = [path for path in (folder / f"{name}.txt",) if path.is_file()]
        parquet = sorted([*folder.glob(f"{name}.parquet"), *folder.glob(f"{name}-*.parquet")])
        if bool(text) == bool(parquet):
            got = "both" if text else "neither"
            raise ValueError(f"{folder} must hold either {name}.txt or {name}.parquet ({name}-*.parquet), got {got}")
        rows = [row for path in parquet for row in _rows(path)]
        lines[name] = _lines(_utf8(text[0])) if text else _lines_of_rows(rows)
        files += [SourceFile.of_bytes(path, path.read_bytes()) for path in text or parquet]
    return lines, tuple(files)


def _utf8(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8: {error}") from error


def _rows(path: Path) -> list[str]:
    import pyarrow.parquet

    columns = pyarrow.parquet.read_schema(path).names
    if "text" not in columns:
        raise ValueError(f"{path} must have a column 'text', got {columns}")
    rows = pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist()
    if not all(isinstance(row, str) for row in rows):
        raise ValueError(f"column 'text' of {path} must hold text in every row, got other or missing values")
    return rows


def _lines(text: str) -> list[str]:
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
    return _lines("".join(row if row.endswith("\n") else row + "\n" if row else blank for row in rows))
