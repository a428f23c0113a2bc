"""The words of the report, in every language it is written in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources

from muse.catalog import LANGUAGES


@cache
def texts(language: str) -> Mapping[str, str]:
    """Return the report's texts by key; ValueError for a language that has none."""
    if language not in LANGUAGES:
        raise ValueError(f"language: got {language!r}, expected one of {', '.join(LANGUAGES)}")
    return json.loads(resources.files(__name__).joinpath(f"{language}.json").read_text(encoding="utf-8"))


def stage_title(stage: str, words: Mapping[str, str]) -> str:
    """Return a stage's name as readers know it, in the language of the words."""
    return words.get(f"stage.{stage}", stage)


def say(language: str, key: str, **fields: object) -> str:
    """Return a text of the report with its fields filled in."""
    words = texts(language)
    return words[key].format(colon=words["colon"], **fields)


def unit_label(unit: str, language: str) -> str:
    """Return a unit as it is written in the language."""
    return texts(language).get(f"unit.{unit}", unit)


def span(language: str, ends: Iterable[str]) -> str:
    """Return the two ends of a range as one text; an empty one for none."""
    return texts(language)["range"].join(ends)


def join(language: str, items: Iterable[str]) -> str:
    """Return the items as one enumeration."""
    return texts(language)["join"].join(items)
