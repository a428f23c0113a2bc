"""The page `text.html` of a run: the loss of every document by two models, and of every token in a few windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from muse.records.losses import Losses
from muse.records.store import RecordError
from muse.records.text_sample import TextSample, Window, read_sample, sample_path

from .assemble import assemble
from .figures.style import style
from .frame import INDEX, TEXT_PAGE, write_page
from .html import asset, render
from .numbers import alike, number, signed
from .page import scale_notice
from .run_list import list_link
from .runs import Run, losses_of
from .texts import say, span, texts

MOST_DOCUMENTS = 200
STEPS = (0.25, 1.0, 2.0)
"""Differences in nat from which a token has the next stronger colour."""

SURPRISES = (1.0, 3.0, 5.0, 8.0)
"""Losses in nat from which it has, where colours tell the surprise."""


def write(run_dir: Path, language: str) -> bool:
    """Write the page of a run that kept losses and a sample of the text; return whether it did.

    RecordError or ParamsError for files that are damaged or do not belong together.
    """
    if not sample_path(run_dir).is_file():
        return False
    sample, report = read_sample(run_dir), assemble(run_dir, language)
    run = Run(run_dir.name, run_dir, report)
    found = [losses_of(run, model) for model in (sample.candidate, sample.baseline)]
    if not all(found):
        return False
    _check(sample, found, run_dir)
    means = [np.mean([losses.astype(float) for losses in one.by_seed.values()], axis=0) for one in found]
    words = texts(language)
    names = {"candidate": style(sample.candidate, language).label, "baseline": style(sample.baseline, language).label}
    title = say(language, "text_page.title", **names)
    rows = _documents(sample, means, found[0].documents)
    shown = _shown(rows, sample)
    main = render(
        "text", language, title=title, notice=scale_notice(report.stages, language), names=names,
        seeds=len(found[0].by_seed), documents=shown, total=len(rows), dots=_dots(shown),
        groups=[
            (say(language, f"text_page.{kind}", **names), [_window(one, means, sample, language) for one in windows])
            for kind, windows in (("gains", sample.gains), ("losses", sample.losses))
        ],
    )  # fmt: skip
    links = [(words["fallback.report"], INDEX), (words["text_page.short"], TEXT_PAGE), *list_link(run_dir, language)]
    write_page(run_dir / TEXT_PAGE, main, title, links=links, language=language, css=asset("text.css"))
    return True


def _check(sample: TextSample, found: Sequence[Losses], run_dir: Path) -> None:
    """RecordError where titles, windows and losses are not of one text."""
    first, second = (one.documents for one in found)
    windows = (*sample.gains, *sample.losses)
    fits = np.array_equal(first, second) and len(first) and first.max() < len(sample.titles)
    if not fits or any(window.first + len(window.pieces) > len(first) for window in windows):
        raise RecordError(f"{sample_path(run_dir)}: got text of other targets, expected that of the losses beside it")


def _documents(sample: TextSample, means: Sequence[np.ndarray], documents: np.ndarray) -> list[dict[str, object]]:
    """Every document that has targets: number, title, targets, mean losses and their difference, the lowest first."""
    counts = np.bincount(documents)
    kept = np.flatnonzero(counts)
    ours, theirs = (np.bincount(documents, weights=losses)[kept] / counts[kept] for losses in means)
    rows = [
        {
            "number": int(number), "title": sample.titles[number], "targets": int(counts[number]), "value": one - other,
            "candidate": f"{one:.3f}", "baseline": f"{other:.3f}", "difference": signed(f"{one - other:.3f}"),
        }
        for number, one, other in zip(kept, ours.tolist(), theirs.tolist(), strict=True)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: row["value"])


def _shown(rows: list[dict[str, object]], sample: TextSample) -> list[dict[str, object]]:
    """Where there are too many documents, those that differ most to either side, and those of the windows."""
    half, linked = MOST_DOCUMENTS // 2, {window.document for window in (*sample.gains, *sample.losses)}
    return [row for at, row in enumerate(rows) if min(at, len(rows) - 1 - at) < half or row["number"] in linked]


def _dots(rows: Sequence[dict[str, object]]) -> dict[str, object]:
    """Places of dots in percent of a picture's width and height, the difference upwards, and those of its marks."""
    low, high = min(0.0, rows[0]["value"]), max(0.0, rows[-1]["value"])
    size = (high - low) or 1.0
    top = lambda value: round(100 * (high - value) / size, 1)  # noqa: E731
    places = [(round(100 * (at + 0.5) / len(rows), 2), top(row["value"])) for at, row in enumerate(rows)]
    marks = {top(value): signed(f"{value:.3f}") for value in (high, 0.0, low)}
    return {"places": places, "marks": marks, "zero": top(0.0)}


def _window(window: Window, means: Sequence[np.ndarray], sample: TextSample, language: str) -> dict[str, object]:
    """A window with its tokens: text, classes of colour, losses and difference."""
    ours, theirs = (losses[window.first : window.first + len(window.pieces)] for losses in means)
    tokens = [
        (piece, f"{_step(own - other)} s{sum(own >= limit for limit in SURPRISES)}", f"{own:.2f}", f"{other:.2f}",
         signed(f"{own - other:.1f}"))
        for piece, own, other in zip(window.pieces, ours, theirs, strict=True)
    ]  # fmt: skip
    return {
        "document": window.document, "title": sample.titles[window.document], "tokens": tokens,
        "targets": span(language, (number(window.first + 1), number(window.first + len(tokens)))),
        "losses": alike([ours.mean(), theirs.mean()]), "difference": signed(f"{(ours - theirs).mean():.2f}"),
    }  # fmt: skip


def _step(difference: float) -> str:
    """The class of a token: b1 to b3 where the candidate predicts it better, w1 to w3 where it does worse."""
    strength = sum(abs(difference) >= limit for limit in STEPS)
    return f"{'b' if difference < 0 else 'w'}{strength}" if strength else ""
