"""What cannot be printed: no work ends by it, and an exit code tells of it only where output is the product."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys

import pytest

from muse.host.output import Kept, kept_output

COMMAND = """
import sys
from pathlib import Path
from muse import cli
from muse.host.progress import track
from muse.runner import rows

def work(settings, **options):
    "Stands for a run that prints in each of the ways there are, and writes a file last."
    import logging, warnings
    for step in track(range(3), "steps"):
        print("out", step, flush=True)
        print("x" * 100_000)
    logging.getLogger("a").warning("logged")
    warnings.warn("warned")
    print("err", file=sys.stderr)
    Path("done").write_text("")
    return int(settings.seed)

rows.run = work
sys.exit(cli.main(sys.argv[1:]))
"""
SHELL = {
    "closed": "{} >&- 2>&-",
    "out closed": "{} >&-",
    "err closed": "{} 2>&-",
    "all closed": "{} <&- >&- 2>&-",
    "full": "{} >/dev/full 2>/dev/full",
    "out full": "{} >/dev/full",
    "err full": "{} 2>/dev/full",
    "no reader": "({}; echo $? >code) 2>&1 | true; exit $(cat code)",
    "out without a reader": "({}; echo $? >code) | true; exit $(cat code)",
    "ascii": "PYTHONIOENCODING=ascii {}",
}


def in_shell(folder, how, program, *arguments):
    """Run a program with its streams as `how` says; what reaches a stream comes back."""
    words = shlex.join((sys.executable, *program, *arguments))
    return subprocess.run(
        ["bash", "-c", SHELL[how].format(words)], cwd=folder, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


@pytest.mark.parametrize("how", SHELL)
def test_work_goes_on_and_has_its_own_exit_code(tmp_path, how):
    (tmp_path / "p.yaml").write_text("seed: 3\n")
    done = in_shell(tmp_path, how, ["-c", COMMAND], "run", "p.yaml")
    assert (tmp_path / "done").exists(), done.stderr[-2000:]
    assert done.returncode == 3
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("command", [("schema",), ("params", "p.yaml", "train"), ("--help",)])
@pytest.mark.parametrize("how", ["closed", "out closed", "err closed", "out full", "err full", "out without a reader"])
def test_a_product_that_nobody_got_is_no_success(tmp_path, how, command):
    (tmp_path / "p.yaml").write_text("seed: 3\n")
    done = in_shell(tmp_path, how, ["-m", "muse"], *command)
    assert done.returncode == (0 if how.startswith("err") else 4)
    if how.startswith("out"):
        (line,) = done.stderr.splitlines()
        assert line.startswith("muse: the output could not be written: ")
    if how.startswith("err"):
        assert len(done.stdout) > 500


def test_a_closed_stream_is_no_number_for_a_file(tmp_path):
    """A library that writes to standard error would write into the first file that was opened."""
    program = """
import os
from muse.host.output import kept_output
with kept_output(), open("data", "w") as file:
    os.write(2, b"from a library")
    assert file.fileno() > 2
"""
    assert in_shell(tmp_path, "all closed", ["-c", program]).returncode == 0
    assert (tmp_path / "data").read_text() == ""


def test_what_an_encoding_lacks_is_written_as_an_escape_and_noted():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    kept = Kept(stream)
    assert print("a 複素数", file=kept) is None
    kept.flush()
    assert stream.buffer.getvalue() == b"a \\u8907\\u7d20\\u6570\n"
    assert isinstance(kept.error, UnicodeEncodeError)


def test_a_disk_with_room_again_gets_what_comes_then(tmp_path):
    class Full(io.StringIO):
        full = True

        def write(self, text):
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Full()
    kept = Kept(stream)
    kept.writelines(["lost", "as well"])
    stream.full = False
    kept.write("there")
    assert stream.getvalue() == "there"
    assert kept.error.errno == 28


def test_the_callers_streams_come_back():
    before = sys.stdout, sys.stderr
    with kept_output() as output:
        assert sys.stdout is output is not before[0]
        assert output.isatty() == before[0].isatty()
    assert (sys.stdout, sys.stderr) == before
