"""Cuts text into ids of a byte-level tokenizer, in a process of its own; run as a script, it imports nothing of ours.

It reads frames of text and writes, for each, a frame of ids and one of the tokens of each line, all int32; a frame is
the number of its bytes, eight of them, and the bytes. It ends where its input does, so no killed parent leaves one.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np


def write_frame(file: BinaryIO, content: bytes) -> None:
    file.write(struct.pack("<q", len(content)))
    file.write(content)
    file.flush()


def read_frame(file: BinaryIO) -> bytes | None:
    """The next frame; None at the end of the file, also where it ends within a frame."""
    head = file.read(8)
    if len(head) < 8:
        return None
    (size,) = struct.unpack("<q", head)
    content = file.read(size)
    return content if len(content) == size else None


class Encoder:
    """A process with the tokenizer that a tokenizer.json defines; for one thread at a time."""

    def __init__(self, definition: bytes) -> None:
        command = [sys.executable, "-P", __file__]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        write_frame(self.process.stdin, definition)

    def __call__(self, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """int32 ids (tokens,) and int64 tokens per line (lines,); ChildProcessError where the process is gone."""
        try:
            write_frame(self.process.stdin, json.dumps(lines).encode())
            ids, lengths = (read_frame(self.process.stdout) for _ in range(2))
        except BrokenPipeError:
            ids = lengths = None
        if ids is None or lengths is None:
            raise ChildProcessError(f"a process that tokenizes ended with {self.process.wait()}")
        return np.frombuffer(ids, "<i4"), np.frombuffer(lengths, "<i4").astype(np.int64)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def _main() -> None:
    from tokenizers import Tokenizer

    given, answers = sys.stdin.buffer, sys.stdout.buffer
    tokenizer = Tokenizer.from_str(read_frame(given).decode())
    while (content := read_frame(given)) is not None:
        rows = [row.ids for row in tokenizer.encode_batch_fast(json.loads(content), add_special_tokens=False)]
        write_frame(answers, np.array([index for row in rows for index in row], "<i4").tobytes())
        write_frame(answers, np.array([len(row) for row in rows], "<i4").tobytes())


if __name__ == "__main__":
    sys.path = [path for path in sys.path if path != str(Path(__file__).parent)]  # text.py there is no library's
    _main()
