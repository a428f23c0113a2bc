"""Random corpora and tokenizers, whole and damaged: a whole one must give the ids of its plain text, a damaged one one
line of error that names it.

`python -m tests.force.corpora [--trials N] [--seed K]`; exit code 1 where anything else happened.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
from tokenizers import ByteLevelBPETokenizer

from muse.data.corpora import load_corpus
from muse.data.hub import CorpusUnavailable

HANG_SECONDS = 10
KINDS = ("traceback", "hang", "changed", "accepted", "refused")
"""Another error than one line that names the folder; too slow; other ids; damaged and taken; whole and refused."""
WORDS = ("the", "sea", ",", "café", "it", "'s", "一二", "12", "old", "unk", "<", ">", "=", "@-@", "😀", ".", "by\ttab")
END_OF_TEXT = "<|endoftext|>"

Change = Callable[[random.Random, Path], None]


class Hang(BaseException):
    """No Exception, so that nothing on the way takes it for an error of its own."""


def random_text(draw: random.Random) -> str:
    """Articles of a few lines, blank ones between them; the last line has its end."""
    lines = []
    for number in range(draw.randint(1, 4)):
        lines += [" ", f" = Article {number} = ", " "]
        for _ in range(draw.randint(1, 5)):
            lines.append(" " + " ".join(draw.choices(WORDS, k=draw.randint(1, 12))) + " ")
            lines += [" "] * draw.randint(0, 1)
    return "".join(line + "\n" for line in lines)


# Whole corpora: the same text in another form


def plain(draw: random.Random, folder: Path, text: str) -> None:
    (folder / "test.txt").write_bytes(text.encode())


def other_line_ends(draw: random.Random, folder: Path, text: str) -> None:
    end = draw.choice(["\r\n", "\r"])
    (folder / "test.txt").write_bytes(text.replace("\n", end).encode())


def some_line_ends(draw: random.Random, folder: Path, text: str) -> None:
    """No CR of its own stands before a line end here, so that all can be told apart."""
    lines = [line + draw.choice(["\n", "\r\n", "\r"]) for line in text.split("\n")[:-1]]
    (folder / "test.txt").write_bytes("".join(lines).encode())


def marked(draw: random.Random, folder: Path, text: str) -> None:
    lines = text.split("\n")[:-1]
    marks = {0, *draw.sample(range(len(lines)), draw.randint(0, 2))}
    end = draw.choice(["\n", "\r\n"])
    whole = "".join(("\ufeff" if number in marks else "") + line + end for number, line in enumerate(lines))
    (folder / "test.txt").write_bytes(whole.encode())


def table(draw: random.Random, folder: Path, text: str) -> None:
    write_table(draw, folder / "test.parquet", rows_of(draw, text))


def shards(draw: random.Random, folder: Path, text: str) -> None:
    count = draw.randint(1, 12)
    rows = rows_of(draw, text)
    cuts = [0, *sorted(draw.randint(0, len(rows)) for _ in range(count - 1)), len(rows)]
    width = draw.choice([1, 5])
    for index in range(count):
        name = f"test-{index:0{width}d}-of-{count:0{width}d}.parquet"
        write_table(draw, folder / name, rows[cuts[index] : cuts[index + 1]])


def rows_of(draw: random.Random, text: str) -> list[str]:
    """Rows as tables hold lines: with their ends, marked, of other ends."""
    end = draw.choice(["\n", "\r\n", "\r"])
    lines = [line + end for line in text.split("\n")[:-1]]
    return ["\ufeff" + lines[0], *lines[1:]] if draw.random() < 0.3 else lines


def write_table(draw: random.Random, path: Path, rows: list[str], kind: pyarrow.DataType | None = None) -> None:
    kind = kind or draw.choice([pyarrow.string(), pyarrow.large_string()])
    columns = {"text": pyarrow.array(rows, kind), "id": pyarrow.array(range(len(rows)), pyarrow.int64())}
    options = {
        "compression": draw.choice(["snappy", "zstd", "gzip", "none"]),
        "use_dictionary": draw.random() < 0.5,
        "row_group_size": draw.choice([3, 100]),
        "write_page_checksum": True,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)


WHOLE_CORPORA = (plain, other_line_ends, some_line_ends, marked, table, shards)

# Damages of a corpus, done to one that is whole


def one_file(draw: random.Random, folder: Path) -> Path:
    return draw.choice(sorted(folder.glob("test*")))


def lost_file(draw: random.Random, folder: Path) -> None:
    one_file(draw, folder).unlink()


def doubled_shard(draw: random.Random, folder: Path) -> None:
    path = one_file(draw, folder)
    name = path.name.replace("test-", "test-0").replace(".txt", "-00000-of-00002.parquet")
    (folder / (name if name != path.name else "test-00000-of-00001.parquet")).write_bytes(path.read_bytes())


def surplus_shard(draw: random.Random, folder: Path) -> None:
    path = one_file(draw, folder)
    name = draw.choice(["test-00099-of-00012.parquet", "test-00001-of-00077.parquet", "test-00000-of-00000.parquet"])
    (folder / name).write_bytes(path.read_bytes())


def file_beside(draw: random.Random, folder: Path) -> None:
    names = ["test.txt.bak", "test.csv", "test-1.parquet", "Test.TXT", "test (1).txt", "test_2.txt", "test2.txt"]
    (folder / draw.choice(names)).write_bytes(one_file(draw, folder).read_bytes())


def folder_for_file(draw: random.Random, folder: Path) -> None:
    path = one_file(draw, folder)
    path.unlink()
    path.mkdir()


def dangling_link(draw: random.Random, folder: Path) -> None:
    path = one_file(draw, folder)
    path.unlink()
    path.symlink_to(draw.choice(["../.git/annex/objects/a/b", "/dev/zero", path]))


def no_corpus(draw: random.Random, folder: Path) -> None:
    others = [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n",
        b"/annex/objects/SHA256E-s1256449--6c5a.txt\n",
        b"../../.git/annex/objects/Xk/9v/SHA256E-s12/SHA256E-s12\n",
        b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n",
        b"  <html>\n<head><title>502 Bad Gateway</title></head>\n</html>\n",
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        b"<Error><Code>NoSuchKey</Code><Message>gone</Message></Error>\n",
        b'{"error": "Repository not found"}\n',
        b'[{"message": "rate limit"}]\n',
        b'{"text": "a line"}\n{"text": "another"}\n',
        b"404: Not Found\n",
        b"Entry not found",
        b"",
        b" \n \n\t\n",
        b"\xef\xbb\xbf",
        bytes(draw.randrange(256) for _ in range(300)) + b"\xff",
        b"words\0and words\n" * 9,
        "words and words\n".encode("utf-16"),
        "words and words\n".encode("utf-16-le"),
        b"\x1f\x8b\x08\0" + b"words" * 9,
        b"%s\x01\x02\x03\x04 \x05\x06 words\n" % random_text(draw).encode()[:100],
    ]
    content = draw.choice(others)
    if draw.random() < 0.3 and content[:1] != b"\x1f":
        content = b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")
    one_file(draw, folder).write_bytes(content)


def wrong_column(draw: random.Random, folder: Path) -> None:
    for path in folder.glob("test*"):
        path.unlink()
    columns = {
        "text": draw.choice([[1, 2], [None, "a"], [["a"], ["b"]], [b"a", b"\xff"], [1.5], [{"a": 1}], [True]]),
    }
    columns = draw.choice([columns, {"body": ["a", "b"]}, {}])
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "test.parquet")


def bomb(draw: random.Random, folder: Path) -> None:
    """Some kB that unpack to gigabytes, by a dictionary of one long word or by compression."""
    for path in folder.glob("test*"):
        path.unlink()
    if draw.random() < 0.8:
        words = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 4000, pyarrow.int32()), ["word " * 200_000])
        pyarrow.parquet.write_table(pyarrow.table({"text": words}), folder / "test.parquet")
        return
    rows = pyarrow.table({"text": ["word " * 2_000_000] * 10})
    with pyarrow.parquet.ParquetWriter(
        folder / "test.parquet", rows.schema, compression="zstd", use_dictionary=False, write_statistics=False
    ) as writer:
        for _ in range(3):
            writer.write_table(rows)


def sparse(draw: random.Random, folder: Path) -> None:
    os.truncate(one_file(draw, folder), 2**33)


CORPUS_DAMAGES: tuple[Change, ...] = (
    lost_file, doubled_shard, surplus_shard, file_beside, folder_for_file, dangling_link, no_corpus, no_corpus,
    no_corpus, wrong_column, bomb, sparse,
)  # fmt: skip


def flip(draw: random.Random, folder: Path) -> None:
    """Bytes of a table changed or cut off: refused, or else nothing that was changed is read."""
    path = one_file(draw, folder)
    content = bytearray(path.read_bytes())
    if draw.random() < 0.3:
        content = content[: draw.randrange(len(content))]
    else:
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))


# Tokenizers: forms of the same one, and damages


def write_tokenizer(draw: random.Random, folder: Path, base: Path) -> None:
    """The pair, tokenizer.json alone as transformers saves it, or all of them, with other line ends and settings."""
    pair, alone = ("vocab.json", "merges.txt"), ("tokenizer.json",)
    names = draw.choice([pair, alone, pair + alone])
    for name in names:
        content = (base / name).read_bytes()
        (folder / name).write_bytes(content.replace(b"\n", b"\r\n") if draw.random() < 0.2 else content)
    if draw.random() < 0.3:
        (folder / "tokenizer_config.json").write_bytes((base / "tokenizer_config.json").read_bytes())
    if draw.random() < 0.2:
        (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))


def change_vocabulary(folder: Path, change: Callable[[dict], object]) -> None:
    """The words of every file changed alike, so that the files still agree."""
    for path in [path for path in (folder / "vocab.json", folder / "tokenizer.json") if path.exists()]:
        document = json.loads(path.read_bytes())
        words = document["model"]["vocab"] if path.name == "tokenizer.json" else document
        changed = change(words)
        if path.name == "tokenizer.json":
            document["model"]["vocab"] = changed
        path.write_text(json.dumps(document if path.name == "tokenizer.json" else changed))


def wrong_id(draw: random.Random, folder: Path) -> None:
    word = draw.randrange(20, 250)
    index = draw.choice([2**40, 2_000_000_000, 10**30, -1, "7", 1.5, None, True, [], 0, 10_000])
    change_vocabulary(folder, lambda words: words | {list(words)[word]: index})


def lost_word(draw: random.Random, folder: Path) -> None:
    word = draw.randrange(5, 200)
    change_vocabulary(folder, lambda words: {key: words[key] for place, key in enumerate(words) if place != word})


def more_word(draw: random.Random, folder: Path) -> None:
    word = draw.choice(["zebra", "", "x" * 10_000, "日", "Ġzebra"])
    change_vocabulary(folder, lambda words: words | {word: len(words)})


def no_vocabulary(draw: random.Random, folder: Path) -> None:
    change_vocabulary(folder, lambda words: draw.choice([{}, [], None, "x", 3, list(words)]))


def change_merges(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    for path in [path for path in (folder / "merges.txt", folder / "tokenizer.json") if path.exists()]:
        if path.name == "merges.txt":
            head, *lines = path.read_text(encoding="utf-8").splitlines()
            path.write_text("\n".join([head, *change(lines)]) + "\n", encoding="utf-8")
        else:
            document = json.loads(path.read_bytes())
            lines = [" ".join(pair) for pair in document["model"]["merges"]]
            document["model"]["merges"] = [line.split(" ") for line in change(lines)]
            path.write_text(json.dumps(document))


def fewer_merges(draw: random.Random, folder: Path) -> None:
    first = draw.randrange(20)
    last = draw.choice([first + 1, 30, 1_000])
    change_merges(folder, lambda lines: lines[:first] + lines[last:])


def odd_merges(draw: random.Random, folder: Path) -> None:
    odd = draw.choice(["", "a", "a b c", "zz qq", "Ġ", " ", "t h e"])
    place = draw.randrange(20)
    change_merges(folder, lambda lines: [*lines[:place], odd, *lines[place:]])


def reversed_merges(draw: random.Random, folder: Path) -> None:
    change_merges(folder, lambda lines: lines[::-1])


def one_disagrees(draw: random.Random, folder: Path) -> None:
    """A file of the three says something else; where there was but one kind, the other comes as another tokenizer."""
    if not (folder / "tokenizer.json").exists():
        model = {"type": "BPE", "vocab": {END_OF_TEXT: 0}, "merges": []}
        parts = {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}, "decoder": {"type": "ByteLevel"}}
        (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": [], **parts}))
    elif (folder / "merges.txt").exists():
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        swapped = "".join([*lines[:5], lines[6], lines[5], *lines[7:]])
        (folder / "merges.txt").write_text(swapped, encoding="utf-8")
    else:
        (folder / "merges.txt").write_text("#version: 0.2\nt h\n")


def damaged_json(draw: random.Random, folder: Path) -> None:
    path = draw.choice(sorted(folder.glob("*.json")))
    content = path.read_bytes()
    damages = [
        content[: draw.randrange(len(content) - 2)], b"{}" if path.name in ("vocab.json", "tokenizer.json") else b"",
        b"[]", b"null", b"3", b"\xff\xfe", b"[" * 100_000, b'{"a": 1' + b"0" * 5_000 + b"}", b'{"a": 1}' * 2,
        b"version https://git-lfs.github.com/spec/v1\n", b"<html></html>", b'{"a": 0, "a": 1}',
    ]  # fmt: skip
    path.write_bytes(draw.choice(damages))


def other_kind(draw: random.Random, folder: Path) -> None:
    """tokenizer.json of another kind than GPT-2's, or with what cuts text."""
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        with suppress(FileNotFoundError):
            document = json.loads((folder / name).read_bytes()) if name == "tokenizer.json" else None
            if document is None:
                continue
            part, key, value = draw.choice([
                ("model", "type", "WordPiece"), ("model", "dropout", 0.1), ("model", "byte_fallback", True),
                ("pre_tokenizer", "add_prefix_space", True), ("pre_tokenizer", "type", "Whitespace"),
                (None, "normalizer", {"type": "Lowercase"}), (None, "truncation", {"max_length": 3}),
                (None, "pre_tokenizer", None), (None, "model", None), (None, "model", []), (None, "added_tokens", 3),
                (None, "added_tokens", [{"id": 2**40, "content": "huge"}]), (None, "added_tokens", [{"id": 5}]),
                (None, "added_tokens", [{"id": 3, "content": END_OF_TEXT}]), ("model", "merges", "text"),
                ("model", "merges", [["a"]]), ("model", "merges", [3]), (None, "decoder", {"type": "WordPiece"}),
            ])  # fmt: skip
            (document[part] if part else document)[key] = value
            (folder / name).write_text(json.dumps(document))
            return
    settings = draw.choice([{"add_prefix_space": True}, {"split_special_tokens": True}])
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def odd_settings(draw: random.Random, folder: Path) -> None:
    name, content = draw.choice([
        ("added_tokens.json", {"huge": 2**40}), ("added_tokens.json", {"neg": -1}), ("added_tokens.json", {"t": "x"}),
        ("added_tokens.json", {"x" * 100_000: 291}), ("added_tokens.json", {END_OF_TEXT: 7}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1099511627776": {"content": "huge"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "huge"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": 3}}),
    ])  # fmt: skip
    (folder / name).write_text(json.dumps(content))


