"""A tokenizer's files: one tokenizer in three forms, and each kind of damage in one line with the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from muse.data.tokenizer_files import byte_symbols
from muse.data.tokenizers import gpt2_tokenizer

tokenizers = pytest.importorskip("tokenizers")
END = "<|endoftext|>"
TEXT = " the café stood by the sea \n \n <unk> it was , and it 's 10 😀\tend\n"
WHOLE = ("tokenizer.json", "tokenizer_config.json")
PAIR = ("vocab.json", "merges.txt")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A byte-level BPE as vocab.json and merges.txt, and as transformers saves it."""
    from transformers import GPT2TokenizerFast

    folder = tmp_path_factory.mktemp("bpe")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT] * 5, vocab_size=280, show_progress=False, special_tokens=[END])
    bpe.save_model(str(folder))
    GPT2TokenizerFast.from_pretrained(str(folder)).save_pretrained(str(folder / "saved"))
    for name in WHOLE:
        shutil.copy(folder / "saved" / name, folder / name)
    return folder


@pytest.fixture
def copy(base, tmp_path) -> Callable[..., Path]:
    def made(*names: str) -> Path:
        for name in names:
            shutil.copy(base / name, tmp_path / name)
        return tmp_path

    return made


def ids(folder: Path) -> list[int]:
    return gpt2_tokenizer(str(folder)).encode(TEXT.splitlines(keepends=True))[0].tolist()


