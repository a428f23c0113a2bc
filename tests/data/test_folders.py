"""What a corpus folder promises: all shards, one kind of line end, text and nothing else, and no more than fits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import muse.data.tables
from muse.data.corpora import load_corpus, median_word_bytes
from muse.data.text import no_text, normalized

parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")

LINES = [" \n", " = One = \n", " \n", " a café . \n", " and b \n", " \n", " = Two = \n", " \n", " the end . \n"]
TEXT = "".join(LINES)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MUSE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A corpus whose training split is TEXT, so that each test split meets the same words."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.txt").write_bytes(TEXT.encode())
    return tmp_path / "corpus"


def load(folder: Path):
    """The corpus and its test split, in words of its training split."""
    corpus = load_corpus(str(folder), "corpus", splits=["test"])
    return corpus, corpus.splits["test"]


def write_table(path: Path, rows: list, kind=None, **options: object) -> Path:
    parquet.write_table(pyarrow.table({"text": pyarrow.array(rows, kind)}), path, **options)
    return path


def refused(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as found:
        load(folder)
    assert str(folder) in str(found.value)
    return str(found.value)


def plain(folder: Path):
    """The test split of TEXT as a plain file."""
    (folder / "test.txt").write_bytes(TEXT.encode())
    found = load(folder)[1]
    (folder / "test.txt").unlink()
    return found


def same(split, expected) -> bool:
    starts = split.document_starts.tolist() == expected.document_starts.tolist()
    return starts and (split.sha256, split.num_words, split.num_bytes) == (
        expected.sha256, expected.num_words, expected.num_bytes,
    )  # fmt: skip


def test_shards_are_read_in_the_order_of_their_numbers(folder):
    expected = plain(folder)
    for index in range(11, -1, -1):
        write_table(folder / f"test-{index}-of-12.parquet", LINES[index : index + 1], pyarrow.string())
    corpus, split = load(folder)
    assert same(split, expected)
    assert [Path(file.path).name for file in corpus.files[1:4]] == [f"test-{index}-of-12.parquet" for index in range(3)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test-00000-of-00003", "test-00002-of-00003"], "test must have shards 0 to 2, each once; missing: 00001"),
        (["test-00000-of-00002", "test-00001-of-00002", "test-1-of-2"], "doubled: test-00001-of-00002.parquet, test-1"),
        (["test-00000-of-00001", "test-00001-of-00001"], "surplus: test-00001-of-00001.parquet"),
        (["test-00001-of-00002", "test-00002-of-00002"], "missing: 00000; surplus: test-00002-of-00002.parquet"),
        (["test-00000-of-00002", "test-00001-of-00003"], "must be of one number, got of 2, 3"),
        (["test-00000-of-00000"], "surplus: test-00000-of-00000.parquet"),
        (["test-0-of-9999999999999"], "missing: 00001, 00002, 00003, 00004, 00005, ..."),
        (["test", "test-00000-of-00001"], "got both: test.parquet, test-00000-of-00001.parquet"),
        (["test-00000-of-00001", "test-2"], "got beside it test-2.parquet"),
        (["test", "test.old"], "got beside it test.old.parquet"),
        (["test", "Test"], "got beside it Test.parquet"),
        (["test", "test (1)"], "got beside it test (1).parquet"),
        (["test", "test2"], "got beside it test2.parquet"),
        (["test-a"], "got neither"),
    ],
)
def test_shards_are_a_promise(folder, names, message):
    for name in names:
        write_table(folder / f"{name}.parquet", LINES)
    assert message in refused(folder)


def test_files_of_another_first_word_are_nobodys_business(folder):
    expected = plain(folder)
    (folder / "test.txt").write_bytes(TEXT.encode())
    for name in ("tests.txt", "README.md", "retest.txt", ".test.txt.swp", "testing.parquet"):
        (folder / name).write_text("something else")
    assert same(load(folder)[1], expected)


@pytest.mark.parametrize("number", ["4.txt", "9.txt"])
def test_what_is_no_file_is_named(folder, number):
    (folder / "test.txt").mkdir() if number == "4.txt" else (folder / "test.txt").symlink_to("/dev/zero")
    assert "test.txt must be a file, got a" in refused(folder)


FORMS = {
    "crlf": (lambda text: text.replace("\n", "\r\n"), ["crlf"]),
    "cr": (lambda text: text.replace("\n", "\r"), ["cr"]),
    "mixed": (lambda text: text.replace("\n", "\r\n", 3).replace(". \n", ". \r"), ["crlf", "cr"]),
    "mark": (lambda text: "\ufeff" + text, ["byte_order_mark"]),
    "marks of joined files": (lambda text: ("\ufeff" + text).replace(" = Two", "\ufeff = Two"), ["byte_order_mark"]),
    "mark and crlf": (lambda text: "\ufeff" + text.replace("\n", "\r\n"), ["crlf", "byte_order_mark"]),
    "as it is": (lambda text: text, []),
}


@pytest.mark.parametrize("form", FORMS)
def test_another_line_end_or_mark_changes_no_number(folder, form):
    change, replaced = FORMS[form]
    expected = plain(folder)
    (folder / "test.txt").write_bytes(change(TEXT).encode())
    corpus, split = load(folder)
    assert same(split, expected)
    assert [list(file.normalized) for file in corpus.files[:2]] == [[], replaced]
    (folder / "test.txt").unlink()
    rows = change("\0".join(LINES)).split("\0")
    write_table(folder / "test.parquet", rows)
    corpus, split = load(folder)
    assert same(split, expected)
    assert corpus.files[1].normalized == tuple(sorted(replaced))


def test_rows_that_lost_their_newline_and_kept_the_rest_of_it(folder):
    expected = plain(folder)
    write_table(folder / "test.parquet", [line.replace("\n", "\r") for line in LINES])
    assert same(load(folder)[1], expected)


def test_a_line_end_that_may_be_two_is_refused(folder):
    (folder / "test.txt").write_bytes(TEXT.replace("\n", "\r\r\n").encode())
    assert "line ends that can be told apart" in refused(folder)


def test_marks_inside_a_line_and_other_separators_stay():
    text = "a \ufeffb\x85c\u2028d\x0be\n"
    assert normalized(text) == (text, ())


NO_TEXTS = {
    "a git-lfs pointer": ["version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"],
    "a git-annex pointer": ["/annex/objects/MD5E-s5--e9\n", "../.git/annex/objects/x/y/MD5E-s5--e9/MD5E-s5--e9.txt"],
    "an HTML or XML page": [
        "<!DOCTYPE html>\n<p>Not found", " \n<HTML><body>502</body></HTML>", '<?xml version="1.0"?><a/>',
        "<!-- x --><p>", "<Error><Code>NoSuchKey</Code></Error>\n", "<h1>404 Not Found</h1>", "<head><title>x",
    ],
    "JSON": ['{"error": "x"}', '[{"message": 1}]\n', '{"text": "a"}\n{"text": "b"}\n', '"Not Found"', "[" * 99_999],
    "a server's error message": ["404: Not Found", "Entry not found\n", "Access Denied.", "502 Bad Gateway"],
    "an empty text": ["", " \n\t\n", "\ufeff"],
    "binary data": ["a\0b c\n", "words\x01\x02\x03\n", "w\0o\0r\0d\0"],
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_TEXTS)
def test_what_is_no_corpus_is_refused_by_name(folder, kind):
    for text in NO_TEXTS[kind]:
        for form in (text, "\ufeff" + text.replace("\n", "\r\n")):
            (folder / "test.txt").write_bytes(form.encode())
            assert refused(folder) == f"{folder / 'test.txt'} must be a corpus, got {kind}", text


@pytest.mark.parametrize("text", [
    "<unk> is a word\n", "<s> a b </s>\n<s> c </s>\n", "<doc id=1>\na\n</doc>\n<doc id=2>\nb\n</doc>\n",
    '"So" it was\n', "[ 1 ] a note\n", "{ and }\n", "404 is a number\nand more\n", "version https of it\n",
    "/annex of the house\n", "é\x85\n",
    "Access Denied is a book about it\n", "<a href=x>link</a> and text\n",
])  # fmt: skip
def test_what_only_looks_like_it_is_text(text):
    assert no_text(text) is None


def test_a_table_that_is_none_says_what_it_is(folder):
    for content, what in (
        (b"version https://git-lfs.github.com/spec/v1\nsize 3\n", "a git-lfs pointer"),
        (b"<html></html>", "an HTML or XML page"), (b"", "an empty text"), (b"PAR1", "readable parquet"),
    ):  # fmt: skip
        (folder / "test.parquet").write_bytes(content)
        assert what in refused(folder)
    for rows in ([], ["", ""], ["a\0"]):
        write_table(folder / "test.parquet", rows, pyarrow.string())
        assert "test.parquet must be a corpus, got" in refused(folder)


@pytest.mark.parametrize(("rows", "got"), [
    ([1], "int64"), ([["a"]], "list"), ([b"a"], "binary"), ([1.5], "double"), (["a", None], "missing values"),
])  # fmt: skip
def test_a_column_of_something_else_is_refused(folder, rows, got):
    write_table(folder / "test.parquet", rows)
    assert "test.parquet must hold text in every row of its column 'text', got" in (message := refused(folder))
    assert got in message


def test_damaged_tables_are_one_line(folder):
    """Each byte of a small table changed in turn: refused, or the text is as it was."""
    expected = plain(folder)
    path = write_table(folder / "test.parquet", LINES, compression="snappy", write_page_checksum=True)
    content = path.read_bytes()
    refusals, accepted, places = 0, 0, range(4, len(content), 97)
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            split = load(folder)[1]
        except ValueError as error:
            refusals += str(path) in str(error) and "\n" not in str(error)
        else:
            assert same(split, expected)
            accepted += 1
    assert (refusals + accepted, refusals > 2) == (len(places), True)
    path.write_bytes(content[: len(content) // 2])
    assert "must be a readable parquet file" in refused(folder)


def test_a_damage_that_ends_the_reader_is_one_line(folder, monkeypatch):
    write_table(folder / "test.parquet", LINES)
    reader = folder / "reader.py"
    reader.write_text("import os, sys\nprint('[\"half', end='', flush=True)\nos.abort()\n")
    monkeypatch.setattr(muse.data.tables, "__file__", str(reader))
    assert "test.parquet must be a readable parquet file: its reader ended with -6" in refused(folder)
    reader.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(muse.data.tables, "START_SECONDS", 0.5)
    assert "its reader took longer than" in refused(folder)


def test_a_small_table_that_unpacks_to_gigabytes_is_refused_before_it_does(folder):
    words = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 4000, pyarrow.int32()), ["word " * 200_000])
    parquet.write_table(pyarrow.table({"text": words}), folder / "test.parquet")
    assert (folder / "test.parquet").stat().st_size < 100_000
    assert "must unpack to at most 1,073,741,824 bytes, as text does; got 4,000,000,000" in refused(folder)
    write_table(folder / "test.parquet", ["word " * 15_000_000], compression="zstd", use_dictionary=False)
    assert "got 75,0" in refused(folder)  # from the file's own list of what is in it


def test_a_text_beyond_the_limit_is_not_read(folder):
    with (folder / "test.txt").open("wb") as file:
        file.truncate(2**34)
    assert "test.txt must be a corpus, got an empty text" not in (said := refused(folder))
    assert said.endswith("test.txt must be a corpus, got binary data")


def test_an_unreadable_file_is_one_line(folder, monkeypatch):
    (folder / "test.txt").write_bytes(TEXT.encode())

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(ValueError, match=r"train.txt must be a readable file: Permission denied"):
        load(folder)


@pytest.mark.parametrize("name", ["nowhere", "a\0b", "x" * 5000, "file"])
def test_a_folder_that_is_none_is_one_line(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"corpus must be .* an existing folder, got [^\n]{1,220}$"):
        load_corpus(str(tmp_path / name), "corpus")


def test_the_test_split_alone_is_enough_where_it_is_asked_for(folder):
    (folder / "train.txt").unlink()
    (folder / "test.txt").write_bytes(TEXT.encode())
    assert "must hold either train.txt" in refused(folder)  # a vocabulary of the training split needs it
    with pytest.raises(ValueError, match=r"no vocab.json and no merges.txt"):
        load_corpus(str(folder), str(folder), splits=["test"])  # past the corpus


def test_a_text_without_spaces_is_told_by_its_median_word(folder):
    assert median_word_bytes("one two three") == 3
    assert median_word_bytes("") == 0
    chinese = "这是一个没有空格的句子它很长。\n" * 20
    (folder / "test.txt").write_bytes(chinese.encode())
    assert load(folder)[1].median_word_bytes == 45
    assert plain_median(folder) < 5


def plain_median(folder: Path) -> float:
    (folder / "test.txt").write_bytes(TEXT.encode())
    return load(folder)[1].median_word_bytes


def test_what_was_normalized_is_in_the_record():
    from muse.records.schema import InputFile

    old = InputFile.model_validate({"path": "test.txt", "sha256": "0" * 64, "num_bytes": 3})
    assert old.normalized == []
    new = InputFile(path="test.txt", sha256="0" * 64, num_bytes=3, normalized=["crlf", "byte_order_mark"])
    assert json.loads(new.model_dump_json())["normalized"] == ["crlf", "byte_order_mark"]


def test_pieces_of_unk_at_the_end_and_cut_off():
    from muse.data.corpora import _inside_unk

    ids = np.array([5, 1, 2, 3, 1, 2, 1, 2, 3, 1, 2], np.int32)
    inside = _inside_unk(ids, [(1, 2, 3), (9, 9)])
    assert np.flatnonzero(inside.numpy()).tolist() == [2, 3, 7, 8]
    assert _inside_unk(ids[:2], [(1, 2, 3)]) is None
