"""Where two models differ most, and the text of it."""

from __future__ import annotations

import numpy as np
import pytest
from builders import corpus

from muse.measure.windows import extreme_windows, pieces, title


def test_windows_lie_within_documents_and_differ_most():
    documents = np.repeat([0, 2, 3], [5, 3, 4])  # windows of 2: targets 0, 2 | 5 | 8, 10
    difference = np.array([1, 1, -3, -3, -99, 5, 5, 99, -1, -1, 0, 0], float)
    assert extreme_windows(difference, documents, 2, 4) == ([2, 8], [5, 0])
    assert extreme_windows(difference, documents, 2, 1) == ([2], [5])
    assert extreme_windows(difference, documents, 6) == ([], [])
    assert extreme_windows(np.zeros(12), documents, 2) == ([], [])


def test_pieces_add_up_to_the_text():
    ids = corpus().splits["test"].ids.tolist()[:60]
    found = pieces(ids, corpus().decode)
    assert len(found) == 60
    assert "".join(found) == corpus().decode(ids)


def test_bytes_that_are_no_letter_by_themselves_are_shown_by_themselves():
    def decode(ids):
        return bytes(ids).decode("utf-8", errors="replace")

    assert pieces(list("aé!".encode()), decode) == ["a", "�", "�", "!"]
    assert pieces(list(b"ab"), decode) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" = Du Fu = \n \n He was", "Du Fu"),
        ("\n\n first line\nsecond", "first line"),
        (" = = \n", ""),
        ("x" * 70, "x" * 59 + "…"),
    ],
)
def test_a_title_is_the_first_line_with_words(text, expected):
    assert title([0], lambda ids: text) == expected
