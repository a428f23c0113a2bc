"""Files are whole or not there, and a folder is one process's alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from muse.data import corpora
from muse.host.files import LOCK, FolderInUseError, hold, remove_unfinished, replaced, write_atomic
from muse.models import weights
from muse.params import ParamsError
from muse.runner.folder import fresh_folder
from muse.training import checkpoint

WRITES = """
import sys
from pathlib import Path
import torch
from muse.models import weights
from muse.host.files import write_atomic
path, tensors = Path(sys.argv[1]), [{"x": torch.full((500_000,), float(i))} for i in range(2)]
print("ready", flush=True)
for i in range(10**6):
    if path.suffix == ".txt":
        write_atomic(path, str(i % 2) * 2_000_000)
    else:
        weights.write_tensors(path, tensors[i % 2], {"format": "f"})
"""


@pytest.mark.parametrize("name", ["x.txt", "x.safetensors"])
def test_a_kill_in_the_middle_of_a_write_leaves_a_whole_file_and_nothing_after_the_next_lock(tmp_path, name):
    """Killed once a temporary file was seen, as often as it takes to leave one behind."""
    path, left = tmp_path / name, []
    for _ in range(30):
        with subprocess.Popen([sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            while not (path.exists() and any(p != path for p in tmp_path.rglob("*"))):
                assert process.poll() is None
            process.kill()
        if name == "x.txt":
            assert path.read_text() in ("0" * 2_000_000, "1" * 2_000_000)
        else:
            values = weights.read_tensors(path, "f")[0]["x"]
            assert values.shape == (500_000,)
            assert (values == values[0]).all()
        if left := [p for p in tmp_path.iterdir() if p != path]:
            break
    assert left
    with checkpoint.training_folder(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [LOCK, name]


WRITERS = {
    "text": lambda path: write_atomic(path, "x" * 2**20),
    "tensors": lambda path: weights.write_tensors(path, {"x": torch.ones(2**18)}, {"format": "f"}),
}


@pytest.fixture
def full_disk(tmp_path):
    """A folder with room for less than half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.name == "nt" or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_leaves_the_old_file_alone(full_disk, what):
    path = full_disk / "old"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left") as error:
        WRITERS[what](path)
    assert str(path) in str(error.value)
    assert [p.name for p in full_disk.iterdir()] == ["old"]
    assert path.read_text() == "old"


def test_a_full_disk_leaves_no_cache_and_a_warning(full_disk):
    with pytest.warns(UserWarning, match="were not cached"):
        corpora._write_cache(full_disk / "cache" / "a.npz", np.zeros(2**18, np.int32), np.zeros(1, np.int64))
    assert list((full_disk / "cache").iterdir()) == []


@pytest.mark.parametrize("broken", ["write", "fsync", "replace", "interrupt"])
def test_whatever_breaks_a_write_leaves_the_old_file_alone(tmp_path, monkeypatch, broken):
    path = tmp_path / "x"
    write_atomic(path, "old")

    def fail(*_):
        raise KeyboardInterrupt if broken == "interrupt" else OSError(28, "No space left on device")

    target = {"fsync": (os, "fsync"), "replace": (Path, "replace")}.get(broken)
    with monkeypatch.context() as patch:
        if target:
            patch.setattr(*target, fail)
        with pytest.raises(KeyboardInterrupt if broken == "interrupt" else OSError), replaced(path) as new:  # noqa: PT012
            new.write_text("ne")
            if not target:
                fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_is_written_lasts_and_may_be_read_as_umask_says(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(os.readlink(f"/proc/self/fd/{handle}"))))
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "new" / "a.txt", "ä")
        weights.write_tensors(tmp_path / "new" / "b", {"x": torch.ones(1)}, {"format": "f"})
        assert [path.name for path in synced] == ["a.txt", "new", "b", "new"]
        write_atomic(tmp_path / "new" / "c.txt", "", durable=False)
    finally:
        os.umask(before)
    assert len(synced) == 4
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"\xc3\xa4"
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {
        "a.txt": 0o640, "b": 0o640, "c.txt": 0o640,
    }  # fmt: skip


