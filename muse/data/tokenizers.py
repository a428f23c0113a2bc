"""Lines of text to token ids and back: GPT-2's byte-level BPE from the hub or a folder, or a corpus's own words."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .corpus import SourceFile
from .hub import from_cache_or_hub, quiet_datasets
from .tokenizer_files import END_OF_TEXT, read_definition

GPT2_HUB_ID = "openai-community/gpt2"
GPT2 = "gpt2"  # the name of its tokenizer on the hub
UNKNOWN, NEWLINE = "<unk>", "\n"


@dataclass(frozen=True)
class Tokenizer:
    """A mapping from lines (newline kept) to ids; `sha256` names the mapping, so that it can key a cache."""

    vocab_size: int  # smallest vocabulary that holds every id
    sha256: str
    files: tuple[SourceFile, ...]
    encode: Callable[[list[str]], tuple[np.ndarray, np.ndarray]]  # lines -> int32 ids (tokens,), int64 tokens per line
    decode: Callable[[Sequence[int]], str]
    unk_pieces: tuple[tuple[int, ...], ...] = ()  # ids of <unk> after a space and without one, where they are several
    vocabulary_sha256: str = ""
    definition: bytes = b""  # of a GPT-2 style one: its tokenizer.json


def gpt2_tokenizer(source: str, hub_timeout_seconds: float = 10) -> Tokenizer:
    """GPT-2's tokenizer from the hub (`source` "gpt2") or from a folder that `read_definition` reads."""
    if source != GPT2:
        return _folder_tokenizer(Path(source))
    from transformers import GPT2TokenizerFast

    def load():
        return _checked(GPT2TokenizerFast.from_pretrained(GPT2_HUB_ID, local_files_only=True), GPT2_HUB_ID)

    fetch = f"from transformers import GPT2TokenizerFast; GPT2TokenizerFast.from_pretrained({GPT2_HUB_ID!r})"
    tokenizer = from_cache_or_hub("the gpt2 tokenizer", GPT2_HUB_ID, "model", load, fetch, hub_timeout_seconds)
    return _wrap(tokenizer, files=())


def _folder_tokenizer(folder: Path) -> Tokenizer:
    definition, paths = read_definition(folder)
    from transformers import GPT2TokenizerFast

    files = tuple(SourceFile.of_bytes(path, path.read_bytes()) for path in paths)
    try:
        tokenizer = GPT2TokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except BaseException as error:  # of Rust code too, whose panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ValueError(f"tokenizer {str(folder)!r} must be one that transformers reads: {first}") from error
    ids, expected = tokenizer.get_vocab(), definition.words | definition.added
    more = ids.keys() - expected.keys()
    if not expected.items() <= ids.items() or not more <= definition.special or len(set(ids.values())) < len(ids):
        changed = (word for word in expected if ids.get(word) != expected[word])
        wrong = next(changed, None) or next(iter(more), END_OF_TEXT)
        message = f"{wrong[:60]!r} as {expected.get(wrong)}, got {ids.get(wrong)} from transformers"
        raise ValueError(f"tokenizer {str(folder)!r} must have {message}")
    return _wrap(_checked(tokenizer, str(folder)), files, len(ids))


def _checked(tokenizer, name: str):
    """The tokenizer; ValueError where it loses text, as the empty one does that transformers makes of missing files."""
    text = "A title  =\tcaf\u00e9 \u4e00 \U0001f600 , it's 10\n"
    try:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        given_back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    except Exception as error:  # of a Rust library
        given_back = f"{type(error).__name__}: {error}"[:200]
    if given_back != text:
        raise ValueError(f"tokenizer {name!r} must give back the text it is given, got {given_back!r} for {text!r}")
    return tokenizer


def _wrap(tokenizer, files: tuple[SourceFile, ...], vocab_size: int | None = None) -> Tokenizer:
    """A transformers tokenizer as a Tokenizer; without files of its own, its definition is what is recorded."""
    tokenizer.model_max_length = 10**9  # a long line is no mistake here: lines are joined and cut into windows later
    definition = tokenizer.backend_tokenizer.to_str().encode()

    def encode(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        from datasets import Dataset

        return tokenize_dataset(Dataset.from_dict({"text": lines}), tokenizer)

    unk_pieces = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (f" {UNKNOWN}", UNKNOWN))
    return Tokenizer(
        vocab_size=vocab_size or max(tokenizer.get_vocab().values()) + 1,
        sha256=hashlib.sha256(definition).hexdigest(),
        files=files or (SourceFile.of_bytes(GPT2_HUB_ID, definition),),
        encode=encode,
        decode=lambda ids: tokenizer.decode(list(ids), clean_up_tokenization_spaces=False),
        unk_pieces=tuple(pieces for pieces in unk_pieces if len(pieces) > 1),
        vocabulary_sha256=vocabulary_sha256(tokenizer.get_vocab(), json.loads(definition)["model"]["merges"]),
        definition=definition,
    )


def vocabulary_sha256(ids: Mapping[str, int], merges: Sequence[str | Sequence[str]] = ()) -> str:
    """Return the SHA-256 of ids and merges of tokens: the same for one tokenizer, whatever files it was read from."""
    lines = [f"{index} {token}" for token, index in sorted(ids.items(), key=lambda item: item[1])]
    lines += [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return hashlib.sha256("\0".join(lines).encode()).hexdigest()


def tokenize_dataset(dataset, tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Tokenizes the `text` column row by row and joins it: int32 ids (tokens,) and int64 tokens per row (rows,).

    A batch of rows becomes one row, so every column that was there before (an attention mask, say) has to go.
    """

    def join(batch: dict) -> dict:
        rows = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        ids = np.concatenate([np.asarray(row, np.int32) for row in rows])
        return {"ids": [ids], "lengths": [[len(row) for row in rows]]}

    with quiet_datasets():
        joined = dataset.map(
            join, batched=True, remove_columns=dataset.column_names, keep_in_memory=True, load_from_cache_file=False
        )
    joined = joined.with_format("numpy")
    ids, lengths = ([row[column] for row in joined] for column in ("ids", "lengths"))
    return np.concatenate(ids).astype(np.int32), np.concatenate(lengths).astype(np.int64)


def word_tokenizer(training_lines: Iterable[str]) -> Tokenizer:
    """The corpus's own vocabulary: <unk>, the newline and every word of the training split, frequent ones first."""
    counts = Counter(word for line in training_lines for word in line.split())
    words = [UNKNOWN, NEWLINE, *sorted(counts.keys() - {UNKNOWN}, key=lambda word: (-counts[word], word))]
    ids = {word: index for index, word in enumerate(words)}
    definition = "\0".join(words).encode()

    def encode(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [[ids.get(word, 0) for word in line.split()] + [1] * line.endswith(NEWLINE) for line in lines]
        flat = np.fromiter((index for row in rows for index in row), np.int32)
        return flat, np.array([len(row) for row in rows], np.int64)

    def decode(token_ids: Sequence[int]) -> str:
        return " ".join(words[index] for index in token_ids).replace(f"{NEWLINE} ", NEWLINE)

    file = SourceFile.of_bytes("vocabulary of the training split", definition)
    return Tokenizer(len(words), file.sha256, (file,), encode, decode, vocabulary_sha256=vocabulary_sha256(ids))
