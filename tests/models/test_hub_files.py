"""A tokenizer's files beside a model: transformers makes of a text what the corpus made of it, and back."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from muse import cli
from muse.data import tokenizers
from muse.data.corpora import load_corpus
from muse.data.grammar import Grammar
from muse.models import weights
from muse.models.build import build_model
from muse.models.generate import generate
from muse.models.hub_files import TOKENIZER_FILES, saved_tokenizer, tokenizer_files
from muse.models.pretrained import check_ours, export_checkpoint, from_pretrained, read_pretrained, save_pretrained

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")  # another project's warnings are not ours to refuse

TRAIN = (
    " = A Title = \n \n the sea is old . the sea is old , <unk> and the (<unk>) sea\n \n"
    " x<unk>y caf\u00e9 \u4e00 l'ann\u00e9e ##a\n"
)
TEXTS = {
    "test": (
        " \n = A Title = \n \n the  old\tsea is <unk> (<unk>) un<unk>known .\n\n\n"
        "   ##a sea caf\u00e9\u00a0\u4e00\u3000old\x1cis\x85the"
    ),
    "validation": "the sea\r\nis old\r\r\ufeffthe sea \ufeff old <unk>\n\ufeff\ufeffis\u2028old",
    "train": TRAIN,
}


@pytest.fixture
def words(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    return load_corpus(str(folder), "corpus", cache_dir=tmp_path / "cache")


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """A folder with a tokenizer of a few merges."""
    import tokenizers as library

    folder = tmp_path_factory.mktemp("bpe")
    made = library.ByteLevelBPETokenizer()
    made.train_from_iterator([TRAIN] * 5, vocab_size=300, show_progress=False, special_tokens=["<|endoftext|>"])
    made.save_model(str(folder))
    return folder


def tiny(vocab_size, name="stage1_memory"):
    return build_model(name, vocab_size=vocab_size, d_model=16, n_layers=1, n_seq=16).eval()


def checkpoint(folder, corpus, vocab_size):
    """A finished training's folder as far as an export reads it."""
    model = tiny(vocab_size)
    about = {"model_name": "stage1_memory", "model_config": asdict(model.config), "corpus": corpus}
    folder.mkdir()
    weights.save_weights(folder / "model.safetensors", model, about)
    return folder


def test_words_become_the_ids_of_the_corpus_and_back(words, tmp_path):
    folder = save_pretrained(tiny(words.vocab_size), tmp_path / "model", tokenizer=words)
    found = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(found) == words.vocab_size
    for name, text in TEXTS.items():
        ids = words.splits[name].ids.tolist()
        assert found(text)["input_ids"] == ids
        assert found.decode(ids) == words.decode(ids)
        assert found.decode(ids, skip_special_tokens=True) == words.decode(ids)
    assert 0 in words.splits["test"].ids
    every = list(range(words.vocab_size))
    assert found.decode(every) == words.decode(every)


def test_symbols_of_the_synthetic_language_too(tmp_path):
    corpus = load_corpus("synthetic", "corpus", splits=["test"], synthetic_tokens={"test": 3000})
    folder = save_pretrained(tiny(corpus.vocab_size), tmp_path / "model", tokenizer=corpus)
    found, ids = transformers.AutoTokenizer.from_pretrained(folder), corpus.splits["test"].ids.tolist()
    assert found.decode(ids) == corpus.decode(ids)
    assert found(corpus.decode(ids))["input_ids"] == ids
    with pytest.raises(ValueError, match=r"tokenizer\.json: cannot read a text with other words than its own"):
        saved_tokenizer(folder).encode(["the elephant"])
    assert found.get_vocab() == {symbol: index for index, symbol in enumerate(Grammar().symbols)}


@pytest.mark.parametrize("whole", [False, True])
def test_files_of_gpt2_go_along_as_they_are(bpe, tmp_path, whole):
    if whole:
        transformers.GPT2TokenizerFast.from_pretrained(str(bpe)).save_pretrained(str(tmp_path / "whole"))
        bpe = tmp_path / "whole"
    folder = save_pretrained(tiny(300), tmp_path / "model", tokenizer=bpe)
    there = [name for name in TOKENIZER_FILES if (bpe / name).exists()]
    assert len(there) >= 2
    for name in set(there) - {"tokenizer_config.json"}:
        assert (folder / name).read_bytes() == (bpe / name).read_bytes()
    found, own = transformers.AutoTokenizer.from_pretrained(folder), tokenizers.gpt2_tokenizer(str(bpe))
    for text in TEXTS.values():
        assert found(text)["input_ids"] == own.encode([text])[0].tolist()
        assert found.decode(found(text)["input_ids"]) == text


