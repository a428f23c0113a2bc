"""A saved model that writes: text in, text out, piece by piece."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from muse.catalog import SYNTHETIC
from muse.data.corpora import TextCorpus, load_corpus
from muse.data.text import normalized
from muse.data.tokenizers import GPT2, Tokenizer, gpt2_tokenizer

from .build import build_model
from .generate import generate
from .hub_files import saved_tokenizer
from .pretrained import check_tokenizer, local_folder, read_pretrained, served
from .states import ends, recurrent
from .weights import CONFIG_FILE, MODEL_FILE, WEIGHTS_FORMAT, load_trained, read_json, read_tensors

LINE = re.compile(r"[^\n]*\n|[^\n]+")
LOST = "\ufffd"  # what a decoder writes for a sign whose bytes are not all there yet
CONTEXT = 8  # tokens before a piece that are decoded with it: whether a space comes first depends on them


class Writer:
    """A model and the tokenizer that goes with it, from the folder of an exported model or of a finished training."""

    def __init__(self, folder: str | Path, tokenizer: str | None = None) -> None:
        """Read both; `tokenizer` is "gpt2" or a folder, in place of the model's own.

        ValueError, in one line, for what is no such folder, for a tokenizer that is missing, and for another one than
        that of the training.
        """
        folder = local_folder(folder)
        self.tokenizer = None if tokenizer is None else _tokenizer(tokenizer)
        self.model, about = read_model(folder)
        self.tokenizer = self.tokenizer or _own_tokenizer(folder, about)
        size = self.model.config.vocab_size
        if self.tokenizer.vocab_size > size:
            raise ValueError(f"tokenizer: got {self.tokenizer.vocab_size} tokens, expected at most the model's {size}")
        if isinstance(self.tokenizer, Tokenizer):
            check_tokenizer(about, self.tokenizer.vocabulary_sha256, str(tokenizer or folder))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, its lines one by one, line ends as in a corpus."""
        if isinstance(self.tokenizer, TextCorpus):
            return list(self.tokenizer.encode(text))
        return self.tokenizer.encode(LINE.findall(normalized(text)[0]))[0].tolist()

    def written(self, text: str, n_new: int, **choices: object) -> Iterator[str]:
        """Yield what the model writes after a text, n_new tokens of it; `choices` as in `muse.models.generate`.

        ValueError, before anything is computed, for a text with no or too many tokens, and for choices out of range.
        """
        ids, n_seq = self.encode(text), self.model.config.n_seq
        endless = recurrent(self.model) and not ends(self.model)
        if not ids or (len(ids) > n_seq and not endless):
            most = "at least 1" if endless else f"1 to the model's n_seq = {n_seq}"
            raise ValueError(f"text: got {len(ids)} tokens, expected {most}")
        tokens = generate(self.model, torch.tensor([ids]), n_new, **choices)
        return self._pieces(ids, (token.item() for token in tokens))

    def _pieces(self, ids: Sequence[int], tokens: Iterator[int]) -> Iterator[str]:
        seen = list(ids[-CONTEXT:])  # tokens that were shown, and those that wait for the rest of a sign
        shown, decode = len(seen), self.tokenizer.decode
        for token in tokens:
            seen.append(token)
            before, after = decode(seen[:shown]), decode(seen)
            if not after.endswith(LOST) or len(seen) > shown + CONTEXT:
                yield after[len(before) :]
                seen = seen[-CONTEXT:]
                shown = len(seen)
        if rest := seen[shown:]:
            yield decode([*seen[:shown], *rest])[len(decode(seen[:shown])) :]


def read_model(folder: Path) -> tuple[nn.Module, Mapping[str, object]]:
    """The model of a folder as it is served, and what its weights say about their training."""
    if "architectures" in read_json(folder / CONFIG_FILE, advice="expected a saved model or a finished training"):
        return read_pretrained(folder)
    model = load_trained(folder, build_model)
    return served(model).eval(), read_tensors(folder / MODEL_FILE, WEIGHTS_FORMAT)[1]


def _tokenizer(name: str) -> Tokenizer:
    if name != GPT2 and not Path(name).is_dir():
        raise ValueError(f"tokenizer: got {name!r}, expected {GPT2} or a folder")
    return (None if name == GPT2 else saved_tokenizer(Path(name))) or gpt2_tokenizer(name)


def _own_tokenizer(folder: Path, about: Mapping[str, object]) -> Tokenizer | TextCorpus:
    """The tokenizer that lies with a model, or the symbols of the synthetic language where it was trained on that."""
    if found := saved_tokenizer(folder):
        return found
    corpus = about.get("corpus")
    if isinstance(corpus, Mapping) and corpus.get("name") == SYNTHETIC:
        return load_corpus(SYNTHETIC, "corpus", splits=("validation",), synthetic_tokens={"validation": 2})
    raise ValueError(f"{folder}: no tokenizer there, expected --tokenizer: {GPT2} or a folder")
