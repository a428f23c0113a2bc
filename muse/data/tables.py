"""Rows of text out of parquet files, never more than a limit of them, and one line of error for what is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 2**30  # of the text of one file, unpacked: what is held in memory several times over
MOST_RATIO, SMALL_BYTES = 1_000, 2**26  # no text unpacks to a thousand times its file; below the bytes nobody asks
BATCH_ROWS = 4_096


def text_rows(path: Path) -> list[str]:
    """The column `text` of a parquet file; ValueError in one line for a damaged, huge or other file."""
    import pyarrow
    import pyarrow.parquet

    damaged = pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_column(path, file)
        with pyarrow.parquet.ParquetFile(path, read_dictionary=["text"], page_checksum_verification=True) as file:
            rows = [row for batch in _batches(path, file) for row in batch]
            expected = file.metadata.num_rows
    except NoTextError:
        raise
    except damaged as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ValueError(f"{path} must be a readable parquet file: {first}") from error
    if len(rows) != expected:
        raise ValueError(f"{path} must hold the {expected} rows that it promises, got {len(rows)}")
    return rows


class NoTextError(ValueError):
    """A parquet file that can be read and is no text."""


def _check_column(path: Path, file) -> None:
    """That there is one column `text`, that it holds text, and that it unpacks to no more than the limit."""
    import pyarrow

    schema = file.schema_arrow
    if schema.names.count("text") != 1:
        raise NoTextError(f"{path} must have a column 'text', got {schema.names[:20]}")
    kind = schema.field("text").type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or str(kind) == "string_view"):
        raise NoTextError(f"column 'text' of {path} must hold text in every row, got {kind}")
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    _check_size(path, sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text"))


def _batches(path: Path, file) -> Iterator[list[str]]:
    """Rows in batches; their bytes are counted before they are made, since a dictionary may stand for many times more.

    Counted in characters of UTF-8, from the lengths of the dictionary's entries.
    """
    import pyarrow
    import pyarrow.compute as pc

    total = 0
    for batch in file.iter_batches(BATCH_ROWS, columns=["text"]):
        column = batch.column(0)
        if column.null_count:
            raise NoTextError(f"column 'text' of {path} must hold text in every row, got missing values")
        column.validate(full=True)
        if pyarrow.types.is_dictionary(column.type):
            lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
        else:
            lengths = pc.binary_length(column)
        total += pc.sum(pc.cast(lengths, "int64")).as_py() or 0
        _check_size(path, total)
        rows = column.to_pylist()
        if not all(isinstance(row, str) for row in rows):
            raise NoTextError(f"column 'text' of {path} must hold text in every row, got other or missing values")
        yield rows


def _check_size(path: Path, num_bytes: int) -> None:
    if num_bytes > MOST_BYTES or num_bytes > max(SMALL_BYTES, MOST_RATIO * path.stat().st_size):
        unpacked = f"{num_bytes:,} bytes of text from {path.stat().st_size:,}"
        raise NoTextError(f"{path} must unpack to at most {MOST_BYTES:,} bytes, as text does; got {unpacked}")
