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

GPT2_HUB_ID = "openai-community/gpt2"
TOKENIZER_FILES = ("vocab.json", "merges.txt")  # required of a folder; the others are read where they exist
OPTIONAL_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
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


def gpt2_tokenizer(source: str, hub_timeout_seconds: float = 10) -> Tokenizer:
    """GPT-2's tokenizer from the hub (`source` "gpt2") or from a folder with vocab.json and merges.txt."""
    if source != "gpt2":
        return _folder_tokenizer(Path(source))
    from transformers import GPT2TokenizerFast

    def load(local_only: bool):
        return _checked(GPT2TokenizerFast.from_pretrained(GPT2_HUB_ID, local_files_only=local_only), GPT2_HUB_ID)

    tokenizer = from_cache_or_hub("the gpt2 tokenizer", GPT2_HUB_ID, "model", load, hub_timeout_seconds)
    return _wrap(tokenizer, files=())


def _folder_tokenizer(folder: Path) -> Tokenizer:
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    if missing:
        expected = "'gpt2', 'corpus' or a folder with vocab.json and merges.txt"
        raise ValueError(f"tokenizer must be {expected}, got {str(folder)!r}: no {' and no '.join(missing)} there")
    from transformers import GPT2TokenizerFast

    present = [path for name in TOKENIZER_FILES + OPTIONAL_FILES if (path := folder / name).is_file()]
    files = tuple(SourceFile.of_bytes(path, path.read_bytes()) for path in present)
    tokenizer = _checked(GPT2TokenizerFast.from_pretrained(str(folder), local_files_only=True), str(folder))
    return _wrap(tokenizer, files)


def _checked(tokenizer, name: str):
    """The tokenizer; ValueError where it loses text, as the empty one does that transformers makes of missing files."""
    text = " = A title = \n"
    given_back = tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False)
    if given_back != text:
        raise ValueError(f"tokenizer {name!r} must give back the text it is given, got {given_back!r} for {text!r}")
    return tokenizer


def _wrap(tokenizer, files: tuple[SourceFile, ...]) -> Tokenizer:
    """A transformers tokenizer as a Tokenizer; without files of its own, its definition is what is recorded."""
    tokenizer.model_max_length = 10**9  # a long line is no mistake here: lines are joined and cut into windows later
    definition = tokenizer.backend_tokenizer.to_str().encode()

    def encode(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        from datasets import Dataset

        return tokenize_dataset(Dataset.from_dict({"text": lines}), tokenizer)

    unk_pieces = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (f" {UNKNOWN}", UNKNOWN))
    return Tokenizer(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        sha256=hashlib.sha256(definition).hexdigest(),
        files=files or (SourceFile.of_bytes(GPT2_HUB_ID, definition),),
        encode=encode,
        decode=lambda ids: tokenizer.decode(list(ids), clean_up_tokenization_spaces=False),
        unk_pieces=tuple(pieces for pieces in unk_pieces if len(pieces) > 1),
        vocabulary_sha256=vocabulary_sha256(tokenizer.get_vocab(), json.loads(definition)["model"]["merges"]),
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
