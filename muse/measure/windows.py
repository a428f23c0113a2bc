"""Where in a text two models differ most: windows of neighbouring targets, and the text that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Decode = Callable[[Sequence[int]], str]

WINDOW = 100  # targets
WINDOWS = 4  # of each kind
TITLE_TOKENS, TITLE_LETTERS = 24, 60


def extreme_windows(
    difference: np.ndarray, documents: np.ndarray, size: int, most: int = WINDOWS
) -> tuple[list[int], list[int]]:
    """Return the first targets of the windows with the lowest mean difference below 0, and of the highest above.

    difference (targets,) and documents (targets,), in order. Windows lie side by side from the first target of a
    document and never in two; a document's last targets, too few for a window, are in none.
    """
    starts = np.flatnonzero(np.diff(documents, prepend=-1))
    ends = [*starts[1:], len(documents)]
    firsts = [first for start, end in zip(starts, ends, strict=True) for first in range(start, end - size + 1, size)]
    means = {int(first): float(difference[first : first + size].mean()) for first in firsts}
    order = sorted(means, key=means.get)
    return [first for first in order[:most] if means[first] < 0], [
        first for first in order[::-1][:most] if means[first] > 0
    ]


def pieces(ids: Sequence[int], decode: Decode) -> list[str]:
    """Return what each token adds to the text; a token whose bytes are no whole letter is shown by itself."""
    found, before = [], ""
    for count in range(1, len(ids) + 1):
        text = decode(ids[:count])
        found.append(text[len(before) :] if text.startswith(before) else decode(ids[count - 1 : count]))
        before = text
    return found


def title(ids: Sequence[int], decode: Decode) -> str:
    """Return the first line of a document with words in it, in short, without the signs of a heading."""
    lines = (line.strip(" =") for line in decode(ids[:TITLE_TOKENS]).splitlines())
    found = next(filter(None, lines), "")
    return found if len(found) <= TITLE_LETTERS else found[: TITLE_LETTERS - 1].rstrip() + "…"
