"""A slice of the trials by force on params files; all of them: python -m tests.force.params."""

from __future__ import annotations

import time

import pytest
from force import params as forced


@pytest.mark.timeout(60)
def test_generated_params_files_are_taken_or_refused_as_they_should_be():
    shown = []
    found = forced.force(60, 0, seed=0, show=shown.append)
    assert sum(found["faults"].values()) == 0, shown
    assert set(found) == {"script", "trials", "faults", "seconds"}


@pytest.mark.parametrize(
    ("trial", "fault"),
    [
        (("seed: 1\n", [], False), "bad_accepted"),
        (("seed: -1\n", [], True), "good_refused"),
    ],
)
def test_faults_are_counted(tmp_path, trial, fault):
    text, overrides, is_good = trial
    path = tmp_path / "p.yaml"
    path.write_text(text)
    assert forced.read(path, overrides, is_good) == [fault]
    assert forced.judge(["x" * 401, "\x1b"]) == ["long_line", "control_character"]


def test_a_traceback_and_a_hang_are_faults(tmp_path, monkeypatch):
    monkeypatch.setattr(forced, "load_params", lambda *_: {}["no such"])
    assert forced.read(tmp_path, [], False) == ["traceback"]
    monkeypatch.setattr(forced, "load_params", lambda *_: time.sleep(10))
    monkeypatch.setattr(forced, "READ_SECONDS", 0.1)
    assert forced.read(tmp_path, [], False) == ["hang"]
