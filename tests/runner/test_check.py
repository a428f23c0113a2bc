"""The one check before a start: what it refuses, all at once, and what it leaves alone."""

from __future__ import annotations

import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from muse import cli
from muse.models.build import build_model
from muse.params import Settings
from muse.runner import check
from muse.stages import check as packages
from muse.stages.check import examine

TINY = {"train_d_model": 8, "train_n_layers": 1, "train_n_seq": 16, "batch_tokens": [128], "train_tokens": 256}
TRAINING = ["train", "perplexity"]


def problems(stages, **settings):
    return examine(Settings(**settings), stages).problems


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("train", "validation", "test"):
        (folder / f"{name}.txt").write_text(" ".join(f"word{i}" for i in range(40)) + "\n")
    return folder


def test_good_settings_have_no_problem():
    found = examine(Settings(**TINY), ["train", "perplexity", "memory", "throughput", "gradients_stability"])
    assert found.problems == []
    assert found.num_bytes > 0


def test_sizes_that_a_model_cannot_have_are_named_per_model():
    found = problems(["memory"], d_model=514, models=["phase2", "gpt2", "stage1_memory"])
    assert [line.split(":")[1].strip() for line in found] == ["phase2", "gpt2"]
    assert all("multiple of n_heads, got 514 and 8" in line for line in found)
    assert "phase2 to train: d_model must be a multiple" in problems(TRAINING, **TINY | {"train_d_model": 514})[0]
    assert problems(["perplexity"], d_model=514) == [], "models that no stage builds are not asked"
    assert problems(["memory"], d_model=514, models=["phase2", "stage1"], skip_phase2=True) == []
    assert "zeta" in problems(["basic_test"], d_model=4096)[0]


def test_sequences_longer_than_the_corpus_are_refused(corpus, tmp_path):
    own = {"corpus": str(corpus), "cache_dir": str(tmp_path / "cache")}
    long = TINY | {"train_n_seq": 41, "batch_tokens": [64]} | own
    assert problems(TRAINING, **long) == ["train_n_seq: got 41, expected less than the 41 tokens of the training split"]
    assert problems(TRAINING, **long | {"train_n_seq": 40}) == []
    assert "400,000 tokens" in problems(TRAINING, **TINY | {"train_n_seq": 2**19, "batch_tokens": [2**19]})[0]


def test_a_vocabulary_below_the_ids_is_refused(corpus, tmp_path):
    own = {"corpus": str(corpus), "cache_dir": str(tmp_path / "cache"), "vocab_size": 7}
    (line,) = problems(["perplexity"], **own)
    assert line.startswith("vocab_size: got 7, expected at least the corpus's 4")
    assert problems(TRAINING, **own | TINY) == [], "what is trained has the vocabulary of the corpus"
    assert problems(["memory"], **own) == []


def test_corpus_and_tokenizer_are_both_refused_at_once(corpus, tmp_path):
    (corpus / "test.txt").unlink()
    (tmp_path / "tokenizer").mkdir()
    found = problems(["perplexity"], corpus=str(corpus), tokenizer=str(tmp_path / "tokenizer"))
    assert len(found) == 2
    assert "test.txt" in found[0]
    assert "vocab.json" in found[1]
    assert problems(["memory"], corpus=str(corpus)) == [], "a corpus that no stage reads is not asked"
    assert "symbols of its own" in problems(["train"], tokenizer="gpt2", **TINY)[0]


def test_whatever_a_reader_says_is_one_line(monkeypatch):
    def broken(*_, **__):
        raise OverflowError("two\nlines \x1b[2J")

    monkeypatch.setattr(packages, "load_corpus", broken)
    (line,) = problems(["perplexity"])
    assert line == "corpus, tokenizer: OverflowError: two lines \\x1b[2J"


@pytest.mark.parametrize("name", ["stage1", "stage1_memory", "phase2", "real_twin", "stage1_compact"])
def test_numbers_of_a_model_are_counted_from_tiny_ones(name):
    sizes = {"vocab_size": 50, "d_model": 16, "n_layers": 3, "n_seq": 12}
    assert packages._numbers(name, sizes) == sum(p.numel() for p in build_model(name, **sizes).parameters())


def test_places_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "x")
    assert check.place_problem(tmp_path / "new" / "folder") == ""
    long = tmp_path / ("x" * 999)
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "dangling", Path("/"), long):
        assert check.place_problem(path), path
    for path in (tmp_path, tmp_path / "file" / "x.json", long):
        assert check.file_problem(path), path
    assert check.file_problem(tmp_path / "x.json") == ""
    assert check.place_problem(Path("/proc/x/y"))


def test_a_disk_that_is_too_small_is_refused(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(0, 0, 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    settings = Settings(checkpoint_dir=str(tmp_path / "checkpoints"))
    (line,) = check.disk_problems(settings, tmp_path / "out", 2**31)
    assert line == "checkpoint_dir: got 1.00 GiB free on its disk, expected 2.00 GiB for what will be written"
    assert check.disk_problems(settings, tmp_path / "out", 2**29) == []


def test_everything_wrong_is_said_at_once_and_nothing_is_started(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text("models: [phase2]\nd_model: 514\nstages: [memory]\n")
    (tmp_path / "file").write_text("x")
    wrong = ["-p", "corpus=wikitext", "-p", "cache_dir=~nosuchuser7/x", "-p", f"results_dir={'x' * 999}"]
    wrong += ["-p", "checkpoint_dir=file/below", "--out", "file"]
    for command in ("check", "run"):
        assert cli.main([command, "p.yaml", *wrong]) == 2
        shown = capsys.readouterr()
        lines = shown.err.splitlines()
        assert shown.out == ""
        assert all(len(line) <= 310 for line in lines)
        for word in ("did you mean wikitext-2?", *(f"{name}_dir: got" for name in ("cache", "results", "checkpoint"))):
            assert sum(word in line for line in lines) == 1, (word, lines)
        assert "--out: got" in shown.err
        assert "models: phase2: d_model must be a multiple" in shown.err
    assert {path.name for path in tmp_path.iterdir()} == {"p.yaml", "file"}


def test_a_check_without_a_problem_says_so_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text("stages: [memory]\n")
    assert cli.main(["check", "p.yaml"]) == 0
    assert capsys.readouterr().out == "p.yaml: no problem found; stages: memory\n"
    assert [path.name for path in tmp_path.iterdir()] == ["p.yaml"]


@pytest.mark.parametrize("out", ["/", "file", "file/below"])
def test_places_of_other_commands_are_checked_too(tmp_path, capsys, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text("train_tokens: 256\ndevice: cpu\n")
    (tmp_path / "file").write_text("x")
    below = "file/x.json" if out == "file" else out
    assert cli.main(["train", "p.yaml", "--json", below]) == 2
    assert "--json: got" in capsys.readouterr().err
    assert cli.main(["bench", "p.yaml", "--out", out]) == 2
    assert "--out: got" in capsys.readouterr().err
    assert cli.main(["check", "p.yaml", "-p", "stages=[memory]", "--out", out]) == 2
    assert "--out: got" in capsys.readouterr().err


def test_a_check_that_dies_is_no_fault_of_the_parameters(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check, "MODULE", "muse.no_such_module")
    (tmp_path / "p.yaml").write_text("stages: [memory]\n")
    assert cli.main(["check", str(tmp_path / "p.yaml")]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("muse: the check before the start failed, nothing was started: ")
    assert "no_such_module" in line
    assert "torch" in sys.modules
