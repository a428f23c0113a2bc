"""Small multiples: a panel for each quantity, a row for each model, the value beside its bar."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from muse.records.schema import Metric

from ..numbers import rounded
from ..texts import span
from .style import CLEAR, NEUTRAL, Style, axis, whiskers

COLUMNS = 3
"""Panels side by side, where the page is wide; on a phone they stand below each other."""

ROW, NARROW_ROW, HEAD, FOOT, EDGE = 26, 34, 58, 22, 20
"""Pixels of a row, of one whose name may take two lines, of a panel's title, of a target's label, of both edges."""

PATCH = '<span style="color:{color}">■</span> '  # plotly's own way to colour a part of a label
LINE = 16  # pixels of a line of a label
GAP = 0.05  # between panels side by side, of the figure's width
PANEL = 165  # pixels that a panel is wide where it is narrowest
DIGIT = 7.2  # pixels of a letter, at most
TITLE, NAME, PHONE_TITLE = 19, 17, 28
"""Letters in a line of a panel's title and, on a phone, of a model's name and of an axis' title; Japanese are two."""


@dataclass(frozen=True)
class Bar:
    """One model in one panel: how it looks, its metric, its value for reading, and the words of its hover text."""

    look: Style
    metric: Metric
    told: str
    hover: str


@dataclass(frozen=True)
class Panel:
    """One quantity: its title, its bars by model, and where a target stands: (value, words)."""

    title: str
    bars: dict[str, Bar]
    target: tuple[float, str] | None = None


