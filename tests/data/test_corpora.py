"""Corpora made in a temporary folder; the real ones where MUSE_DATA_DIR names a folder that has them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import muse.data.corpora
import muse.data.tokenizers
from muse.data.batches import TrainingBatches, evaluation_batches, num_targets
from muse.data.corpora import SPLITS, load_corpus, text_of
from muse.data.grammar import Grammar
from muse.data.tokenizers import tokenize_dataset, word_tokenizer

ARTICLES = (
    " \n = First = \n \n A café is a place . \n The sum k \n = 1 = \n is one . \n \n = = Notes = = \n \n More text . \n"
    " \n = Second , or other = \n \n The <unk> end . \n"
)
PARAGRAPHS = "one two\nthree\n\n\nfour five\n\nsix seven\x85\u2028\x0beight"


def write_corpus(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        (folder / f"{split}.txt").write_bytes(text.encode())
    return folder


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory) -> Path:
    """A byte-level BPE of a few merges."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("bpe")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([ARTICLES] * 5, vocab_size=290, show_progress=False, special_tokens=["<|endoftext|>"])
    bpe.save_model(str(folder))
    return folder


@pytest.fixture
def articles(tmp_path) -> Path:
    return write_corpus(tmp_path / "articles", ARTICLES)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MUSE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_folder_with_byte_level_bpe(articles, bpe_folder):
    corpus = load_corpus(str(articles), str(bpe_folder), splits=("test", "validation"))
    split = corpus.splits["test"]
    assert list(corpus.splits) == ["test", "validation"]
    assert corpus.decode(split.ids.tolist()) == ARTICLES
    assert corpus.vocab_size == max(json.loads((bpe_folder / "vocab.json").read_bytes()).values()) + 1
    assert split.ids.dtype == torch.int32
    assert split.num_bytes == len(ARTICLES) + 1  # one letter of two bytes
    assert split.num_words == len(ARTICLES.split()) + ARTICLES.count("\n")
    assert corpus.entropy_nats_per_token is None
    read = [(Path(file.path).name, file.num_bytes) for file in corpus.files]
    sizes = [(bpe_folder / name).stat().st_size for name in ("vocab.json", "merges.txt")]
    text = [("validation.txt", split.num_bytes), ("test.txt", split.num_bytes)]
    assert read == [*text, ("vocab.json", sizes[0]), ("merges.txt", sizes[1])]


@pytest.mark.parametrize("tokenizer", ["bpe", "corpus"])
def test_documents_are_articles(articles, bpe_folder, tokenizer):
    corpus = load_corpus(str(articles), str(bpe_folder) if tokenizer == "bpe" else tokenizer, splits=("test",))
    split = corpus.splits["test"]
    texts = [corpus.decode(part.tolist()) for part in np.split(split.ids.numpy(), split.document_starts[1:])]
    assert [text.split()[1] for text in texts] == ["First", "Second"]
    assert "= 1 =" in texts[0]
    assert split.document_starts.dtype == torch.int64
    assert split.document_starts[0] == 0


def test_documents_are_paragraphs_elsewhere(tmp_path, bpe_folder):
    corpus = load_corpus(str(write_corpus(tmp_path / "plain", PARAGRAPHS)), str(bpe_folder), splits=("test",))
    split = corpus.splits["test"]
    texts = [corpus.decode(part.tolist()) for part in np.split(split.ids.numpy(), split.document_starts[1:])]
    assert texts == ["one two\nthree\n\n\n", "four five\n\n", "six seven\x85\u2028\x0beight"]
    assert split.num_words == 8 + 6


