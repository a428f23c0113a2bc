"""Rows of text out of parquet files, never more than a limit of them, and one line of error for what is damaged.

The library that reads them may abort on a damaged file and take its process along, so this file is run as a script in
one of its own; it imports nothing of the package.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

MOST_BYTES = 2**30  # of the text of one file, unpacked: what is held in memory several times over
MOST_RATIO, SMALL_BYTES = 1_000, 2**26  # no text unpacks to a thousand times its file; below the bytes nobody asks
MOST_MEMORY = 2**34  # of the process that reads, addresses included
BATCH_ROWS = 4_096
START_SECONDS, BYTES_PER_SECOND = 60, 10**6  # how long reading may take, on a busy machine


class NoTextError(ValueError):
    """A parquet file that can be read and is no text."""


def text_rows(paths: Sequence[Path]) -> list[list[str]]:
    """The column `text` of each parquet file; ValueError in one line for a damaged, huge or other file."""
    found = []
    command = [sys.executable, "-P", __file__, *(str(path.absolute()) for path in paths)]
    seconds = START_SECONDS + sum(path.stat().st_size for path in paths) / BYTES_PER_SECOND
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds)
        end = f"its reader ended with {done.returncode}"
    except subprocess.TimeoutExpired as error:
        done, end = error, f"its reader took longer than {seconds:.0f} s"
    lines = (done.stdout or b"").split(b"\n")[:-1]
    for path, line in zip_longest(paths, lines):
        answer = json.loads(line) if line else f"must be a readable parquet file: {end}"
        if isinstance(answer, str):
            raise ValueError(f"{path} {answer}")
        found.append(answer)
    return found


def stream_rows(path: Path) -> Iterator[list[str]]:
    """The same of one file of any size, some rows at a time, read as they are asked for."""
    command = [sys.executable, "-P", __file__, "--stream", str(path.absolute())]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            for line in process.stdout:
                answer = json.loads(line)
                if isinstance(answer, str):
                    raise ValueError(f"{path} {answer}")
                if answer is None:  # all of them
                    return
                yield answer
            raise ValueError(f"{path} must be a readable parquet file: its reader ended with {process.wait()}")
        finally:
            process.kill()


def read_rows(path: Path) -> list[str]:
    """The column `text` of a file, in the process at hand; ValueError says what it must be, in one line."""
    return [row for batch in _checked_batches(path, MOST_BYTES) for row in batch]


def _checked_batches(path: Path, most_bytes: int | None) -> Iterator[list[str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_column(path, file, most_bytes)
        with pyarrow.parquet.ParquetFile(path, read_dictionary=["text"], page_checksum_verification=True) as file:
            expected, found = file.metadata.num_rows, 0
            for batch in _batches(path, file, most_bytes):
                found += len(batch)
                yield batch
    except NoTextError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ValueError(f"must be a readable parquet file: {first}") from error
    if found != expected:
        raise ValueError(f"must hold the {expected} rows that it promises, got {found}")


def _check_column(path: Path, file, most_bytes: int | None) -> None:
    """That there is one column `text`, that it holds text, and that it unpacks to no more than the limit."""
    import pyarrow

    schema = file.schema_arrow
    if schema.names.count("text") != 1:
        raise NoTextError(f"must have a column 'text', got {schema.names[:20]}")
    kind = schema.field("text").type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if str(kind) not in ("string", "large_string", "string_view"):
        raise NoTextError(f"must hold text in every row of its column 'text', got {kind}")
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")
    _check_size(path, size, most_bytes)


def _batches(path: Path, file, most_bytes: int | None) -> Iterator[list[str]]:
    """Rows in batches; their bytes are counted before they are made: a dictionary may stand for many times its own."""
    import pyarrow
    import pyarrow.compute

    total = 0
    for batch in file.iter_batches(BATCH_ROWS, columns=["text"]):
        column = batch.column(0)
        if column.null_count:
            raise NoTextError("must hold text in every row of its column 'text', got missing values")
        column.validate(full=True)
        if pyarrow.types.is_dictionary(column.type):
            lengths = pyarrow.compute.binary_length(column.dictionary).take(column.indices)
        else:
            lengths = pyarrow.compute.binary_length(column)
        total += pyarrow.compute.sum(lengths.cast("int64")).as_py() or 0
        _check_size(path, total, most_bytes)
        yield column.to_pylist()


def _check_size(path: Path, num_bytes: int, most_bytes: int | None) -> None:
    """That a file unpacks to so many bytes at most, and to no more than text does."""
    possible = max(SMALL_BYTES, MOST_RATIO * path.stat().st_size)
    if num_bytes > min(possible, most_bytes or possible):
        unpacked = f"{num_bytes:,} bytes of text from {path.stat().st_size:,}"
        raise NoTextError(f"must unpack to at most {most_bytes or possible:,} bytes, as text does; got {unpacked}")


def _main(paths: Sequence[str]) -> None:
    """Prints a line of JSON for each file: its rows, or what it must be; a stream has null behind its rows."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY if most < 0 else min(MOST_MEMORY, most), most))
    stream, paths = paths[0] == "--stream", paths[paths[0] == "--stream" :]
    for path in paths:
        try:
            if stream:
                for batch in _checked_batches(Path(path), None):
                    print(json.dumps(batch), flush=True)
            answer = None if stream else read_rows(Path(path))
        except Exception as error:
            answer = str(error).splitlines()[0] if isinstance(error, ValueError) else repr(error)[:300]
        print(json.dumps(answer), flush=True)
        if isinstance(answer, str):
            return


if __name__ == "__main__":
    _main(sys.argv[1:])