def lost_files(draw: random.Random, folder: Path) -> None:
    (folder / "tokenizer.json").unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        (folder / draw.choice(["vocab.json", "merges.txt"])).unlink()


TOKENIZER_DAMAGES: tuple[Change, ...] = (
    wrong_id, wrong_id, lost_word, more_word, no_vocabulary, fewer_merges, odd_merges, reversed_merges, one_disagrees,
    damaged_json, damaged_json, other_kind, odd_settings, lost_files,
)  # fmt: skip

# Trials


class Bench:
    """One tokenizer, by its library and as files, and the counts of all trials."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.draw = folder, random.Random(seed)
        self.faults = Counter(dict.fromkeys(KINDS, 0))
        self.base = folder / "base"
        self.base.mkdir()
        self.bpe = ByteLevelBPETokenizer()
        sample = [random_text(random.Random(0)) for _ in range(5)]
        self.bpe.train_from_iterator(sample, vocab_size=300, show_progress=False, special_tokens=[END_OF_TEXT])
        self.bpe.save_model(str(self.base))
        from transformers import GPT2TokenizerFast

        saved = folder / "saved"
        GPT2TokenizerFast.from_pretrained(str(self.base)).save_pretrained(str(saved))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (self.base / name).write_bytes((saved / name).read_bytes())

    def trial(self, number: int) -> None:
        """A corpus and a tokenizer in folders of their own; whole, or one or both of them damaged."""
        draw, here = self.draw, self.folder / str(number)
        corpus, tokenizer, text = here / "corpus", here / "tokenizer", random_text(self.draw)
        corpus.mkdir(parents=True)
        tokenizer.mkdir()
        form = draw.choice(WHOLE_CORPORA)
        form(draw, corpus, text)
        write_tokenizer(draw, tokenizer, self.base)
        damages, flipped = [], False
        if draw.random() < 0.35:
            damages.append(draw.choice(CORPUS_DAMAGES))
            damages[-1](draw, corpus)
        elif draw.random() < 0.3 and form in (table, shards):
            flip(draw, corpus)
            flipped = True
        if draw.random() < 0.4:
            damages.append(draw.choice(TOKENIZER_DAMAGES))
            damages[-1](draw, tokenizer)
        expected = [index for line in text.splitlines(keepends=True) for index in self.bpe.encode(line).ids]
        fault = self.judge(corpus, tokenizer, expected, bool(damages), flipped)
        if fault:
            kind, what = fault
            self.faults[kind] += 1
            done = ", ".join(change.__name__ for change in (form, *damages, *([flip] if flipped else ())))
            print(f"trial {number}: {kind}: {done}: {what}", file=sys.stderr)

    def judge(self, corpus: Path, tokenizer: Path, expected: list[int], damaged: bool, flipped: bool):
        """The kind of fault and what was seen, or None."""
        try:
            with limited():
                cache = self.folder / "cache"
                split = load_corpus(str(corpus), str(tokenizer), splits=["test"], cache_dir=cache).splits["test"]
        except Hang:
            return "hang", f"over {HANG_SECONDS} s"
        except (ValueError, CorpusUnavailable) as error:
            message = str(error)
            if "\n" in message or len(message) > 1_000 or str(corpus.parent) not in message:
                return "traceback", message[:300]
            return None if damaged or flipped else ("refused", message)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return "traceback", "".join(traceback.format_exception_only(error))[:300].strip()
        if damaged:
            return "accepted", f"{len(split.ids)} ids, expected a refusal"
        same = split.ids.tolist() == expected
        return None if same else ("changed", f"{len(split.ids)} ids, expected {len(expected)}")


@contextmanager
def limited() -> Iterator[None]:
    """Ends what takes too long."""

    def end(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(trials: int, seed: int, most_seconds: float = float("inf")) -> dict[str, object]:
    """As many trials as there is time for, and what the last line says of them."""
    started, done = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), seed)
        while done < trials and time.monotonic() - started < most_seconds:
            bench.trial(done)
            done += 1
    seconds = round(time.monotonic() - started, 1)
    return {"script": "corpora", "trials": done, "faults": dict(bench.faults), "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = run(options.trials, options.seed)
    print(json.dumps(found))
    return 1 if any(found["faults"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
