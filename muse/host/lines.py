"""Lines for people about values of theirs: short, and without characters that do more than show."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

LONGEST_LINE = 300
LONGEST_VALUE = 80
CUT = " ... "


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxtuple = 2, 6, 4, 6
        self.maxstring = self.maxother = self.maxlong = LONGEST_VALUE

    def repr_int(self, value: int, level: int) -> str:
        try:
            return super().repr_int(value, level)
        except ValueError:  # Python writes no integer of more than 4,300 digits
            return f"an integer of {value.bit_length():,} bits"


def shown(value: object) -> str:
    """Return a value as Python writes it, with its middle left out where it is long."""
    return cut(one_line(_Short().repr(value)), 2 * LONGEST_VALUE)


def one_line(text: str) -> str:
    """Return a text with everything that is not printed escaped: line ends, terminal codes, marks of direction."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def cut(text: str, longest: int = LONGEST_LINE) -> str:
    """Return a text whose middle is left out where it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    end = (longest - len(CUT)) // 3
    return text[: longest - len(CUT) - end] + CUT + text[-end:]


def near(word: object, known: Iterable[str]) -> str:
    """Return `did you mean x?` for the known name that a word is nearly, else nothing."""
    if not isinstance(word, str) or len(word) > LONGEST_VALUE:
        return ""
    names = list(known)
    found = difflib.get_close_matches(word, names, n=1) or [
        name for lower in difflib.get_close_matches(word.lower(), [n.lower() for n in names], n=1)
        for name in names if name.lower() == lower
    ]  # fmt: skip
    return f"did you mean {found[0]}?" if found else ""
