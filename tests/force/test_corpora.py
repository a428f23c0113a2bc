"""A slice of the trials by force on corpora and tokenizers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")
from force import corpora

ROOT = Path(__file__).resolve().parents[2]


def test_a_slice_of_the_trials_finds_nothing(capsys):
    found = corpora.run(trials=120, seed=3, most_seconds=8)
    assert not any(found["faults"].values()), capsys.readouterr().err
    assert found["trials"] >= 5


def test_the_trials_count_what_goes_wrong(tmp_path, monkeypatch):
    """Each kind of fault is seen where the loader has it."""
    bench = corpora.Bench(tmp_path, seed=0)
    (tmp_path / "c").mkdir()
    corpora.plain(bench.draw, tmp_path / "c", "a b\n")
    expected = bench.bpe.encode("a b\n").ids
    judge = lambda ids, damaged: bench.judge(tmp_path / "c", bench.base, ids, damaged, False)  # noqa: E731
    assert judge(expected, False) is None
    assert judge(expected, True)[0] == "accepted"
    assert judge([*expected, 1], False)[0] == "changed"
    (tmp_path / "c" / "test.txt").unlink()
    assert judge(expected, True) is None
    assert judge(expected, False)[0] == "refused"
    errors = {KeyError("x"): "traceback", ValueError("of no file"): "traceback", corpora.Hang(): "hang"}
    for error, kind in errors.items():

        def fails(*_, error=error, **__):
            raise error

        monkeypatch.setattr(corpora, "load_corpus", fails)
        assert judge(expected, True)[0] == kind


def test_the_last_line_is_json():
    command = [sys.executable, "-m", "tests.force.corpora", "--trials", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    found = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, found["script"], found["trials"]) == (0, "corpora", 2)
    assert list(found) == ["script", "trials", "faults", "seconds"]
