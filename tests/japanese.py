"""What of a Japanese page is not Japanese: words in Latin letters that are no names."""

from __future__ import annotations

import json
import re

from bs4 import NavigableString
from builders import soup

NAMES = (
    r"Stage 1 compact|Stage [12]|Phase [23]|GPT-2|Transformer|MUSE|Muon|AdamW|ModReLU|WikiText-2|wikitext-2(-raw)?-v1",
    r"float(16|32|64)|bfloat16|complex(32|64|128)|GPU|CPU|CUDA|VRAM|OS|NaN|Inf|RMS|[FT]?FLOPs?|PyTorch|UTC|SHA-256",
    r"CSV|SVG|JSON|BibTeX|JavaScript|Chromium|git|eager|compile|skip_phase2|<unk>|muse report FOLDER --stills",
    r"[GMk]?iB|GB|nat|sd|top_p|AVX2|AVX512|x86_64|aarch64|Linux|Intel\(R\) Xeon\(R\) Processor",
    r"NVIDIA H\d+( \d+GB HBM3)?",
    r"\b[0-9a-f]{7,64}\b",  # commits and hashes
    r"[\w./-]*[\w-]+\.(json|ipynb|html|md|txt|parquet|log|svg|csv)\b",  # files
    r"\b[a-z]\w*(?:[._*]+\w+)+\b",  # parameters of models, settings, other identifiers
    r"\d+ [kM]\b|\d+[kMG]\b|\b\d[\d.,]*e[-+]\d+\b|\|z\||\be\b",
)
"""Names, which every language writes alike."""

SPOKEN = ("alt", "aria-label", "title", "placeholder", "data-csv", "data-svg", "data-with")
SHOWN = {"text", "name", "ticktext", "hovertext", "hovertemplate"}


def english_in(text: str, more_names: str = "") -> list[str]:
    """Return the words of a page in Latin letters that are no names, each with the text in which it stands.

    Code, program output and what is marked as text of another language is left out.
    """
    page = soup(text)
    assert page.html["lang"] == "ja"
    allowed = "|".join([*NAMES, *filter(None, [more_names])])
    found = []
    for words in _texts(page):
        left = re.sub(allowed, " ", words)
        found += [f"{word}: {words.strip()[:160]}" for word in re.findall(r"[A-Za-z]{2,}", left)]
    return found


def _texts(page):
    for tag in page.select("script[type='application/json']"):
        yield from _drawn(json.loads(tag.get_text()))
    for tag in page.select("script, style, code, pre, [lang]:not([lang=ja])"):
        tag.decompose()
    yield from page.html.find_all(string=lambda text: type(text) is NavigableString)
    for tag in page.find_all(True):
        yield from (tag[name] for name in SPOKEN if name in tag.attrs)


def _drawn(value, key=""):
    """The texts of a figure, without what is markup in them."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _drawn(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _drawn(inner, key)
    elif isinstance(value, str) and key in SHOWN:
        yield re.sub(r"%\{[^}]*\}|<[^>]*>", " ", value)
