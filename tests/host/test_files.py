"""Files written whole or not at all, and folders that one process holds."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muse.host.files import LOCK_FILE, FolderInUseError, locked, replacing, write_atomic

HOLD = """
import sys, time
from pathlib import Path
from muse.host.files import locked
with locked(Path(sys.argv[1])):
    Path(sys.argv[1], ".half.1.tmp").write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""
WRITE = """
import sys
from pathlib import Path
from muse.host.files import write_atomic
for i in range(10**9):
    write_atomic(Path(sys.argv[1]), str(i % 10) * 300_000, durable=False)
    print(i, flush=True)
"""


def test_a_text_is_written_into_folders_that_are_made(tmp_path):
    write_atomic(tmp_path / "a" / "b.txt", "text ü")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "text ü"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_after_any_error_the_old_file_is_there_and_nothing_else(tmp_path, error, durable):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with replacing(path, durable=durable) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"file": "old"}


def test_a_full_disk_leaves_no_temporary_file(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomic(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "file", "new")
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"file": "old"}


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file"
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.02)
        process.kill()
        process.communicate()
        text = path.read_text()
        assert len(text) == 300_000
        assert len(set(text)) == 1


def test_a_folder_has_one_holder_and_a_killed_one_lets_go(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(FolderInUseError), locked(tmp_path):
        raise AssertionError("two hold it")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / ".half.1.tmp").exists()
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_a_lock_that_is_not_kept_goes_with_the_block(tmp_path):
    with locked(tmp_path, keep=False):
        assert (tmp_path / LOCK_FILE).exists()
        with pytest.raises(FolderInUseError), locked(tmp_path):
            raise AssertionError("two hold it")
    assert list(Path(tmp_path).iterdir()) == []
    with locked(tmp_path):
        pass
