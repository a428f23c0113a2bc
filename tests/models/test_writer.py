"""A saved model that writes, and the command that lets it."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from muse import cli
from muse.data.corpora import load_corpus
from muse.host.exit_codes import FAILED
from muse.models import writer
from muse.models.build import build_model
from muse.models.generate import generate
from muse.models.pretrained import read_pretrained, save_pretrained
from muse.models.weights import MODEL_FILE, save_weights

TOY = Path(__file__).resolve().parents[2] / "notebooks" / "toy" / "stage1_memory"
TRAIN = " = A Title = \n \n the sea is old . the sea is old , <unk> and the (<unk>) sea\n \n café 一 ##a\n"
COMMAND = [sys.executable, "-m", "muse", "generate", str(TOY), "the old sea"]


def tiny(vocab_size, **sizes):
    return build_model("stage1_memory", **{"vocab_size": vocab_size, "d_model": 16, "n_layers": 1, "n_seq": 16} | sizes)


@pytest.fixture
def words(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("train", "validation", "test"):
        (folder / f"{name}.txt").write_text(TRAIN, encoding="utf-8")
    return load_corpus(str(folder), "corpus", cache_dir=tmp_path / "cache")


def test_it_writes_what_generate_draws(words, tmp_path):
    folder = save_pretrained(tiny(words.vocab_size), tmp_path / "model", tokenizer=words)
    made = writer.Writer(folder)
    ids = words.encode("the sea is\n")
    drawn = [int(token) for token in generate(read_pretrained(folder)[0], torch.tensor([ids]), 40, seed=3)]
    pieces = list(made.written("the sea is\n", 40, seed=3))
    assert len(pieces) == 40
    assert words.decode(ids) + "".join(pieces) == words.decode([*ids, *drawn])


def test_a_sign_is_shown_once_all_of_its_bytes_are_there():
    data = "a café, 一二 \U0001f600!".encode()
    made = object.__new__(writer.Writer)
    made.tokenizer = SimpleNamespace(decode=lambda ids: bytes(ids).decode("utf-8", "replace"))
    pieces = list(made._pieces(list(data[:3]), iter(data[3:])))
    assert "".join(pieces) == data[3:].decode()
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(made._pieces([65], iter([66, 0xE4]))) == "B\ufffd"  # what stays open is shown at the end
    assert "".join(made._pieces([65], iter([0xE4] * 30 + [66]))) == "\ufffd" * 30 + "B"


def test_a_training_and_its_export_write_the_same(tmp_path, capsys):
    model, checkpoint = tiny(77), tmp_path / "checkpoint"
    checkpoint.mkdir()
    about = {"model_name": "stage1_memory", "model_config": asdict(model.config), "corpus": {"name": "synthetic"}}
    save_weights(checkpoint / MODEL_FILE, model, about)
    (checkpoint / "config.json").write_text("{}")
    assert cli.main(["export", str(checkpoint), str(tmp_path / "model")]) == 0
    capsys.readouterr()
    texts = []
    for folder in ("checkpoint", "model"):
        assert cli.main(["generate", str(tmp_path / folder), "the sea", "--tokens", "30", "--seed", "2"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].endswith("\n")


def test_the_choices_reach_the_draws(capsys):
    def text(*given):
        assert cli.main(["generate", str(TOY), "the old sea", "--tokens", "12", *given]) == 0
        return capsys.readouterr().out

    greedy = text("--temperature", "0")
    assert greedy == text("--top-k", "1") == text("--top-p", "1e-6", "--seed", "5")
    assert text() == text("--seed", "0") != text("--seed", "1")
    assert text("--tokens", "1").strip() == text().split()[0]


def test_a_text_comes_from_the_standard_input(monkeypatch, capsys):
    given = ["--tokens", "9", "--temperature", "0"]
    assert cli.main(["generate", str(TOY), "the old sea", *given]) == 0
    want = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the old sea\r\n")))
    assert cli.main(["generate", str(TOY), "-", *given]) == 0
    assert capsys.readouterr().out == want


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["x", "the", "--tokens", "0"], "--tokens: got 0, expected at least 1"),
        (["x", "the", "--seed", "-1"], "--seed"),
        (["x", "the", "--temperature", "-1"], "temperature"),
        (["x", "the", "--temperature", "nan"], "temperature"),
        (["x", "the", "--top-k", "0"], "top_k"),
        (["x", "the", "--top-p", "1.5"], "top_p"),
        (["x", ""], "text: got nothing"),
        (["x", "the"], "config.json"),
        (["x", "the", "--tokenizer", "y"], "tokenizer: got 'y', expected gpt2 or a folder"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_read(given, message, tmp_path, monkeypatch, capsys):
    def read(*_):
        raise AssertionError("a model was read")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writer, "read_pretrained", read)
    monkeypatch.setattr(writer, "load_trained", read)
    assert cli.main(["generate", *given]) == 2
    found = capsys.readouterr()
    assert not found.out
    assert found.err.count("\n") == 1
    assert message in found.err


@pytest.mark.parametrize(("model", "text", "message"), [
    ("phase2", "the " * 129, "129 tokens, expected 1 to the model's n_seq = 128"),
    ("stage1_memory", "dragon", "dragon"),
])  # fmt: skip
def test_a_text_that_the_model_cannot_read_is_one_line(model, text, message, capsys):
    assert cli.main(["generate", str(TOY.parent / model), text]) == 2
    found = capsys.readouterr().err
    assert message in found
    assert found.count("\n") == 1


def test_a_memory_reads_a_text_of_any_length(capsys):
    """What stands a thousand tokens before the end has faded: the greedy words are those after the end alone."""
    given = ["--temperature", "0", "--tokens", "9"]
    assert cli.main(["generate", str(TOY), "the old sea " * 500, *given]) == 0
    long = capsys.readouterr().out
    assert cli.main(["generate", str(TOY), "the old sea " * 400, *given]) == 0
    assert capsys.readouterr().out == long
    with pytest.raises(ValueError, match="text: got 0 tokens, expected at least 1"):
        writer.Writer(TOY).written("", 9)


def test_a_model_without_a_tokenizer_asks_for_one(tmp_path, capsys):
    folder = save_pretrained(tiny(50), tmp_path / "model")
    assert cli.main(["generate", str(folder), "the"]) == 2
    assert "no tokenizer there, expected --tokenizer" in capsys.readouterr().err


def test_other_bytes_than_utf8_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    assert cli.main(["generate", str(TOY), "-"]) == 2
    assert "expected UTF-8" in capsys.readouterr().err


def started():
    return subprocess.Popen([*COMMAND, "--tokens", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_ctrl_c_keeps_what_was_written(capfdbinary):
    with started() as child:
        start = child.stdout.read(40)
        child.send_signal(signal.SIGINT)
        rest, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors == b"muse: interrupted\n"
    assert cli.main([*COMMAND[3:], "--tokens", "40"]) == 0
    whole = capfdbinary.readouterr().out
    assert (start + rest)[:40] == whole[:40]


def test_a_reader_who_left_ends_it_without_a_traceback():
    with started() as child:
        child.stdout.read(20)
        child.stdout.close()
        errors = child.stderr.read()
        assert child.wait(60) == FAILED
    assert b"Traceback" not in errors
    assert b"the output could not be written" in errors
