"""A few tokens of the test text as two models read them, from what a run kept: a static part of the explorer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

from muse.host.paths import from_checkout
from muse.records.reading import Reading, read_reading

from . import explorer_page
from .explorer_page import FLOOR, Bundle
from .figures import explore
from .figures.style import mimebundle, show_bundle, style
from .texts import join, say, texts


def parts(reading: Reading, language: str = "en") -> Iterator[Bundle | go.Figure]:
    """Yield the text with its surprises, what each model expects at some places, and who contributes to one read."""
    words = [shown(piece) for piece in reading.pieces]
    labels = {name: style(name, language).label for name in reading.seeds}
    read_by = [say(language, "reading.model", name=labels[name], seed=seed) for name, seed in reading.seeds.items()]
    yield _paragraph(say(language, "reading.lead", count=len(words), models=join(language, read_by)), language)
    losses = {labels[name]: values for name, values in reading.losses.items()}
    if reading.floor:
        losses[FLOOR] = reading.floor
    yield explorer_page.surprise(words, losses, reading.read.position, language)
    kind = "two" if len(labels) > 1 else "one"
    yield _paragraph(say(language, f"reading.places.{kind}", count=len(reading.places)), language)
    for place in reading.places:
        columns = {
            labels[name]: [(shown(word), share) for word, share in ranked] for name, ranked in place.candidates.items()
        }
        seen, came = words[: place.position + 1], words[place.position + 1]
        yield explorer_page.table_bundle(explorer_page.next_table(columns, seen, came, language), language)
    yield _paragraph(texts(language)["reading.read"], language)
    read = reading.read
    yield explore.contributions(*_arrays(reading), words, read.layer, read.head, language)


def html(reading: Reading, language: str) -> tuple[list[Markup], int]:
    """Return the parts as HTML for a page, and how many of them are figures."""
    found = [*parts(reading, language)]
    figures = [part for part in found if isinstance(part, go.Figure)]
    made = (mimebundle(part) if isinstance(part, go.Figure) else part for part in found)
    return [Markup(part["text/html"]) for part in made], len(figures)


def show(record_dir: str | Path, language: str = "en") -> None:
    """Show below a notebook's cell what the run of these records has kept; a line where it has nothing."""
    reading = read_reading(from_checkout(record_dir).parent)
    if reading is None:
        print(texts(language)["reading.none"])
        return
    for part in parts(reading, language):
        show_bundle(mimebundle(part) if isinstance(part, go.Figure) else part)


def shown(piece: str) -> str:
    """Return a token as it is shown: without the space before it, and with a sign for the end of a line."""
    return piece.replace("\n", "↵").strip() or "␣"


def _arrays(reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    return np.array(reading.read.rotated), np.array(reading.read.plain)


def _paragraph(text: str, language: str) -> Bundle:
    return explorer_page.bundle("paragraph", text, language, text=text)
