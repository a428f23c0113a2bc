"""What names a tokenizer is what it does, not where it lies: so equal data is trained on once, wherever it was read."""

from __future__ import annotations

import shutil
from functools import partial

import pytest

from muse.data.corpora import load_corpus
from muse.models.build import build_model
from muse.training.recipe import Recipe
from muse.training.trainer import train

TEXT = "the cat sat on the mat\nthe dog sat on the cat\n" * 20


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A corpus with a byte-level tokenizer of a few merges beside it."""
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.setenv("MUSE_CACHE_DIR", str(tmp_path / "cache"))
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT], vocab_size=280, show_progress=False, special_tokens=["<|endoftext|>"])
    for name in ("text", "tokenizer"):
        (tmp_path / "here" / name).mkdir(parents=True)
    bpe.save_model(str(tmp_path / "here" / "tokenizer"))
    for split in ("train", "validation", "test"):
        (tmp_path / "here" / "text" / f"{split}.txt").write_text(TEXT)
    return tmp_path / "here"


def read(folder):
    return load_corpus(str(folder / "text"), str(folder / "tokenizer"))


def test_the_same_data_elsewhere_is_found_finished(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "there")
    recipe = Recipe(train_tokens=64, batch_tokens=32, n_seq=8, learning_rate=0.01, evaluations=1)
    build = partial(build_model, "gpt2", vocab_size=read(folder).vocab_size, d_model=8, n_layers=1, n_seq=8)
    first, second = (
        train("gpt2", build, recipe, read(place), tmp_path / "checkpoints") for place in (folder, tmp_path / "there")
    )
    assert (first.reused, second.reused) == (False, True)
    assert second.weights == first.weights


def test_a_vocabulary_is_told_by_its_ids_and_merges(folder):
    own = read(folder).tokenizer_sha256
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 99}')
    assert read(folder).tokenizer_sha256 == own
    merges = (folder / "tokenizer" / "merges.txt").read_text().splitlines()
    (folder / "tokenizer" / "merges.txt").write_text("\n".join([*merges[:-2], merges[-1], merges[-2]]) + "\n")
    other = read(folder).tokenizer_sha256
    words = load_corpus(str(folder / "text"), "corpus").tokenizer_sha256
    assert len({own, other, words, ""}) == 4
