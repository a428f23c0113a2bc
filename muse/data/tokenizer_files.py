"""The files of a GPT-2 style tokenizer, checked before a library reads them: what it takes for granted, and we don't.

Byte symbols, the results of the merges and the special tokens are the vocabulary, with ids 0, 1, ... each once.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from muse.host.lines import shown

VOCAB, MERGES, WHOLE = "vocab.json", "merges.txt", "tokenizer.json"
CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
END_OF_TEXT = "<|endoftext|>"  # GPT-2's own, which the library adds where a vocabulary lacks it
SPECIAL_NAME = re.compile(r"<[^<>\s]+>|\[[A-Z0-9_]+\]")  # a word that is special without being declared
MOST_FILE_BYTES, MOST_TOKEN_CHARACTERS = 2**27, 500
PLAIN = {  # settings of tokenizer.json that change ids, and what GPT-2's say
    "normalizer": (None,),
    "truncation": (None,),
    "padding": (None,),
    "model.type": ("BPE", None),
    "model.dropout": (None, 0),
    "model.continuing_subword_prefix": (None, ""),
    "model.end_of_word_suffix": (None, ""),
    "model.byte_fallback": (None, False),
    "model.ignore_merges": (None, False),
    "pre_tokenizer.type": ("ByteLevel",),
    "pre_tokenizer.add_prefix_space": (False,),
    "pre_tokenizer.use_regex": (None, True),
    "decoder.type": ("ByteLevel",),
}


@dataclass
class Definition:
    """What files say: words and merges, added tokens by id, and the names of special tokens; and which file said it."""

    words: dict[str, int]
    merges: list[tuple[str, str]]
    words_file: Path
    merges_file: Path
    added: dict[str, int] = field(default_factory=dict)
    special: set[str] = field(default_factory=lambda: {END_OF_TEXT})


def read_definition(folder: Path) -> tuple[Definition, list[Path]]:
    """The tokenizer of a folder with vocab.json and merges.txt, tokenizer.json, or all of them saying the same.

    Returns the files that were read too. Raises ValueError in one line: the file, what it should hold and what it does.
    """
    here = [name for name in (VOCAB, MERGES, WHOLE, CONFIG, SPECIAL, ADDED) if _is_file(folder / name)]
    missing = [name for name in (VOCAB, MERGES) if name not in here]
    if missing and WHOLE not in here:
        expected = f"'gpt2', 'corpus' or a folder with {VOCAB} and {MERGES} or with {WHOLE}"
        got = f"{str(folder)[:200]!r}: no {' and no '.join(missing)} there"
        raise ValueError(f"tokenizer must be {expected}, got {got}")
    documents = {name: _document(folder / name) for name in here if name != MERGES}
    found = _whole(folder / WHOLE, documents[WHOLE]) if WHOLE in here else None
    words = _words(folder / VOCAB, documents[VOCAB]) if VOCAB in here else None
    merges = _merges(folder / MERGES, _merge_lines(folder / MERGES)) if MERGES in here else None
    if found:
        for name, own, theirs in ((VOCAB, words, found.words), (MERGES, merges, found.merges)):
            if own is not None and own != theirs:
                difference = _difference(own, theirs)
                raise ValueError(f"{folder / name} and {folder / WHOLE} must say the same, got {difference}")
    else:
        found = Definition(words, merges, folder / VOCAB, folder / MERGES)
    _read_special(folder, documents, found)
    _check(found)
    return found, [folder / name for name in here]


def byte_symbols() -> set[str]:
    """The 256 characters that stand for bytes in a byte-level vocabulary (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return {chr(byte) for byte in printable} | {chr(256 + index) for index in range(256 - len(printable))}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise ValueError(f"{path} must be at most {MOST_FILE_BYTES:,} bytes, got {path.stat().st_size:,}")
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ValueError(f"{path} must be a readable file: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8: {error}") from error


def _document(path: Path) -> dict:
    """A JSON object whose keys are there once."""

    def once(pairs: list[tuple[str, object]]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(f"{shown(twice)} stands there twice")
        return found

    try:
        found = json.loads(_text(path), object_pairs_hook=once)
    except RecursionError:
        raise ValueError(f"{path} must be JSON: nested too deeply") from None
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(str(path)) else f"{path} must be JSON: {message}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must be a JSON object, got {shown(found)}")
    return found


def _words(path: Path, words: object) -> dict[str, int]:
    if not isinstance(words, dict) or not words:
        got = "none" if words == {} else shown(words)
        raise ValueError(f"{path} must map words to ids, got {got}")
    sizes, ids = set(map(len, words)), words.values()
    if set(map(type, ids)) != {int} or min(ids) < 0 or min(sizes) < 1 or max(sizes) > MOST_TOKEN_CHARACTERS:
        for word, index in words.items():
            _check_token(path, word, index)
    return words


def _check_token(path: Path, word: object, index: object) -> None:
    if not isinstance(word, str) or not word:
        raise ValueError(f"{path} must name tokens by text, got {shown(word)}")
    if len(word) > MOST_TOKEN_CHARACTERS:
        raise ValueError(f"{path}: a token must have at most {MOST_TOKEN_CHARACTERS} characters, got {len(word):,}")
    if type(index) is not int or index < 0:
        raise ValueError(f"{path}: the id of {shown(word)} must be a number from 0, got {shown(index)}")


def _merge_lines(path: Path) -> list[str]:
    lines = _text(path).replace("\r\n", "\n").split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    return lines[1:] if lines and lines[0].startswith("#version") else lines


def _merges(path: Path, merges: object) -> list[tuple[str, str]]:
    """Pairs of symbols, from lines or from pairs."""
    if not isinstance(merges, list):
        raise ValueError(f"{path} must hold a list of merges, got {shown(merges)}")
    lists = (merge.split(" ") if type(merge) is str else merge if type(merge) is list else () for merge in merges)
    found = list(map(tuple, lists))
    symbols = list(chain.from_iterable(found))
    if not (set(map(len, found)) <= {2} and set(map(type, symbols)) <= {str} and all(symbols)):
        wrong = next(i for i, pair in enumerate(found) if len(pair) != 2 or not all(type(s) is str and s for s in pair))
        raise ValueError(f"{path}: merge {wrong + 1} must be two symbols, got {shown(merges[wrong])}")
    return found


def _whole(path: Path, document: Mapping[str, object]) -> Definition:
    """tokenizer.json, where its settings are GPT-2's."""
    for part in ("model", "pre_tokenizer", "decoder"):
        if not isinstance(document.get(part), dict):
            raise ValueError(f"{path}: {part} must be an object, got {shown(document.get(part))}")
    for name, expected in PLAIN.items():
        part, _, key = name.rpartition(".")
        value = (document[part] if part else document).get(key)
        if isinstance(value, dict | list) or value not in expected:
            raise ValueError(f"{path}: {name} must be GPT-2's, {expected[0]!r}, got {shown(value)}")
    model = document["model"]
    found = Definition(_words(path, model.get("vocab")), _merges(path, model.get("merges")), path, path)
    _add(path, document.get("added_tokens") or [], found)
    return found


def _add(path: Path, tokens: object, found: Definition) -> None:
    """Takes a list of {id, content, ...}."""
    if not isinstance(tokens, list):
        raise ValueError(f"{path}: added_tokens must be a list, got {shown(tokens)}")
    for token in tokens:
        if not isinstance(token, dict):
            raise ValueError(f"{path}: an added token must be an object, got {shown(token)}")
        word, index = token.get("content"), token.get("id")
        _check_token(path, word, index)
        known = found.added.get(word, found.words.get(word, index))
        if known != index:
            raise ValueError(f"{path}: the id of {shown(word)} must be {known} as elsewhere, got {index}")
        found.added[word] = index
        found.special.add(word)


def _read_special(folder: Path, documents: Mapping[str, dict], found: Definition) -> None:
    """What the smaller files say of added and special tokens."""
    _add(folder / ADDED, [{"content": word, "id": index} for word, index in documents.get(ADDED, {}).items()], found)
    config = documents.get(CONFIG, {})
    if config.get("split_special_tokens"):
        raise ValueError(f"{folder / CONFIG}: split_special_tokens must be false, got true")
    by_id = config.get("added_tokens_decoder") or {}
    if not isinstance(by_id, dict) or not all(re.fullmatch("[0-9]{1,18}", key) for key in by_id):
        raise ValueError(f"{folder / CONFIG}: added_tokens_decoder must be an object by id, got {shown(by_id)}")
    tokens = [value | {"id": int(key)} if isinstance(value, dict) else value for key, value in by_id.items()]
    _add(folder / CONFIG, tokens, found)
    for name in (CONFIG, SPECIAL):
        for key, value in documents.get(name, {}).items():
            if key.endswith(("_token", "_special_tokens")):
                found.special |= set(_names(value))


def _names(value: object) -> Iterable[str]:
    """Names of special tokens in a value of the smaller files: a text, {content: text}, or several of them."""
    if isinstance(value, dict):
        value = [value["content"]] if "content" in value else list(value.values())
    if isinstance(value, list):
        return [name for part in value for name in _names(part)]
    return [value] if isinstance(value, str) else []


def _check(found: Definition) -> None:
    """That ids are 0, 1, ... each once, and that every word is a byte, the result of a merge or special."""
    ids = found.words | found.added
    _check_ids(found.words_file, ids)
    symbols = byte_symbols()
    if lost := symbols - ids.keys():
        raise ValueError(
            f"{found.words_file} must hold the 256 symbols of bytes, got {256 - len(lost)}: no {shown(min(lost))}"
        )
    reached = set(symbols)
    for left, right in found.merges:
        if left not in reached or right not in reached:
            merge = shown(f"{left} {right}")
            raise ValueError(f"{found.merges_file}: a merge must join what is there before it, got {merge}")
        reached.add(left + right)
    if len(set(found.merges)) < len(found.merges):
        twice = shown(" ".join(Counter(found.merges).most_common(1)[0][0]))
        raise ValueError(f"{found.merges_file} must hold each merge once, got {twice} more often")
    if unknown := reached - found.words.keys() - symbols:
        merges, word = found.merges_file.name, shown(min(unknown))
        raise ValueError(f"{found.words_file} must hold what every merge of {merges} makes, got no {word}")
    if both := next((word for word in found.added if word in reached), None):
        raise ValueError(f"{found.words_file.parent}: an added token must be no word of the merges, got {shown(both)}")
    lost = [word for word in ids.keys() - reached - found.special if not SPECIAL_NAME.fullmatch(word)]
    if lost:
        raise ValueError(
            f"{found.merges_file} must reach every word of {found.words_file.name}, but for special ones; "
            f"got {len(found.merges):,} merges, without {len(lost):,} words such as {shown(min(lost))}"
        )


def _check_ids(path: Path, ids: Mapping[str, int]) -> None:
    words: dict[int, str] = {}
    for word, index in ids.items():
        if words.setdefault(index, word) != word:
            both = f"{shown(words[index])} and {shown(word)}"
            raise ValueError(f"{path}: an id must be of one token, got {index} of {both}")
    if (last := max(words)) >= len(words):
        got = f"{last} of {shown(words[last])}"
        raise ValueError(f"{path}: {len(words):,} tokens must have the ids from 0 to {len(words) - 1}, got {got}")


def _difference(own: Sequence | Mapping, theirs: Sequence | Mapping) -> str:
    if len(own) != len(theirs):
        return f"{len(own):,} and {len(theirs):,} entries"
    if isinstance(own, Mapping):
        word = next(word for word in own if own[word] != theirs.get(word))
        return f"{own[word]} and {shown(theirs.get(word))} for {shown(word)}"
    number = next(number for number, pair in enumerate(own) if pair != theirs[number])
    return f"{shown(' '.join(own[number]))} and {shown(' '.join(theirs[number]))} as merge {number + 1}"