def refused(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as found:
        gpt2_tokenizer(str(folder))
    assert str(folder) in str(found.value)
    assert len(str(found.value)) < 600
    return str(found.value).replace(f"{folder}/", "")


def test_the_symbols_of_bytes_are_the_librarys():
    assert byte_symbols() == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize("names", [PAIR, WHOLE[:1], WHOLE, PAIR + WHOLE, ("tokenizer.json", "merges.txt")])
def test_each_form_gives_the_same_ids(base, copy, names):
    bpe = tokenizers.ByteLevelBPETokenizer.from_file(str(base / "vocab.json"), str(base / "merges.txt"))
    expected = [index for line in TEXT.splitlines(keepends=True) for index in bpe.encode(line).ids]
    found, pair = gpt2_tokenizer(str(copy(*names))), gpt2_tokenizer(str(base))
    assert found.encode(TEXT.splitlines(keepends=True))[0].tolist() == expected
    assert (found.sha256, found.vocab_size, found.unk_pieces) == (pair.sha256, 280, pair.unk_pieces)
    assert len(found.unk_pieces) == 2
    assert {Path(file.path).name for file in found.files} == set(names)


def test_line_ends_of_merges_change_nothing(base, copy):
    folder = copy(*PAIR)
    (folder / "merges.txt").write_bytes((base / "merges.txt").read_bytes().replace(b"\n", b"\r\n"))
    assert ids(folder) == ids(base)


def test_files_that_disagree_are_refused(base, copy):
    folder = copy(*PAIR, *WHOLE)
    lines = (base / "merges.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "merges.txt").write_text("".join([*lines[:-1]]), encoding="utf-8")
    assert "merges.txt and tokenizer.json must say the same, got" in refused(folder)
    shutil.copy(base / "merges.txt", folder / "merges.txt")
    words = json.loads((base / "vocab.json").read_bytes())
    a, b = list(words)[260:262]
    (folder / "vocab.json").write_text(json.dumps(words | {a: words[b], b: words[a]}))
    assert "vocab.json and tokenizer.json must say the same, got 2" in refused(folder)


VOCABULARIES = {
    "huge id": (lambda w, k: w | {k: 2**40}, "vocab.json: 280 tokens must have the ids from 0 to 279, got 10995"),
    "id of 2e9": (lambda w, k: w | {k: 2_000_000_000}, "from 0 to 279, got 2000000000 of"),
    "one too far": (lambda w, k: w | {k: 280}, "from 0 to 279, got 280 of"),
    "negative": (lambda w, k: w | {k: -1}, "must be a number from 0, got -1"),
    "two words": (lambda w, k: w | {k: 3}, "vocab.json: an id must be of one token, got 3 of"),
    "text": (lambda w, k: w | {k: "7"}, "must be a number from 0, got '7'"),
    "float": (lambda w, k: w | {k: 7.0}, "must be a number from 0, got 7.0"),
    "null": (lambda w, k: w | {k: None}, "must be a number from 0, got None"),
    "boolean": (lambda w, k: w | {k: True}, "must be a number from 0, got True"),
    "list": (lambda w, k: list(w), "must be a JSON object, got ["),
    "none": (lambda w, k: {}, "vocab.json must map words to ids, got none"),
    "long word": (lambda w, k: w | {"x" * 10**6: 280}, "at most 500 characters, got 1,000,000"),
    "empty word": (lambda w, k: w | {"": 280}, "must name tokens by text, got ''"),
    "out of reach": (lambda w, k: w | {"zebra": 280}, "merges.txt must reach every word of vocab.json, but"),
    "no byte": (lambda w, k: {x: i for i, x in enumerate(y for y in w if y != "!")}, "256 symbols of bytes, got 255"),
    "no result": (lambda w, k: {x: i for i, x in enumerate(y for y in w if y != k)}, "what every merge of merges.txt"),
}  # fmt: skip


@pytest.mark.parametrize("damage", VOCABULARIES)
def test_damaged_vocabularies(copy, damage):
    folder = copy(*PAIR)
    change, message = VOCABULARIES[damage]
    words = json.loads((folder / "vocab.json").read_bytes())
    (folder / "vocab.json").write_text(json.dumps(change(words, list(words)[-1])))
    assert message in refused(folder)


MERGES = {
    "half": (lambda m: m[: len(m) // 2], "merges.txt must reach every word of vocab.json"),
    "one lost": (lambda m: m[:-1], "without 1 words such as"),
    "none": (lambda m: [], "got 0 merges"),
    "of three": (lambda m: ["a b c", *m], "merges.txt: merge 1 must be two symbols, got 'a b c'"),
    "of one": (lambda m: [*m, "x"], "must be two symbols, got 'x'"),
    "blank": (lambda m: [*m, "", ""], "must be two symbols, got ''"),
    "twice": (lambda m: [*m, m[0]], "must hold each merge once, got"),
    "of nothing": (lambda m: [*m, "qq zz"], "a merge must join what is there before it, got 'qq zz'"),
    "backwards": (lambda m: m[::-1], "a merge must join what is there before it"),
    "more": (lambda m: [*m, "! #"], "vocab.json must hold what every merge of merges.txt makes, got no '!#'"),
}


@pytest.mark.parametrize("damage", MERGES)
def test_damaged_merges(copy, damage):
    folder = copy(*PAIR)
    change, message = MERGES[damage]
    head, *lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    (folder / "merges.txt").write_text("\n".join([head, *change(lines)]) + "\n", encoding="utf-8")
    assert message in refused(folder)


@pytest.mark.parametrize("name", ["vocab.json", *WHOLE])
def test_damaged_json(copy, base, name):
    content = (base / name).read_bytes()
    for damage in (
        content[: len(content) // 2], b"", b"[]", b"null", b"3", b"\xff\xfe", b"[" * 100_000, b"{'a': 1}",
        b'{"a": 1}' * 2, b'{"a": 1' + b"0" * 5_000 + b"}", b'{"a": 0, "a": 0}', b"version https://git-lfs.github.com/spec/v1\n",
    ):  # fmt: skip
        folder = copy(*PAIR, *WHOLE) if name in WHOLE else copy(*PAIR)
        (folder / name).write_bytes(damage)
        assert refused(folder).startswith(name), damage[:30]
    if name != "tokenizer_config.json":
        (folder / name).write_bytes(b"{}")
        assert refused(folder).startswith(name)


@pytest.mark.parametrize(("part", "key", "value", "message"), [
    ("model", "type", "WordPiece", "model.type must be GPT-2's, 'BPE', got 'WordPiece'"),
    ("model", "dropout", 0.1, "model.dropout must be"), ("model", "ignore_merges", True, "model.ignore_merges must be"),
    ("model", "vocab", None, "must map words to ids, got None"), ("model", "merges", "x", "must hold a list of merges"),
    ("model", "merges", [["a"]], "merge 1 must be two symbols, got ["),
    ("pre_tokenizer", "add_prefix_space", True, "pre_tokenizer.add_prefix_space must be GPT-2's, False, got True"),
    ("pre_tokenizer", "use_regex", False, "pre_tokenizer.use_regex"), ("decoder", "type", "WordPiece", "decoder.type"),
    (None, "normalizer", {"type": "Lowercase"}, "normalizer must be GPT-2's, None, got {"),
    (None, "truncation", {"max_length": 3}, "truncation must be"), (None, "pre_tokenizer", None, "must be an object"),
    (None, "model", [], "model must be an object, got []"), (None, "added_tokens", 3, "added_tokens must be a list"),
    (None, "added_tokens", [{"id": 2**40, "content": "huge"}], "281 tokens must have the ids from 0 to 280, got 10995"),
    (None, "added_tokens", [{"id": 7, "content": END}], f"the id of '{END}' must be 0 as elsewhere, got 7"),
    (None, "added_tokens", [{"id": 280}], "must name tokens by text"), (None, "added_tokens", [1], "an object"),
])  # fmt: skip
def test_a_whole_tokenizer_of_another_kind(copy, part, key, value, message):
    folder = copy("tokenizer.json")
    document = json.loads((folder / "tokenizer.json").read_bytes())
    (document[part] if part else document)[key] = value
    (folder / "tokenizer.json").write_text(json.dumps(document))
    found = refused(folder)
    assert message in found
    assert found.startswith("tokenizer.json")


@pytest.mark.parametrize(("name", "content", "message"), [
    ("added_tokens.json", {"huge": 2**40}, "ids from 0 to 280, got 1099511627776"),
    ("added_tokens.json", {"x" * 10**5: 280}, "added_tokens.json: a token must have at most 500 characters"),
    ("added_tokens.json", {"t": -1}, "must be a number from 0, got -1"),
    ("added_tokens.json", {"!": 1}, "must be no word of the merges, got '!'"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"2000000000": {"content": "so"}}}, "got 2000000000 of 'so'"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}, "must be an object by id"),
    ("tokenizer_config.json", {"split_special_tokens": True}, "split_special_tokens must be false"),
])  # fmt: skip
def test_added_tokens_fit(copy, name, content, message):
    folder = copy(*PAIR)
    (folder / name).write_text(json.dumps(content))
    assert message in refused(folder)


def test_an_added_token_is_one_token(copy, base):
    folder = copy(*PAIR)
    settings = {"content": "<sep>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"280": settings}}))
    found = gpt2_tokenizer(str(folder))
    assert found.vocab_size == 281
    assert found.encode([" the<sep>"])[0].tolist()[-1] == 280


def test_what_the_library_cannot_read_is_one_line(copy, monkeypatch):
    from transformers import GPT2TokenizerFast

    class PanicException(BaseException):
        """As the library's Rust code raises it."""

    def panics(*_, **__):
        raise PanicException("a panic\nof two lines")

    monkeypatch.setattr(GPT2TokenizerFast, "from_pretrained", panics)
    folder = copy(*PAIR)
    with pytest.raises(ValueError, match=r"must be one that transformers reads: a panic\Z"):
        gpt2_tokenizer(str(folder))


@pytest.mark.parametrize("name", ["nowhere", "a\0b", "x" * 5000])
def test_a_folder_that_is_none(tmp_path, name):
    with pytest.raises(ValueError, match=r"tokenizer must be 'gpt2', 'corpus' or a folder with [^\n]{1,400}$"):
        gpt2_tokenizer(str(tmp_path / name))