def width_of(text: str) -> int:
    """Return how many half letters a text is wide: those of Japanese are twice as wide."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def wrapped(text: str, width: int) -> str:
    """Return the text in lines of about `width` half letters each, parted between words or letters of Japanese."""
    lines = [""]
    for part in re.findall(r"[（「]?[!-~]+|[（「].|.", text):
        lines += [""] * bool(lines[-1].strip() and width_of(lines[-1] + part) > width and part not in "）」、。 ")
        lines[-1] += part
    return "<br>".join(line.strip() for line in lines)


def rows_axis(names: Sequence[str], **more: object) -> dict[str, object]:
    """Return the axis of rows: names on the left, the first row on top."""
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": list(names), "ticklen": 6}
    hidden = {"showgrid": False, "zeroline": False, "ticks": "outside", "tickcolor": CLEAR}
    return axis(range=[len(names) - 0.5, -0.5], **ticks, **hidden, **more)


def bar_panels(panels: Sequence[Panel]) -> dict[str, object]:
    """Return traces and layout of the panels, with the changes that a phone needs in `narrow`."""
    models = {name: bar.look.label for panel in panels for name, bar in panel.bars.items()}
    columns = min(COLUMNS, len(panels))
    wide = _heights([panels[i : i + columns] for i in range(0, len(panels), columns)], len(models), ROW)
    phone = _heights([[panel] for panel in panels], len(models), NARROW_ROW)
    width = (1 - GAP * (columns - 1)) / columns
    traces, layout, narrow, notes, shapes = [], {}, {"height": sum(phone) + EDGE}, [], []
    for place, panel in enumerate(panels):
        number = str(place + 1) if place else ""
        row, column = divmod(place, columns)
        start = column * (width + GAP)
        foot = FOOT if any(other.target for other in panels[row * columns : (row + 1) * columns]) else 0
        layout[f"xaxis{number}"] = _values_axis(panel, number) | {"domain": [start, start + width]}
        layout[f"yaxis{number}"] = rows_axis(
            list(models.values()), anchor=f"x{number}", domain=_domain(wide, row, foot), showticklabels=column == 0
        )
        narrow[f"xaxis{number}"] = {"domain": [0, 1]}
        narrow[f"yaxis{number}"] = {
            "domain": _domain(phone, place, FOOT if panel.target else 0), "showticklabels": True,
            "ticktext": [wrapped(label, NAME) for label in models.values()],
        }  # fmt: skip
        traces += _bars(panel, list(models), number)
        notes += _words(panel, list(models), number)
        if panel.target:
            line = {"color": NEUTRAL, "width": 2, "dash": "dot"}
            x = panel.target[0]
            shapes.append({"type": "line", "xref": f"x{number}", "yref": f"y{number} domain",
                           "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line})  # fmt: skip
    about = {"height_px": sum(wide) + EDGE, "barmode": "overlay", "showlegend": False}
    return {"traces": traces, "annotations": notes, "shapes": shapes, "narrow": narrow, **about, **layout}


def _heights(rows: Sequence[Sequence[Panel]], num_models: int, row_px: int) -> list[int]:
    return [HEAD + row_px * num_models + FOOT * any(panel.target for panel in row) for row in rows]


def _domain(heights: Sequence[int], row: int, foot: int) -> list[float]:
    """Where, from the bottom up, the bars of a row of panels stand: below its titles, above the labels of targets."""
    total, top = sum(heights), sum(heights[:row])
    low, high = 1 - (top + heights[row] - foot) / total, 1 - (top + HEAD) / total
    return [max(0.0, low), high]


def _values_axis(panel: Panel, number: str) -> dict[str, object]:
    """An axis from zero that leaves the right end to the values in words; these make marks needless."""
    bars = panel.bars.values()
    most = max(max(bar.metric.value, *(bar.metric.interval or (0,))) for bar in bars)
    most = max(most, panel.target[0] if panel.target else 0) or 1
    words = min(0.6, DIGIT * max(width_of(bar.told) for bar in bars) / PANEL)
    hidden = {"showticklabels": False, "showgrid": False, "zeroline": True}
    return axis(range=[0, most * 1.04 / (1 - words)], anchor=f"y{number}", **hidden)


def _bars(panel: Panel, models: Sequence[str], number: str) -> list[go.Bar]:
    return [
        go.Bar(
            x=rounded([bar.metric.value]), y=[models.index(name)], orientation="h", width=0.5, name=bar.look.label,
            meta=panel.title, xaxis=f"x{number}", yaxis=f"y{number}", error_x=whiskers(bar.metric),
            marker=_fill(bar.look, bar.metric), hovertext=bar.hover, hoverinfo="text",
        )
        for name, bar in panel.bars.items()
    ]  # fmt: skip


def _words(panel: Panel, models: Sequence[str], number: str) -> list[dict[str, object]]:
    """The panel's title above it, each value at the right end of its row, the target's words below its line."""
    on = {"xref": f"x{number} domain", "showarrow": False}
    title = {"text": f"<b>{wrapped(panel.title, TITLE)}</b>", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"}
    notes = [on | title | {"yref": f"y{number} domain", "align": "left", "font": {"size": 12}}]
    for row, name in enumerate(models):
        told = panel.bars[name].told if name in panel.bars else "–"
        value = {"text": told, "x": 1, "xanchor": "right", "y": row, "yref": f"y{number}"}
        notes.append(on | value | {"font": {"size": 12}})
    if panel.target:
        value, words = panel.target
        start = PANEL * value / _values_axis(panel, number)["range"][1]
        left = start + DIGIT * width_of(words) < PANEL
        notes.append({"xref": f"x{number}", "yref": f"y{number} domain", "x": value, "y": 0, "yanchor": "top",
                      "xanchor": "left" if left else "right", "text": words, "showarrow": False,
                      "font": {"size": 11}})  # fmt: skip
    return notes


def _fill(look: Style, metric: Metric) -> dict[str, object]:
    pattern = {"shape": "/", "fillmode": "replace", "fgcolor": look.color, "bgcolor": CLEAR, "size": 7}
    line = {"color": look.color, "width": 1.5}
    return {"color": look.color, "line": line, "pattern": pattern if metric.basis == "estimate" else None}


def value_note(numbers: Sequence[str], row: int, language: str) -> dict[str, object]:
    """Return the note at the right edge of a row: a value and, below it, the ends of its interval."""
    value, *ends = numbers
    text = f"<b>{value}</b>" + (f"<br>{span(language, ends)}" if ends else "")
    return {"text": text, "xref": "paper", "x": 1, "xanchor": "left", "xshift": 8, "y": row, "yanchor": "middle",
            "showarrow": False, "align": "left", "font": {"size": 12}}  # fmt: skip


def end_labels(ends: Sequence[tuple[str, str, float]], span: tuple[float, float], px: float) -> list[dict[str, object]]:
    """Return the labels of curves at their ends, each (text, colour, y), moved apart where they would touch.

    `span` is the range of the y axis and `px` how many pixels it is high, both as drawn (logarithms on a log axis).
    """
    low, high = span
    scale, order = px / ((high - low) or 1), sorted(ends, key=lambda end: end[2])
    halves = [LINE / 2 * (1 + text.count("<br>")) for text, _, _ in order]
    placed: list[float] = []
    for (_, _, y), half in zip(order, halves, strict=True):
        above = placed[-1] + halves[len(placed) - 1] if placed else 0.0
        placed.append(max((y - low) * scale, above + half))
    limit = px
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit - halves[i])
        limit = placed[i] - halves[i]
    return [
        {"text": PATCH.format(color=color) + text, "xref": "paper", "x": 1, "xanchor": "left",
         "xshift": 6, "yref": "paper", "y": round(at / px, 4), "yanchor": "middle", "showarrow": False,
         "align": "left", "font": {"size": 12}}
        for (text, color, _), at in zip(order, placed, strict=True)
    ]  # fmt: skip


def room_for(texts: Sequence[str]) -> int:
    """Return how many pixels of margin texts at the right edge need; their lines are parted by <br>."""
    lines = [line for text in texts for line in text.replace("<b>", "").replace("</b>", "").split("<br>")]
    return math.ceil(16 + 7 * max(map(width_of, lines), default=0))
