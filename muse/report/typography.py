"""Typography of a language, applied to finished pages: what templates cannot know of the names they are filled with."""

from __future__ import annotations

import re

from bs4 import BeautifulSoup, NavigableString, Tag

JAPANESE = "\u3040-\u30ff\u3400-\u9fff\uff01-\uff5e\u3001-\u3011"
RULES = (
    (rf"(?<=[{JAPANESE}]) ?\(([^()（）]*)\)", r"（\1）"),
    (rf"(?<=[{JAPANESE}]): ?", "："),
    (rf"(?<=[{JAPANESE}]) +(?=[{JAPANESE}])", ""),
    (r" +(?=[、。：）」；～（「])|(?<=[、。：（「；～）」]) +", ""),
)
"""Brackets and colons after Japanese are full width, and there is no space between Japanese letters or at signs."""

SIGNS = tuple("、。：（；～）」")
"""Signs that bring their own space along, also where a tag ends behind them."""

SPOKEN = ("alt", "aria-label", "title", "data-csv", "data-svg", "data-with")
"""Attributes that readers see or hear."""


def typeset_text(text: str, language: str) -> str:
    """Return a text as the language writes it."""
    if language == "ja":
        for form, better in RULES:
            text = re.sub(form, better, text)
    return text


def typeset(soup: BeautifulSoup, language: str) -> None:
    """Write all texts of a page as the language does, figures included; code and foreign texts stay as they are."""
    if language != "ja":
        return
    for node in soup.find_all(string=True):
        is_text = type(node) is NavigableString or _is_figure(node.parent)
        if not is_text or _is_foreign(node.parent):
            continue
        better = typeset_text(str(node), language)
        if str(node.find_previous(string=True) or "").endswith(SIGNS):
            better = better.lstrip(" ")
        if better != node:
            node.replace_with(type(node)(better))
    for tag in soup.find_all(True):
        for name in SPOKEN:
            if name in tag.attrs and not _is_foreign(tag):
                tag[name] = typeset_text(tag[name], language)


def _is_figure(tag: Tag) -> bool:
    return tag.name == "script" and tag.get("type") == "application/json"


def _is_foreign(tag: Tag) -> bool:
    """Whether a tag lies in code or in a text that is marked as one of another language."""
    return any(one.name in ("code", "pre", "style") or one.get("lang", "ja") != "ja" for one in (tag, *tag.parents))
