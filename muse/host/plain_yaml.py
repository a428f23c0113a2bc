"""Small YAML texts of people: read from regular files only, and within limits, so that no text is a bomb."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    NodeEvent,
)

from .lines import one_line

MOST_BYTES = 2**18
MOST_VALUES = 4000
MOST_LEVELS = 16
MOST_BITS = 2**12  # of an integer, which Python can then write


class TextError(ValueError):
    """A file or text that is no small YAML text; the message says why, in one line."""


def read_text(path: str | Path) -> str:
    """Return the text of a small regular file; TextError, at once, for a pipe, a device or what is too large."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise TextError("cannot be read (not a regular file)")
            content = file.read(MOST_BYTES + 1)
    except IsADirectoryError as error:
        raise TextError("cannot be read (Is a directory)") from error
    except OSError as error:
        raise TextError(f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        if isinstance(error, TextError):
            raise
        raise TextError(f"cannot be read ({error})") from error
    if len(content) > MOST_BYTES:
        raise TextError(f"is larger than {MOST_BYTES:,} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"not YAML: {error}") from error


def parse(text: str) -> object:
    """Parse YAML 1.2, where 1e-3 is a float, 010 is ten and yes is a word; TextError for what is none."""
    if len(text) > MOST_BYTES:
        raise TextError(f"not YAML: longer than {MOST_BYTES:,} characters")
    try:
        _check_size(YAML(typ="safe", pure=True).parse(text))
        return _within_bits(YAML(typ="safe", pure=True).load(text))
    except TextError:
        raise
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        what = error.problem or error.context or type(error).__name__
        raise TextError(f"not YAML: {one_line(what)}{where}") from error
    except YAMLError as error:
        raise TextError(f"not YAML: {one_line(' '.join(str(error).split()))}") from error
    except Exception as error:  # what a constructor of YAML says of `!!bool 7`, of an integer of 5,000 digits, ...
        raise TextError(f"not YAML: {type(error).__name__}: {one_line(str(error))}") from error


def _within_bits(value: object) -> object:
    """Raise TextError for an integer that Python would not write as decimals, else return the value."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise TextError(f"not YAML of settings: an integer of {value.bit_length():,} bits")
    if isinstance(value, dict):
        _within_bits([*value, *value.values()])
    elif isinstance(value, list | tuple | set):
        for entry in value:
            _within_bits(entry)
    return value


def _check_size(events: Iterable[object]) -> None:
    """Raise TextError for more values or levels than a text of settings has; aliases count as what they stand for."""
    values, open_, sizes = 0, [], {}  # open_: (anchor, values before it) of collections that are not closed yet
    for event in events:
        if isinstance(event, DocumentStartEvent) and (event.version or event.tags):
            raise TextError("not YAML: a % directive, expected none")
        if isinstance(event, CollectionEndEvent):
            anchor, before = open_.pop()
            sizes[anchor] = values - before
        elif isinstance(event, NodeEvent):
            values += 1
            if isinstance(event, AliasEvent):
                if event.anchor not in sizes:
                    raise TextError(f"not YAML: *{one_line(event.anchor)} is not defined before it")
                values += sizes[event.anchor]
            elif isinstance(event, CollectionStartEvent):
                open_.append((event.anchor, values))
            else:
                sizes[event.anchor] = 0
        if values > MOST_VALUES:
            raise TextError(f"not YAML of settings: more than {MOST_VALUES:,} values")
        if len(open_) > MOST_LEVELS:
            raise TextError(f"not YAML of settings: more than {MOST_LEVELS} levels")