@pytest.mark.parametrize(("content", "text"), [
    (" \n = Title = \n \n A <unk> here . \n" * 60, "wikitext-2-v1"),
    (" \n = Title = \n \n A rare one . \n" * 60, "wikitext-2-raw-v1"),
    (" \n = Title = \n \n A <unk> here . \n" * 59, "another text with <unk>"),
    (" \n A rare one . \n" * 60, "another text"),
])  # fmt: skip
def test_a_folders_text_is_told_by_what_it_holds(tmp_path, monkeypatch, content, text):
    """By the articles of each split that was read and by their size, whatever the folder's name."""
    assert text_of({"test": content.splitlines(keepends=True)}).startswith("another text")
    monkeypatch.setattr(muse.data.corpora, "WIKITEXT_CHARACTERS", dict.fromkeys(SPLITS, len(content)))
    folder = write_corpus(tmp_path / "wikitext-2-v1", content)
    assert text_of({"test": content.splitlines(keepends=True)}) == text
    train = content * 10 if "= Title =" in content else content  # 600 articles
    (folder / "train.txt").write_text(train)
    assert load_corpus(str(folder), "corpus").text == text
    (folder / "train.txt").write_text(content)
    assert load_corpus(str(folder), "corpus").text.startswith("another text")


def test_pieces_inside_an_unk_are_found_by_the_tokenizer(tmp_path, bpe_folder):
    """After a space, which is the first piece here, and at the start of a line; a word that is one token has none."""
    folder = write_corpus(tmp_path / "unk", "<unk> a < unk >\n b <unk> <unk> \n")
    split = load_corpus(str(folder), str(bpe_folder), splits=("test",)).splits["test"]
    decode = load_corpus(str(folder), str(bpe_folder), splits=("test",)).decode
    left = decode(split.ids[~split.inside_unk].tolist())
    assert left == "< a < unk >\n b   \n"
    assert split.inside_unk.shape == split.ids.shape
    assert load_corpus(str(folder), "corpus", splits=("test",)).splits["test"].inside_unk is None
    raw = write_corpus(tmp_path / "raw", "a < unk > b\n")
    assert load_corpus(str(raw), str(bpe_folder), splits=("test",)).splits["test"].inside_unk is None


def test_word_level_vocabulary_is_the_training_split(tmp_path):
    folder = write_corpus(tmp_path / "words", "b a\na <unk>\n")
    (folder / "test.txt").write_text("a new b")
    corpus = load_corpus(str(folder), "corpus", splits=("test",))
    assert corpus.vocab_size == 4  # <unk>, newline, a, b
    assert corpus.splits["test"].ids.tolist() == [2, 0, 3]
    assert corpus.decode([2, 0, 3, 1, 2]) == "a <unk> b \na"
    assert [Path(file.path).name for file in corpus.files[:2]] == ["train.txt", "test.txt"]
    assert load_corpus(str(folder), "corpus").splits["train"].ids.tolist() == [3, 2, 1, 2, 0, 1]


def test_token_counts_equal_canonical_words(articles):
    for split in load_corpus(str(articles), "corpus").splits.values():
        assert len(split.ids) == split.num_words


@pytest.mark.parametrize("text", [ARTICLES, PARAGRAPHS, "no end of a line", "\n\n \n", ""])
@pytest.mark.parametrize("tokenizer", ["corpus", "bpe"])
def test_text_is_encoded_as_the_splits_were_and_back(articles, bpe_folder, tmp_path, tokenizer, text):
    corpus = load_corpus(str(articles), tokenizer if tokenizer == "corpus" else str(bpe_folder), splits=("test",))
    ids = corpus.encode(text)
    assert {type(index) for index in ids} <= {int}
    if text == ARTICLES:
        assert ids == corpus.splits["test"].ids.tolist()
    if tokenizer == "bpe":
        assert corpus.decode(ids) == text
    else:
        assert corpus.encode(corpus.decode(ids)) == ids
        assert len(ids) == len(text.split()) + text.count("\n")
        assert corpus.decode(corpus.encode("a caf\u00e9 unheard of\n")) == "a caf\u00e9 <unk> <unk> \n"


