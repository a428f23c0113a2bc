"""How long a text is in words, bytes and characters, and whether spaces part its words at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .corpus import TokenSplit

SAMPLE = 100_000  # characters of a text whose words tell the median
LONGEST_MEDIAN = 30  # bytes; where the median word is longer, it is a phrase or a line, for want of spaces


@dataclass(frozen=True)
class TextSplit(TokenSplit):
    """A split that knows its characters; apart from TokenSplit, which is part of every training's key."""

    num_characters: int = 0  # of the text, as Unicode counts them, ends of lines included


def canonical_words(text: str) -> int:
    """Whitespace-separated words plus one for each end of line."""
    return len(text.split()) + text.count("\n")


def median_word_bytes(text: str) -> float:
    """Median length of the first words of a text, in bytes of UTF-8; 0 without any."""
    lengths = [len(word.encode()) for word in text[:SAMPLE].split()]
    return float(np.median(lengths)) if lengths else 0.0


def has_words(median_bytes: float) -> bool:
    """Whether spaces part the words of a text with this median; else a perplexity per word has no meaning."""
    return median_bytes <= LONGEST_MEDIAN