def test_the_tokenizer_of_a_folder_is_that_of_its_files(words, bpe, tmp_path):
    for tokenizer, name in ((words, "words"), (bpe, "bpe")):
        folder = save_pretrained(tiny(300), tmp_path / name, tokenizer=tokenizer)
        assert saved_tokenizer(folder).vocabulary_sha256 == tokenizer_files(tokenizer).vocabulary_sha256
    found = saved_tokenizer(tmp_path / "words")
    lines = TEXTS["train"].splitlines(keepends=True)
    ids, lengths = found.encode(lines)
    assert ids.tolist() == words.splits["train"].ids.tolist()
    assert lengths.sum() == len(ids)
    assert found.decode(ids.tolist()) == words.decode(ids.tolist())
    assert saved_tokenizer(save_pretrained(tiny(300), tmp_path / "none")) is None


def test_another_tokenizer_than_the_trainings_is_not_written_along(words, tmp_path):
    known = {"corpus": {"tokenizer": "theirs", "tokenizer_sha256": words.tokenizer_sha256}}
    save_pretrained(tiny(50), tmp_path / "model", known, tokenizer=words)
    with pytest.raises(ValueError, match=r"tokenizer corpus: got the vocabulary .*\(theirs\)"):
        save_pretrained(tiny(50), tmp_path / "other", known | {}, tokenizer=tokenizer_files("corpus", "synthetic"))
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="tokenizer 'corpus': got no corpus"):
        tokenizer_files("corpus")


def test_a_folder_is_written_again_with_its_tokenizer_or_without(words, tmp_path):
    folder = save_pretrained(tiny(50), tmp_path / "model", tokenizer=words)
    assert (folder / "tokenizer.json").exists()
    assert read_pretrained(folder)[1]["verified"]
    save_pretrained(tiny(50), folder)
    assert not (folder / "tokenizer.json").exists()
    assert sorted(json.loads((folder / "config.json").read_text())["files"]) == ["modeling_muse.py"]
    (save_pretrained(tiny(50), folder, tokenizer=words) / "config.json").unlink()
    check_ours(folder)  # what was killed


def test_an_export_takes_the_tokenizer_it_is_told_and_symbols_by_itself(words, bpe, tmp_path, capsys):
    vocabulary = len(Grammar().symbols)
    symbols = checkpoint(tmp_path / "symbols", {"name": "synthetic", "tokenizer": "corpus"}, vocabulary)
    export_checkpoint(symbols, tmp_path / "a")
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "a")) == vocabulary
    told = checkpoint(tmp_path / "told", {"name": "texts", "tokenizer_sha256": words.tokenizer_sha256}, 50)
    given = ["--tokenizer", "corpus", "--corpus", str(tmp_path / "texts")]
    assert cli.main(["export", str(told), str(tmp_path / "b"), *given]) == 0
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "b")) == words.vocab_size
    assert cli.main(["export", str(told), str(tmp_path / "c"), "--tokenizer", str(bpe)]) == 2
    assert "with which the model was trained" in capsys.readouterr().err
    assert cli.main(["export", str(told), str(tmp_path / "d")]) == 0
    assert not (tmp_path / "d" / "tokenizer.json").exists()


def test_the_pipeline_writes_what_muse_writes(words, tmp_path):
    import muse.hub  # noqa: F401 - the Auto classes know the model from then on

    folder = save_pretrained(tiny(words.vocab_size), tmp_path / "model", tokenizer=words)
    pipe = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    (found,) = pipe("the sea is", max_new_tokens=20, do_sample=False)
    prompt = torch.tensor([pipe.tokenizer("the sea is")["input_ids"]])
    new = [int(token) for token in generate(from_pretrained(folder), prompt, 20, temperature=0)]
    assert found["generated_text"] == "the sea is" + words.decode(new)  # it decodes what is new alone
