"""Text as it is read: one kind of line end, no byte order marks, and a word for what is no text at all."""

from __future__ import annotations

import json
import re

LINE_END, CR, MARK = "\n", "\r", "\ufeff"
MARKS = re.compile(rf"^{MARK}+", re.MULTILINE)
POINTERS = {
    "a git-lfs pointer": re.compile(r"version https://(git-lfs\.github|hawser\.github)\.com/"),
    "a git-annex pointer": re.compile(r"\S*/annex/objects/\S"),
}
MARKUP = re.compile(r"<(!doctype|\?xml|!--|html|head|body|title|svg|rss|feed)\b|<!--|<\?xml", re.IGNORECASE)
ELEMENT = re.compile(r"<([A-Za-z][\w:.-]*)[^<>]*>")
SERVER_ERROR = re.compile(
    r"((error )?[45]\d\d\b[\w :.,-]*|(entry |repository |file |page )?not found|access denied|forbidden|unauthorized|"
    r"invalid username or password|too many requests|bad gateway|service unavailable|internal server error)\W*",
    re.IGNORECASE,
)
CONTROLS = bytes({*range(32), 127} - set(b"\t\n\v\f\r\x1c\x1d\x1e\x1f"))
POINTER_BYTES = 2_000  # longer text is none of the pointers above, nor a server's one line
MOST_CONTROLS = 1e-3  # share of control characters in a text that somebody may have written


def normalized(text: str) -> tuple[str, tuple[str, ...]]:
    """The text with newlines as its only line ends and no byte order mark at the start of a line; what was replaced.

    That is some of "crlf", "cr" and "byte_order_mark", and nothing of a text that is as it should be.
    """
    replaced = []
    if CR in text:
        replaced += ["crlf"] if CR + LINE_END in text else []
        text = text.replace(CR + LINE_END, LINE_END)
        replaced += ["cr"] if CR in text else []
        text = text.replace(CR, LINE_END)
    if text.startswith(MARK) or LINE_END + MARK in text:
        text, replaced = MARKS.sub("", text), [*replaced, "byte_order_mark"]
    return text, tuple(replaced)


def no_text(text: str) -> str | None:
    """What a file of text is where it is no corpus, such as "a git-lfs pointer" or "an HTML or XML page"; None else."""
    if not text or text.isspace():
        return "an empty text"
    if problem := binary(text):
        return problem
    whole = text.strip()
    if len(whole) < POINTER_BYTES:
        found = [name for name, pattern in POINTERS.items() if pattern.match(whole)]
        if found or SERVER_ERROR.fullmatch(whole):
            return found[0] if found else "a server's error message"
    if MARKUP.match(whole) or _is_one_element(whole):
        return "an HTML or XML page"
    return "JSON" if _is_json(whole) else None


def binary(text: str) -> str | None:
    """"binary data" for a text that nobody wrote: a NUL in it, or control characters in numbers; None else."""
    content = text.encode("utf-8", "surrogatepass")
    controls = len(content) - len(content.translate(None, CONTROLS))
    return "binary data" if b"\0" in content or controls > MOST_CONTROLS * len(content) else None


def _is_one_element(text: str) -> bool:
    """Whether all of the text stands between one start tag and its only end tag; `<s>` around each line is not that."""
    opened = ELEMENT.match(text) if text.startswith("<") else None
    return bool(opened) and text.find(f"</{opened[1]}>") == len(text) - len(opened[1]) - 3


def _is_json(text: str) -> bool:
    """Whether the text is one JSON document, or its first line is an object, as in JSON lines."""
    if text[0] not in '{["':
        return False
    line = text.partition(LINE_END)[0]
    return _parses(text) or (text[0] == "{" and _parses(line))


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True
