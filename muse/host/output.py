"""What a command prints, so that a reader who left, a closed stream or a full disk stops no work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class Kept:
    """A text stream whose writes never fail: `error` keeps the first thing that could not be written, and why."""

    def __init__(self, stream: TextIO | None) -> None:
        """Take a stream, or None for one that was closed before Python started."""
        self.stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self.error: Exception | None = None if stream else OSError("it is closed")

    def write(self, text: str) -> int:
        """Write what can be written; signs that the stream's encoding lacks become escapes."""
        try:
            return self.stream.write(text)
        except UnicodeEncodeError as error:
            self.error = self.error or error
            encoding = self.stream.encoding
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: closed meanwhile
            self.error = self.error or error
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> bool:
        """Return whether nothing is held back any more."""
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self.error = self.error or error
            return False
        return True

    def release(self) -> None:
        """Write what is still held back, or let go of it: Python's own last flush would end in exit code 120."""
        if not self.flush():
            with suppress(OSError, ValueError), open(os.devnull, "w", encoding="utf-8") as null:
                os.dup2(null.fileno(), self.stream.fileno())
            self.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


@contextmanager
def kept_output() -> Iterator[Kept]:
    """Within the block printing never fails, on either stream; give the standard output."""
    open_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = kept = tuple(map(Kept, before))
    try:
        yield kept[0]
    finally:
        for stream in kept:
            stream.release()
        sys.stdout, sys.stderr = before


def open_descriptors() -> None:
    """Open the null device in place of the standard streams that are closed: the next file would get their number.

    What a library then writes to "standard error" would land in that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
            os.set_inheritable(number, True)
