"""Progress: the bar, the file, and the driver's lines."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest

from muse.host import progress
from muse.host.progress import StageLines, duration, read_progress, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "progress.json"
    monkeypatch.setenv(progress.PROGRESS_FILE_VARIABLE, str(path))
    return path


def test_track_shows_a_plain_bar(monkeypatch, capsys):
    monkeypatch.delenv(progress.PROGRESS_FILE_VARIABLE, raising=False)
    assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
    shown = capsys.readouterr().err
    assert "counting" in shown
    assert "3/3" in shown


def test_track_writes_the_file_and_no_bar(file, capsys):
    seen = []
    for item in track(iter("abcd"), "letters", total=4):
        seen.append((item, read_progress(file)))
    assert [item for item, _ in seen] == list("abcd")
    assert seen[0][1] == ("letters", 0, 4)
    assert json.loads(file.read_text()) == {"step": "letters", "done": 4, "total": 4}
    assert capsys.readouterr().err == ""
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_track_takes_the_total_from_the_length_and_none_without_one(file):
    list(track([1, 2], "known"))
    assert read_progress(file) == ("known", 2, 2)
    list(track(iter([1]), "unknown"))
    assert read_progress(file) == ("unknown", 1, None)


def test_track_writes_at_most_five_times_a_second(file, monkeypatch):
    clock = [0.0]
    written = []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress.json, "dumps", lambda value: written.append(value["done"]) or "{}")
    for _ in track(range(1000), "fast"):
        clock[0] += 0.001  # one second in all
    assert 5 <= len(written) <= 7
    assert written[-1] == 1000


def test_track_counts_only_what_was_finished(file, monkeypatch):
    monkeypatch.setattr(progress, "WRITE_INTERVAL_SECONDS", 0.0)
    tracked = track(range(10), "broken")
    for _ in range(4):
        next(tracked)
    tracked.close()
    assert read_progress(file) == ("broken", 3, 10)


def test_a_file_that_cannot_be_written_does_not_stop_the_work(monkeypatch, tmp_path):
    monkeypatch.setenv(progress.PROGRESS_FILE_VARIABLE, str(tmp_path / "missing" / "progress.json"))
    assert list(track([1, 2], "step")) == [1, 2]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": "x"}', '{"step": "x", "done": "y", "total": 1}'])
def test_a_half_written_file_counts_as_none(tmp_path, text):
    path = tmp_path / "progress.json"
    assert read_progress(path) is None
    path.write_text(text)
    assert read_progress(path) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (12.34, "12.3 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3600, "1 h 00 min"),
        (7380, "2 h 03 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def lines(tmp_path, stream, previous=None):
    return StageLines(["first", "second", "report"], previous or {}, tmp_path / "progress.json", stream)


def test_without_a_terminal_there_is_a_line_at_start_and_end(tmp_path):
    stream = io.StringIO()
    found = lines(tmp_path, stream)
    found.start("second")
    assert stream.getvalue() == "[2/3] second ...\n"
    found.tick()
    found.end("ok")
    start, end = stream.getvalue().splitlines()
    assert end.startswith(start + " ok 0.")
    assert end.endswith(" s")


def test_the_reason_of_a_failure_is_one_line(tmp_path):
    stream = io.StringIO()
    found = lines(tmp_path, stream)
    found.start("first")
    found.end("failed", "ValueError: no\nmore")
    assert stream.getvalue().splitlines()[-1].endswith(" s: ValueError: no")


def test_a_terminal_gets_one_live_line(tmp_path):
    stream = Terminal()
    found = lines(tmp_path, stream)
    found.start("first")
    found.progress_file.write_text(json.dumps({"step": "seed 0", "done": 3, "total": 9}))
    found.tick()
    live = stream.getvalue()
    assert "\n" not in live
    assert "[1/3] first ... seed 0:  33%" in live
    assert " 3/9 [" in live
    found.end("ok")
    assert stream.getvalue().count("\n") == 1
    assert "first ... ok" in stream.getvalue()


def test_the_live_line_tells_what_the_step_and_the_run_still_need(tmp_path, monkeypatch):
    clock, stream = [1000.0], Terminal()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    found = lines(tmp_path, stream, {"first": 10.0, "second": 20.0, "report": 5.0})
    found.progress_file.write_text(json.dumps({"step": "of the stage before", "done": 1, "total": 2}))
    found.start("second")

    def line(step: str, done: int, seconds: float) -> str:
        clock[0] += seconds
        found.progress_file.write_text(json.dumps({"step": step, "done": done, "total": 100}))
        found.tick()
        return stream.getvalue().split("\r")[-1].strip()

    line("seed 0", 10, 0)
    assert line("seed 0", 20, 5).startswith("[2/3] second ... seed 0:  20%|")
    assert "20/100 [00:05<00:40" in stream.getvalue(), "the rate since it was first seen"
    assert "20/100 [00:00<?" in line("seed 1", 20, 1), "another step starts afresh"
    assert "30/100 [00:01<00:07" in line("seed 1", 30, 1)
    assert "1/100 [00:00<?" in line("seed 1", 1, 1), "and so does a repeated one"
    assert "2/100 [00:01<01:38" in line("seed 1", 2, 1)
    assert "run about 16.0 s left" in line("seed 1", 2, 0)
    assert "run about 5.0 s left" in line("seed 1", 2, 100), "a stage that takes longer than last time"
    assert "before" not in stream.getvalue()
    found.end("ok")


def test_the_remaining_time_of_the_run_is_unknown_without_a_previous_one(tmp_path):
    stream = Terminal()
    found = lines(tmp_path, stream, {"second": 20.0})
    found.start("first")
    assert "time left unknown" in stream.getvalue()
    found.end("ok")


def test_a_growing_text_is_printed_once_each_letter(capsys):
    show = progress.growing_text()
    for text in ("a", "a b", "a b <c>"):
        show(text)
    assert capsys.readouterr().out == "a b <c>"


def test_a_growing_text_is_one_output_of_a_notebook(monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda page: shown.append(page.data))
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda page, display_id: handle)
    show = progress.growing_text()
    show("a")
    show("a <c>")
    assert len(shown) == 2
    assert ">a</p>" in shown[0]
    assert ">a &lt;c&gt;</p>" in shown[1]
