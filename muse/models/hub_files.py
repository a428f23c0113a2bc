"""What clients of a hub look for in a model's folder, beside configuration and weights: a modeling file, a tokenizer.

Files of a GPT-2 tokenizer go along as they are. Words of a corpus, or symbols of the synthetic language, become a
`tokenizer.json` (word level) that turns a text into the ids of `muse.data.corpora`, and back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muse.catalog import SYNTHETIC
from muse.data.corpora import load_corpus
from muse.data.corpus import Corpus, SourceFile
from muse.data.grammar import Grammar
from muse.data.text import MARK
from muse.data.tokenizer_files import ADDED, CONFIG, MERGES, SPECIAL, VOCAB, WHOLE
from muse.data.tokenizers import GPT2, NEWLINE, UNKNOWN, Tokenizer, gpt2_tokenizer, vocabulary_sha256

MODEL_TYPE = "muse"
MODELING_FILE = "modeling_muse.py"
MODELING_SOURCE = Path(__file__).with_name("modeling_muse.txt")  # no module of the package: it imports upwards
AUTO_MAP = {
    "AutoConfig": "modeling_muse.MuseConfig",
    "AutoModelForCausalLM": "modeling_muse.MuseForCausalLM",
}
TOKENIZER_FILES = (VOCAB, MERGES, WHOLE, CONFIG, SPECIAL, ADDED)
SPACES = "\t\v\f\r\x1c-\x1f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # of str.split, but "\n"


@dataclass(frozen=True)
class TokenizerFiles:
    """Files of a tokenizer by name, as transformers reads them, and the SHA-256 of its vocabulary."""

    files: Mapping[str, bytes]
    vocabulary_sha256: str
    name: str  # what it was asked for as


def saved_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer whose files lie in a saved model's folder; None without any."""
    if not any((folder / name).is_file() for name in (WHOLE, VOCAB)):
        return None
    if not (folder / WHOLE).is_file() or _kind(folder / WHOLE) != "WordLevel":
        return gpt2_tokenizer(str(folder))
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(folder / WHOLE))
    file = SourceFile.of_bytes(folder / WHOLE, (folder / WHOLE).read_bytes())

    def encode(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        try:
            rows = [found.ids for found in backend.encode_batch(lines)]
        except Exception as error:  # of a Rust library
            raise ValueError(f"{folder / WHOLE}: cannot read a text with other words than its own ({error})") from error
        return np.array([index for row in rows for index in row], np.int32), np.array([len(row) for row in rows])

    def decode(ids: Sequence[int]) -> str:
        return backend.decode(list(ids), skip_special_tokens=False)

    vocabulary = vocabulary_sha256(backend.get_vocab())
    return Tokenizer(backend.get_vocab_size(), file.sha256, (file,), encode, decode, vocabulary_sha256=vocabulary)


def _kind(path: Path) -> object:
    """What a tokenizer.json says that its model is; ValueError where it is none."""
    try:
        return json.loads(path.read_bytes())["model"]["type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not readable as a tokenizer.json ({error!r})") from error


def modeling_source() -> str:
    """The text of the modeling file."""
    return MODELING_SOURCE.read_text(encoding="utf-8")


def tokenizer_files(tokenizer: str | Path | Corpus, corpus: str | None = None) -> TokenizerFiles:
    """The files of "gpt2", of a folder, of "corpus" (the words of the corpus named), or of what a Corpus was read with.

    ValueError, in one line, for what is none of these; CorpusUnavailable where the hub is needed and away.
    """
    if str(tokenizer) == "corpus":
        if corpus is None:
            raise ValueError("tokenizer 'corpus': got no corpus, expected the one whose words are the tokens")
        if corpus == SYNTHETIC:
            return symbol_files()
        tokenizer = load_corpus(corpus, "corpus", splits=["train"])
    if isinstance(tokenizer, Corpus) and tokenizer.tokenizer_name == "corpus":
        if tokenizer.name == SYNTHETIC:
            return symbol_files()
        return _word_files([tokenizer.decode([index]) for index in range(tokenizer.vocab_size)], UNKNOWN)
    return _gpt2_files(str(tokenizer.tokenizer_name if isinstance(tokenizer, Corpus) else tokenizer))


def symbol_files() -> TokenizerFiles:
    """The files of the synthetic language's symbols."""
    return _word_files(Grammar().symbols, None)


def _gpt2_files(name: str) -> TokenizerFiles:
    found, folder = gpt2_tokenizer(name), Path(name)
    paths = [] if name == GPT2 else [folder / each for each in TOKENIZER_FILES if (folder / each).is_file()]
    files = {path.name: path.read_bytes() for path in paths} or {WHOLE: found.definition}
    settings = json.loads(files.get(CONFIG, b"{}"))
    if "tokenizer_class" not in settings:  # without it transformers does not know whose these files are
        files[CONFIG] = _json({"tokenizer_class": "GPT2Tokenizer"} | settings)
    return TokenizerFiles(files, found.vocabulary_sha256, name)


def _word_files(words: Sequence[str], unknown: str | None) -> TokenizerFiles:
    ids = {word: index for index, word in enumerate(words)}
    files = {WHOLE: _json(word_level(ids, unknown)), CONFIG: _json({"tokenizer_class": "TokenizersBackend"})}
    return TokenizerFiles(files, vocabulary_sha256(ids), "corpus")


def word_level(ids: Mapping[str, int], unknown: str | None) -> dict[str, object]:
    """A `tokenizer.json` of words between spaces, line ends being words of their own.

    `unknown` is what other words become. Without it they are an error, and the spaces before a line end are not
    written either, as in the synthetic language. No token is special: in a text, `<unk>` is a word like another.
    """
    marks = {"type": "Replace", "pattern": {"Regex": f"(?m)^{MARK}+"}, "content": ""}
    ends = [{"type": "Replace", "pattern": {"String": end}, "content": NEWLINE} for end in ("\r\n", "\r")]
    split = {"type": "Split", "pattern": {"String": NEWLINE}, "behavior": "Isolated", "invert": False}
    spaces = {"type": "Split", "pattern": {"Regex": f"[{SPACES}]+"}, "behavior": "Removed", "invert": False}
    joined = [(f"{NEWLINE} ", NEWLINE)] if unknown else [(f" {NEWLINE}", NEWLINE), (f"{NEWLINE} ", NEWLINE)]
    written = [{"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in joined]
    spaced = {"type": "WordPiece", "prefix": "\0", "cleanup": False}  # a space before every word but the first
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [*ends, marks]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, spaces]},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [spaced, {"type": "Fuse"}, *written]},
        "model": {"type": "WordLevel", "vocab": dict(ids), "unk_token": unknown or "\0"},
    }


def _json(values: Mapping[str, object]) -> bytes:
    return (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode()