def test_the_longest_name_can_be_written(tmp_path):
    write_atomic(tmp_path / ("n" * 255), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 255]


HOLDS = """
import sys
from pathlib import Path
from muse.host.files import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_a_folder_has_one_holder_and_a_dead_one_lets_go(tmp_path, how):
    folder = tmp_path / "new" / "folder"
    with holder(folder) as first:
        assert first.stdout.readline() == "held\n"
        with holder(folder) as second:
            assert "FolderInUseError" in second.communicate()[1]
        takes = (checkpoint.training_folder, fresh_folder)
        of_training, of_run = (lambda path, take=take: take(path).__enter__() for take in takes)
        for taken in (hold, of_training, of_run):
            with pytest.raises((FolderInUseError, weights.CheckpointError, ParamsError), match=r"in use|another"):
                taken(folder)
        first.kill() if how == "killed" else first.stdin.close()
        first.wait()
    for _ in range(2):
        with hold(folder), pytest.raises(FolderInUseError):  # not even the same process twice
            hold(folder)


def test_a_lock_in_a_folder_that_moves_meanwhile_is_none(tmp_path, monkeypatch):
    """Else two runs hold the folder: one its lock, the other that of the folder that was moved aside."""
    folder, opened = tmp_path / "out", os.open

    def moved(path, *arguments, **more):
        handle = opened(path, *arguments, **more)
        if str(path) == str(folder / ".lock") and not (tmp_path / "aside").exists():
            folder.rename(tmp_path / "aside")
            folder.mkdir()
            (folder / ".lock").touch()
        return handle

    monkeypatch.setattr(os, "open", moved)
    with pytest.raises(FolderInUseError):
        hold(folder)
    assert (tmp_path / "aside").exists()
    with hold(folder):  # and nothing is left held
        pass


RACES = """
import sys, time
from pathlib import Path
from muse.runner.folder import fresh_folder
from muse.params import ParamsError
folder, mark = Path(sys.argv[1]), Path(sys.argv[2])
wins = 0
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + 100
while wins < 12:
    assert time.monotonic() < end, "no run can have it any more"
    try:
        with fresh_folder(folder):
            mark.mkdir()  # fails where another holder is
            assert sorted(p.name for p in folder.iterdir()) == [".lock", "logs", "notebooks", "pages", "records"]
            (folder / "run.json").write_text("{}")
            (folder / "report.json").write_text("{}")
            mark.rmdir()
            wins += 1
    except ParamsError:
        time.sleep(0.002)  # a racer that spins takes the time of the one that could finish
"""


def test_runs_that_race_for_a_folder_never_both_have_it(tmp_path):
    """Neither the removal of the lock's file nor the move of the folder makes room for a second holder."""
    command = [sys.executable, "-c", RACES, str(tmp_path / "out"), str(tmp_path / "mark")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for racer in racers:
        racer.stdout.readline()
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    errors = [racer.communicate(timeout=120)[1] for racer in racers]
    assert errors == [""] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.previous"]


def test_a_run_that_was_faster_while_the_folder_moved_keeps_it(tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []

    def slow(folder):
        calls.append(folder)
        if len(calls) == 2:
            write_atomic(folder / "run.json", "of the faster one")
        return hold(folder)

    with fresh_folder(out):
        (out / "run.json").write_text("first")
        (out / "report.json").write_text("{}")
    monkeypatch.setattr("muse.runner.folder.hold", slow)
    with pytest.raises(ParamsError, match="another run"), fresh_folder(out):
        pass
    assert [p.name for p in out.iterdir() if p.is_dir()] == []
    assert (out / "run.json").read_text() == "of the faster one"
    assert (tmp_path / "out.previous" / "run.json").read_text() == "first"
    with hold(out):
        pass


def test_only_what_was_not_finished_is_removed(tmp_path):
    for name in (".state.safetensors.123.tmp", "a.tmp", ".hidden"):
        (tmp_path / name).write_text("")
    (tmp_path / ".0a.tmp").mkdir()
    (tmp_path / ".0a.tmp" / "state.safetensors").write_text("")
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.tmp"]