def as_hub_rows(text: str) -> list[str]:
    """WikiText as the hub stores it: a line a row, blank lines empty."""
    return [line + "\n" if line.strip() else "" for line in text.split("\n")[:-1]]


@pytest.mark.parametrize("text", [ARTICLES, "one two\n\nthree\n"])
def test_parquet_equals_text(tmp_path, text):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import table

    expected = load_corpus(str(write_corpus(tmp_path / "text", text)), "corpus")
    (tmp_path / "table").mkdir()
    rows = as_hub_rows(text)
    for split in ("train", "validation"):
        parquet.write_table(table({"text": rows, "id": range(len(rows))}), tmp_path / "table" / f"{split}.parquet")
    for part, half in enumerate((rows[:2], rows[2:])):
        parquet.write_table(table({"text": half}), tmp_path / "table" / f"test-{part:05d}-of-00002.parquet")
    corpus = load_corpus(str(tmp_path / "table"), "corpus")
    for name, split in corpus.splits.items():
        assert split.sha256 == expected.splits[name].sha256
        assert split.document_starts.tolist() == expected.splits[name].document_starts.tolist()
    assert len(corpus.files) == 5


def test_parquet_rows_without_newline_are_lines(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import table

    for split in ("train", "validation", "test"):
        parquet.write_table(table({"text": ["a b", "", "c"]}), tmp_path / f"{split}.parquet")
    corpus = load_corpus(str(tmp_path), "corpus", splits=("test",))
    assert corpus.decode(corpus.splits["test"].ids.tolist()).split(" ") == ["a", "b", "\n\nc", "\n"]


def test_grouping_drops_every_original_column(bpe_folder):
    """The published loader kept attention_mask, whose rows then no longer matched the joined ids."""
    datasets = pytest.importorskip("datasets")
    from transformers import GPT2TokenizerFast

    tokenizer = GPT2TokenizerFast.from_pretrained(str(bpe_folder))
    lines = [f"line {index} \n" for index in range(1003)]  # more than a batch of the library
    rows = [tokenizer(line)["input_ids"] for line in lines]
    table = {"text": lines, "attention_mask": [[1] * len(row) for row in rows], "title": lines, "input_ids": rows}
    ids, lengths = tokenize_dataset(datasets.Dataset.from_dict(table), tokenizer)
    assert ids.tolist() == [index for row in rows for index in row]
    assert lengths.tolist() == [len(row) for row in rows]


@pytest.mark.parametrize(("name", "text"), [
    ("wikitext-2", "wikitext-2-raw-v1"), ("wikitext-2-raw-v1", "wikitext-2-raw-v1"), ("wikitext-2-v1", "wikitext-2-v1"),
])  # fmt: skip
def test_wikitext_through_the_datasets_library(articles, bpe_folder, monkeypatch, name, text):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*names):
        asked.append((names, datasets.config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()))
        table = datasets.Dataset.from_dict({"text": as_hub_rows(ARTICLES)})
        return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), table))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    datasets.enable_progress_bars()
    before = datasets.config.HF_HUB_OFFLINE, False
    corpus = load_corpus(name, str(bpe_folder))
    assert asked == [(("Salesforce/wikitext", text), True, True)]  # the cache first
    assert (corpus.name, corpus.text) == (name, text)
    assert (datasets.config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()) == before
    local = load_corpus(str(articles), str(bpe_folder))
    assert [split.sha256 for split in corpus.splits.values()] == [split.sha256 for split in local.splits.values()]
    assert corpus.files[0].path == f"Salesforce/wikitext/{text}/train"
    assert corpus.files[0].sha256 == local.files[0].sha256


