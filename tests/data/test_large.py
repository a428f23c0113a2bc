"""Text that is read in blocks: the same splits as whole, from a cache, within a bound, and trained on like others."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from muse.data import corpora, mapped, streams
from muse.data.corpora import load_corpus
from muse.models.build import build_model
from muse.params import Settings
from muse.stages.check import examine
from muse.training import trainer
from muse.training.recipe import Recipe

parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")

TEXT = (
    " \n = First = \n \n A café is a place . \n The sum k \n = 1 = \n is one . \n \n = = Notes = = \n \n"
    " More <unk> text . \n"
    " \n = Second , or other = \n \n The <unk> end . \n and\u2028more\x85 \n \n \n x \n"
) * 3
PARAGRAPHS = "one two\nthree\n\n\nfour five <unk>\n\nsix seven\nno end"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> str:
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("bpe")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator([TEXT] * 5, vocab_size=290, show_progress=False, special_tokens=["<|endoftext|>"])
    made.save_model(str(folder))
    return str(folder)


def write(folder: Path, name: str, parts: list[str], kind: str) -> None:
    """A split as one file or as shards of text, or as a table of lines without their end."""
    folder.mkdir(exist_ok=True)
    for at, part in enumerate(parts):
        shard = f"-{at:05d}-of-{len(parts):05d}" if len(parts) > 1 else ""
        path = folder / f"{name}{shard}.{kind}"
        if kind == "txt":
            path.write_bytes(part.encode())
        else:
            rows = ["" if line == " " else line for line in part.removesuffix("\n").split("\n")]
            parquet.write_table(pyarrow.table({"text": rows}), path, row_group_size=3)


def both(folder: Path, tokenizer: str, monkeypatch, cache: Path):
    """The corpus read whole and read in blocks."""
    found = []
    for name, limit in (("whole", 2**40), ("blocks", 0)):
        monkeypatch.setattr(mapped, "LARGE_BYTES", limit)
        found.append(load_corpus(str(folder), tokenizer, splits=("train", "validation"), cache_dir=cache / name))
    return found


@pytest.mark.parametrize(
    ("parts", "kind", "block"),
    [([TEXT], "txt", 100), ([PARAGRAPHS], "txt", 1), ([TEXT, PARAGRAPHS], "parquet", 2**20),
     ([TEXT.replace("\n", "\r\n"), PARAGRAPHS, TEXT], "txt", 30)],
)  # fmt: skip
def test_by_blocks_a_text_is_the_same_as_whole(tmp_path, monkeypatch, bpe, parts, kind, block):
    monkeypatch.setattr(streams, "BLOCK_BYTES", block)
    monkeypatch.setattr(mapped, "usable_cores", lambda: 2)
    write(tmp_path / "corpus", "train", parts, kind)
    write(tmp_path / "corpus", "validation", [PARAGRAPHS], "txt")
    for tokenizer in ("corpus", bpe) if block == 1 else (bpe,):
        whole, blocks = both(tmp_path / "corpus", tokenizer, monkeypatch, tmp_path / "cache")
        assert (whole.vocab_size, whole.text) == (blocks.vocab_size, blocks.text)
        assert set(whole.files) == set(blocks.files)
        for name, split in whole.splits.items():
            for field, value in vars(split).items():
                other = getattr(blocks.splits[name], field)
                same = torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value
                assert same, (tokenizer, name, field)
                assert type(other) is type(value)
    assert whole.splits["train"].inside_unk is not None, "a piece of <unk> is in it"


def test_what_was_cut_is_found_again_and_keyed_by_content(tmp_path, monkeypatch, bpe):
    folder = tmp_path / "corpus"
    write(folder, "test", [TEXT, TEXT], "txt")
    monkeypatch.setattr(mapped, "LARGE_BYTES", 0)
    load = partial(load_corpus, tokenizer=bpe, splits=("test",), cache_dir=tmp_path / "cache")
    first = load(str(folder))
    monkeypatch.setattr(mapped, "Encoder", None)
    again = load(str(folder.rename(tmp_path / "moved")))
    assert torch.equal(first.splits["test"].ids, again.splits["test"].ids)
    ids = next((tmp_path / "cache").glob("*.ids"))
    ids.write_bytes(bytes(len(ids.read_bytes())))
    with pytest.raises(TypeError):  # it would cut anew
        load(str(tmp_path / "moved"))


MEMORY = """
import sys
from pathlib import Path
from muse.data import mapped
from muse.data.corpora import load_corpus
folder = Path(sys.argv[1])
def most():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def read(name, limit):
    mapped.LARGE_BYTES = limit
    return load_corpus(str(folder / name), "corpus", splits=("test",), cache_dir=folder / str(limit)).splits["test"]