UNREACHABLE = """
import json, os, sys, time
import datasets, huggingface_hub.constants
from transformers import GPT2TokenizerFast
from muse.data.corpora import load_corpus
from muse.data.hub import CorpusUnavailable
answers = {}
folder, *endpoints = sys.argv[1:]
for case in (*endpoints, "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    if case in endpoints:
        huggingface_hub.constants.ENDPOINT = case
    else:
        os.environ[case] = "1"
    for corpus, tokenizer in (("wikitext-2", "corpus"), (folder, "gpt2")):
        start = time.monotonic()
        try:
            load_corpus(corpus, tokenizer, hub_timeout_seconds=1)
        except CorpusUnavailable as error:
            answers.setdefault(case, []).append((str(error), time.monotonic() - start))
    os.environ.pop(case, None)
print(json.dumps(answers))
"""


def test_unreachable_hub_is_a_clear_error_within_seconds(tmp_path, articles):
    """An empty cache and a hub that refuses, never answers, or may not be asked."""
    away = {name: value for name, value in os.environ.items() if not name.endswith("OFFLINE")}
    with socket.socket() as closed, socket.socket() as silent:
        for server in (closed, silent):
            server.bind(("127.0.0.1", 0))
        silent.listen(5)
        endpoints = [f"http://127.0.0.1:{server.getsockname()[1]}" for server in (closed, silent)]
        command = [sys.executable, "-c", UNREACHABLE, str(articles), *endpoints]
        environment = {**away, "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    reasons = ["refused", "no answer within 1 s|timed out", "HF_HUB_OFFLINE forbids", "HF_DATASETS_OFFLINE forbids"]
    for answers, reason in zip(json.loads(done.stdout).values(), reasons, strict=True):
        for (message, seconds), what in zip(answers, ("corpus 'wikitext-2'", "the gpt2 tokenizer"), strict=True):
            assert message.startswith(f"{what} is unavailable")
            assert all(way in message for way in ("local folder", "HF_HOME", "'synthetic'"))
            assert re.search(reason, message)
            assert seconds < 20  # the limit is 1 s; the libraries' own retries would take minutes


def test_synthetic_needs_neither_library():
    code = (
        "import sys, muse.data.corpora as c; c.load_corpus('synthetic', 'corpus', synthetic_tokens={'train': 500});"
        "print([m for m in ('datasets', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "[]"


def test_synthetic_corpus():
    start = time.process_time()
    corpus = load_corpus("synthetic", "corpus", synthetic_tokens={"train": 10_000})
    assert time.process_time() - start < 10
    sizes = {name: len(split.ids) for name, split in corpus.splits.items()}
    assert sizes == {"train": 10_000, "validation": 20_000, "test": 40_000}
    assert corpus.vocab_size == Grammar().vocab_size
    for split, file in zip(corpus.splits.values(), corpus.files, strict=True):
        text = corpus.decode(split.ids.tolist())
        assert split.num_words == len(text.split()) + text.count("\n") == len(split.ids)
        assert split.num_bytes == file.num_bytes == len(text)
        assert (split.ids[split.document_starts] == 0).all()
        assert len(split.document_starts) == text.count("\n")
    again = load_corpus("synthetic", "corpus", splits=("test",))
    assert again.splits["test"].sha256 == corpus.splits["test"].sha256
    assert corpus.splits["test"].ids[:20_000].tolist() != corpus.splits["validation"].ids.tolist()


def test_synthetic_splits_score_as_the_exact_entropies_predict():
    """Sampling noise would otherwise let a model look better than the floor: 0.01 nat is usual at this size."""
    corpus, grammar = load_corpus("synthetic", "corpus", splits=("validation", "test")), Grammar()
    joint = grammar.automaton.bigram_probabilities
    bigram = -np.log(joint / joint.sum(1, keepdims=True), where=joint > 0, out=np.full_like(joint, np.inf))
    assert corpus.entropy_nats_per_token == grammar.entropy_nats()
    for split in corpus.splits.values():
        ids = split.ids.numpy()
        assert grammar.nll_nats(ids)[1:].mean() == pytest.approx(corpus.entropy_nats_per_token, abs=0.002)
        assert bigram[ids[:-1], ids[1:]].mean() == pytest.approx(grammar.bigram_entropy_nats(), abs=0.002)


def evaluation_windows(ids: torch.Tensor, n_seq: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(inputs, targets), both (T,), without overlap; T is n_seq but for a shorter tail that is kept."""
    windows = [ids[start : start + n_seq + 1] for start in range(0, len(ids) - 1, n_seq)]
    return [(window[:-1], window[1:]) for window in windows]


@pytest.mark.parametrize(("num_tokens", "n_seq"), [(2, 1), (2, 7), (29, 7), (30, 7), (31, 7), (8, 7), (5, 100)])
def test_evaluation_sees_every_target_once(num_tokens, n_seq):
    ids = torch.arange(100, 100 + num_tokens, dtype=torch.int32)
    inputs, targets = zip(*evaluation_windows(ids, n_seq), strict=True)
    assert torch.cat(inputs).tolist() == ids[:-1].tolist()
    assert torch.cat(targets).tolist() == ids[1:].tolist()
    assert len(torch.cat(targets)) == num_targets(ids)
    assert all(len(window) == n_seq for window in inputs[:-1])
    for batch_size in (1, 2, 3, 50):
        batches = list(evaluation_batches(ids, n_seq, batch_size))
        rows = [(row, target) for pair in batches for row, target in zip(*pair, strict=True)]
        assert [row.tolist() for row, _ in rows] == [window.tolist() for window in inputs]
        assert [target.tolist() for _, target in rows] == [window.tolist() for window in targets]
        assert all(len(pair[0]) <= batch_size and pair[0].dtype == pair[1].dtype == torch.int64 for pair in batches)
        assert len(batches) <= -(-((num_tokens - 1) // n_seq) // batch_size) + 1


def test_max_batches_stops_early():
    ids = torch.arange(50)
    every = [inputs.tolist() for inputs, _ in evaluation_batches(ids, 4, 3)]
    assert [inputs.tolist() for inputs, _ in evaluation_batches(ids, 4, 3, max_batches=2)] == every[:2]
    assert len(every) == 5


@pytest.mark.parametrize(("num_tokens", "n_seq"), [(100, 7), (99, 7), (8, 7), (9, 7), (13, 6), (14, 7)])
def test_a_training_epoch_visits_each_window_once(num_tokens, n_seq):
    ids = torch.arange(num_tokens, dtype=torch.int32)
    batches = TrainingBatches(ids, n_seq, batch_size=3, seed=1)
    assert batches.windows_per_epoch >= max(1, num_tokens // n_seq - 2)
    seen = torch.cat([batches.batch(step)[0] for step in range(batches.windows_per_epoch)])  # three epochs
    for epoch in seen.split(batches.windows_per_epoch):
        starts = sorted(epoch[:, 0].tolist())
        assert np.diff(starts).tolist() == [n_seq] * (len(starts) - 1)
        assert starts[0] in range(n_seq)
    inputs, targets = batches.batch(0)
    assert inputs.shape == targets.shape == (3, n_seq)
    assert inputs.dtype == torch.int64
    assert (targets == inputs + 1).all()
    assert (inputs[:, 1:] == inputs[:, :-1] + 1).all()


def test_training_batches_resume_anywhere():
    ids = torch.arange(1000)
    straight = [TrainingBatches(ids, 7, 4, seed=2).batch(step)[0].tolist() for step in range(80)]
    one = TrainingBatches(ids, 7, 4, seed=2)
    for step in (79, 0, 36, 35, 40, 79):
        assert one.batch(step)[0].tolist() == straight[step]
    assert TrainingBatches(ids, 7, 4, seed=3).batch(0)[0].tolist() != straight[0]


def test_training_epochs_differ_in_order_and_offset():
    batches = TrainingBatches(torch.arange(1000), 31, 4, seed=2)
    starts = [batches.window_starts(epoch) for epoch in range(6)]
    assert len({int(order.min()) for order in starts}) > 3
    assert len({tuple((order - order.min()).tolist()) for order in starts}) == 6
    assert len(batches._epochs) <= 2


def test_cache_is_used_and_keyed_by_content(articles, bpe_folder, own_cache, monkeypatch):
    arguments = str(articles), str(bpe_folder)
    first = load_corpus(*arguments)
    assert len(list(own_cache.iterdir())) == 1  # three splits with the same text
    with monkeypatch.context() as patch:
        patch.setattr(muse.data.tokenizers, "tokenize_dataset", lambda *_: pytest.fail("tokenized again"))
        again = load_corpus(*arguments)
    assert again.splits["test"].sha256 == first.splits["test"].sha256
    assert again.splits["test"].document_starts.tolist() == first.splits["test"].document_starts.tolist()
    (articles / "test.txt").write_text("other text\n")
    other = load_corpus(*arguments)
    assert other.decode(other.splits["test"].ids.tolist()) == "other text\n"
    assert load_corpus(str(articles), "corpus").splits["train"].sha256 != first.splits["train"].sha256
    assert all(path.suffix == ".npz" for path in own_cache.iterdir())


@pytest.mark.parametrize("damage", [lambda old: old[: len(old) // 2], lambda old: b"", lambda old: b"text"])
def test_a_damaged_cache_file_is_made_again(articles, own_cache, damage):
    first = load_corpus(str(articles), "corpus", splits=("test",))
    (path,) = own_cache.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert load_corpus(str(articles), "corpus", splits=("test",)).splits["test"].sha256 == first.splits["test"].sha256
    with np.load(path) as file:
        assert file["ids"].tolist() == first.splits["test"].ids.tolist()


def test_cache_with_wrong_ids_is_made_again(articles, own_cache):
    first = load_corpus(str(articles), "corpus", splits=("test",)).splits["test"]
    (path,) = own_cache.iterdir()
    with np.load(path) as file:
        content = dict(file)
    np.savez(path, **{**content, "ids": content["ids"][::-1]})
    assert load_corpus(str(articles), "corpus", splits=("test",)).splits["test"].sha256 == first.sha256


def test_interrupted_write_leaves_nothing(articles, own_cache, monkeypatch):
    def interrupted(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_corpus(str(articles), "corpus", splits=("test",))
    assert list(own_cache.iterdir()) == []


def test_unwritable_cache_warns(articles, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="were not cached"):
        corpus = load_corpus(str(articles), "corpus", splits=("test",), cache_dir=tmp_path / "file")
    assert len(corpus.splits["test"].ids) == corpus.splits["test"].num_words


def test_users_errors_are_named(articles, tmp_path, bpe_folder):
    def fails(message: str, corpus=str(articles), tokenizer="corpus", **more):
        with pytest.raises(ValueError, match=message):
            load_corpus(str(corpus), str(tokenizer), **more)

    fails("corpus must be synthetic, wikitext-2, .* or an existing folder, got 'wikitext2'", "wikitext2")
    fails("tokenizer must be 'corpus', got 'gpt2'", "synthetic", "gpt2")
    fails(
        "tokenizer must be 'gpt2', 'corpus' or a folder .* got 'gpt-2': no vocab.json and no merges.txt",
        tokenizer="gpt-2",
    )
    fails("splits must be some of train, validation, test, got", splits=("dev",))
    fails("splits must be some of", splits=())
    fails("synthetic_tokens must give .* got {'dev': 5}", "synthetic", synthetic_tokens={"dev": 5})
    fails("synthetic_tokens must give .* got {'test': 1}", "synthetic", synthetic_tokens={"test": 1})
    fails("synthetic_tokens is for corpus 'synthetic'", synthetic_tokens={"test": 100})
    fails("must hold either train.txt or train.parquet .* got neither", tmp_path)
    (articles / "validation.parquet").touch()
    fails("got both", splits=("validation",))
    (articles / "test.txt").write_bytes(b"caf\xe9\n")
    fails("test.txt must be UTF-8", splits=("test",))
    (articles / "test.txt").write_bytes(b"")
    fails("test.txt must be a corpus, got an empty text", splits=("test",))
    (articles / "test.txt").write_text("one")
    fails("split 'test' must have at least 2 tokens to have a target, got 1", splits=("test",))
    ids = torch.arange(10)
    for wrong in ({"n_seq": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            TrainingBatches(ids, **{"n_seq": 4, "batch_size": 2, "seed": 0} | wrong)
        with pytest.raises(ValueError, match="must be at least 1"):
            list(evaluation_batches(ids, **{"n_seq": 4, "batch_size": 2} | wrong))
    with pytest.raises(ValueError, match="more than n_seq = 10 tokens, got 10"):
        TrainingBatches(ids, 10, 1, seed=0)


def test_a_tokenizer_that_loses_text_is_refused(articles, tmp_path, bpe_folder):
    """transformers makes a silent, empty tokenizer of no words, and one with a prefix of a setting."""
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"vocab.json must map words to ids, got none"):
        load_corpus(str(articles), str(tmp_path))
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((bpe_folder / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    with pytest.raises(ValueError, match=r"must give back the text it is given, got . A title"):
        load_corpus(str(articles), str(tmp_path))


def test_parquet_without_text_is_named(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import table

    parquet.write_table(table({"body": ["a"]}), tmp_path / "test.parquet")
    parquet.write_table(table({"text": ["a", None]}), tmp_path / "validation.parquet")
    with pytest.raises(ValueError, match=r"must have a column 'text', got \['body'\]"):
        load_corpus(str(tmp_path), "gpt2", splits=("test",))
    with pytest.raises(ValueError, match="must hold text in every row of its column 'text', got missing values"):
        load_corpus(str(tmp_path), "gpt2", splits=("validation",))


def test_word_tokenizer_does_not_depend_on_line_order():
    assert word_tokenizer(["a b\n", "c a\n"]).sha256 == word_tokenizer(["c a\n", "b a\n"]).sha256
    assert word_tokenizer(["a b\n"]).sha256 != word_tokenizer(["a c\n"]).sha256


@pytest.mark.skipif("MUSE_DATA_DIR" not in os.environ, reason="MUSE_DATA_DIR names no folder with the real corpus")
class TestRealWikitext:
    data = Path(os.environ.get("MUSE_DATA_DIR", "."))

    def test_published_token_and_word_counts(self):
        corpus = load_corpus(str(self.data / "wikitext-2-v1"), str(self.data / "gpt2-tokenizer"))
        assert corpus.vocab_size == 50257
        assert [len(split.ids) for split in corpus.splits.values()] == [2_448_382, 258_659, 295_877]
        assert [split.num_words for split in corpus.splits.values()] == [2_051_910 + 36_718, 213_886 + 3_760, 245_569]
        assert [len(split.document_starts) for split in corpus.splits.values()] == [600, 60, 60]
        test = corpus.splits["test"]
        assert num_targets(test.ids) == 295_876
        inside = [int(split.inside_unk.sum()) for split in corpus.splits.values()]
        assert inside == [2 * 54_625, 2 * 11_718, 2 * 15_218]  # a tenth of the targets of the test split
        assert corpus.text == "wikitext-2-v1"
        text = (self.data / "wikitext-2-v1" / "test.txt").read_bytes()
        assert corpus.decode(test.ids.tolist()).encode() == text
        assert test.num_bytes == len(text)

    def test_published_word_vocabulary(self):
        corpus = load_corpus(str(self.data / "wikitext-2-v1"), "corpus")
        assert corpus.vocab_size == 33_278
        assert [len(split.ids) for split in corpus.splits.values()] == [2_088_628, 217_646, 245_569]