read("small", 0)
before = most()
blocks = len(read("large", 2**20).ids)
between = most()
print(blocks, between - before, len(read("large", 2**40).ids), most() - between)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_memory_stays_flat(tmp_path):
    """Ten megabytes of text: in blocks they take 15 or so, whole another 30 and more."""
    words = " ".join(["somewhat-longer-words-than-usual"] * 300)
    for name, lines in (("small", 2), ("large", 1000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.txt").write_text(words + "\n")
        (tmp_path / name / "test.txt").write_text((words + "\n") * lines)
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    blocks, grown, whole, more = map(int, done.stdout.split())
    assert blocks == whole == 301 * 1000
    assert grown < 20_000 < 30_000 < more, (grown, more)


def test_a_training_on_mapped_text_has_the_same_key_and_resumes_exactly(tmp_path, monkeypatch):
    write(tmp_path / "corpus", "train", [TEXT, TEXT], "txt")
    write(tmp_path / "corpus", "validation", [PARAGRAPHS], "txt")
    whole, blocks = both(tmp_path / "corpus", "corpus", monkeypatch, tmp_path / "cache")
    build = partial(build_model, "stage1", vocab_size=whole.vocab_size, d_model=8, n_layers=1, n_seq=16)
    recipe = Recipe(train_tokens=12 * 32, batch_tokens=32, n_seq=16, learning_rate=0.01, dropout=0.1, evaluations=2)
    first = trainer.train("stage1", build, recipe, whole, tmp_path / "whole")
    original, seen = trainer._Training.train_step, []

    def cut(self):
        original(self)
        seen.append(self.state.step)
        if self.state.step == 7 and len(seen) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer._Training, "train_step", cut)
    every = Recipe(**vars(recipe) | {"checkpoint_every_steps": 5})
    with pytest.raises(KeyboardInterrupt):
        trainer.train("stage1", build, every, blocks, tmp_path / "blocks")
    second = trainer.train("stage1", build, every, blocks, tmp_path / "blocks")
    assert second.resumed_from_steps == (5,)
    assert seen == [*range(1, 8), *range(6, 13)]
    assert second.weights.parent.name == first.weights.parent.name, "the same key"
    assert second.weights.read_bytes() == first.weights.read_bytes()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "test-00001-of-00002.parquet").write_bytes(b"PAR1 and no table PAR1"),
         "test-00001-of-00002.parquet must be a readable parquet file: "),
        (lambda folder: parquet.write_table(pyarrow.table({"words": ["a"]}), folder / "test-00001-of-00002.parquet"),
         "test-00001-of-00002.parquet must have a column 'text', got ['words']"),
        (lambda folder: (folder / "test-00001-of-00002.parquet").unlink(), "missing: 00001"),
        (lambda folder: (folder / "test-00000-of-00002.parquet").write_text("<html><body></body></html>"),
         "test-00000-of-00002.parquet must be a parquet file, got an HTML or XML page"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "must hold either test.txt or test.parquet"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch, bpe, spoil, said):
    write(tmp_path / "corpus", "test", [TEXT, TEXT], "parquet")
    spoil(tmp_path / "corpus")
    monkeypatch.setattr(mapped, "LARGE_BYTES", 0)
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as found:
        load_corpus(str(tmp_path / "corpus"), bpe, splits=("test",), cache_dir=tmp_path / "cache")
    assert said in str(found.value)
    assert not list((tmp_path / "cache").glob("*.json")), "nothing half made is taken for whole"


def test_lines_without_end_and_a_cache_that_cannot_be_written_are_refused(tmp_path, monkeypatch, bpe):
    monkeypatch.setattr(mapped, "LARGE_BYTES", 0)
    write(tmp_path / "corpus", "test", ["word " * 100], "txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cache_dir: got .*/file, expected a folder with room for the tokens of test"):
        load_corpus(str(tmp_path / "corpus"), bpe, splits=("test",), cache_dir=tmp_path / "file")
    monkeypatch.setattr(streams, "BLOCK_BYTES", 8)
    monkeypatch.setattr(streams, "LONGEST_LINE_BYTES", 64)
    with pytest.raises(ValueError, match=r"test\.txt must have lines of at most 64 bytes"):
        load_corpus(str(tmp_path / "corpus"), bpe, splits=("test",), cache_dir=tmp_path / "cache")
    assert corpora.large_splits("synthetic", ["train"]) == {}


def test_the_check_before_a_run_leaves_such_a_text_to_its_stage(tmp_path, monkeypatch, bpe):
    monkeypatch.setattr(mapped, "LARGE_BYTES", 0)
    for name in corpora.SPLITS:
        write(tmp_path / "corpus", name, [TEXT], "txt")
    small = {"n_seq": 2, "d_model": 8, "n_layers": 1, "batch_tokens": [2], "train_tokens": 4, "vocab_size": 300}
    asked = Settings(models=["stage1"], corpus=str(tmp_path / "corpus"), tokenizer=bpe,
                     cache_dir=str(tmp_path / "cache"), **small)  # fmt: skip
    assert examine(asked, ["train"]).problems == []
    assert not (tmp_path / "cache").exists(), "nothing was cut"
    (tmp_path / "corpus" / "train.txt").unlink()
    assert "must hold either train.txt" in examine(asked, ["train"]).problems[0]
