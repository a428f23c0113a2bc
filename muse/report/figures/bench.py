"""The groups of a bench as figures: a row for each path, the fastest first, those without a speed last."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from muse.catalog import REFERENCE
from muse.records.schema import Metric, StageRecord

from ..numbers import number, rounded
from ..texts import join, say, texts, unit_label
from .panels import DIGIT, LINE, NAME, rows_axis, width_of, wrapped
from .style import NEUTRAL, axis, make_figure, style, whiskers

ROW, FOOT = 30, 34
"""Pixels of a row and of what stands below the rows."""

PLOT, NARROW_PLOT = 400, 190
"""Pixels that the part right of the names is wide where it is narrowest: on a page, and on a phone."""

LETTERS, NARROW_LETTERS = 52, 24
"""Half letters in a line of why a path has no speed."""


def bench_figures(record: StageRecord, language: str = "en") -> list[go.Figure]:
    """Return one figure for each group of the record in which at least one path was timed."""
    groups: dict[str, list[Metric]] = {}
    for metric in record.metrics:
        if metric.name.startswith("bench_") and metric.name.endswith("_speed"):
            groups.setdefault(metric.name.removesuffix("_speed"), []).append(metric)
    timed = {group: paths for group, paths in groups.items() if any(path.value is not None for path in paths)}
    return [_figure(record, group, paths, language) for group, paths in timed.items()]


def _figure(record: StageRecord, group: str, paths: Sequence[Metric], language: str) -> go.Figure:
    words, bars = texts(language), []
    paths = sorted(paths, key=lambda path: -math.inf if path.value is None else path.value, reverse=True)
    base = next((path for path in paths if _ratio(record, group, path) == 1), None)
    marked = words["bench_bars.baseline"]
    names = [say(language, "bench_bars.marked", name=_name(path, language), mark=marked) if path is base
             else _name(path, language) for path in paths]  # fmt: skip
    items = [_item(record, group, path, name, language) for path, name in zip(paths, names, strict=True)]
    values = [_values(record, group, path) for path in paths]
    for row, path in enumerate(paths):
        if path.value is not None:
            bars.append(go.Bar(x=rounded([path.value]), y=[row], orientation="h", width=0.62, showlegend=False,
                               marker={"color": _color(path)}, error_x=whiskers(path), name=names[row],
                               hovertext=items[row], hoverinfo="text"))  # fmt: skip
    title = {"text": f"{words['bench_bars.title']}{words['colon']} {_title(group, language)}",
             "x": 0, "font": {"size": 15}}  # fmt: skip
    wide = _rows(paths, [" · ".join(told) or wrapped(path.reason, LETTERS)
                         for path, told in zip(paths, values, strict=True)], PLOT)  # fmt: skip
    phone = _rows(paths, ["<br>".join(told[:2]) or wrapped(path.reason, NARROW_LETTERS)
                          for path, told in zip(paths, values, strict=True)], NARROW_PLOT)  # fmt: skip
    narrow = {"height": phone.pop("height_px"), "xaxis": phone.pop("xaxis"), **phone}
    narrow["yaxis"] = {"ticktext": [wrapped(name, NAME) for name in names]}
    line = {"type": "line", "xref": "x", "yref": "y", "y0": -0.5, "line": {"color": NEUTRAL, "dash": "dot"}}
    shapes = []
    if base:  # down to its own row: below it stand the words of what is slower
        shapes = [line | {"x0": base.value, "x1": base.value, "y1": paths.index(base) + 0.5}]
    return make_figure("bench_bars", language, bars, items, title=title, narrow=narrow, shapes=shapes,
                       yaxis=rows_axis(names), **wide)  # fmt: skip


def _rows(paths: Sequence[Metric], notes: Sequence[str], px: int) -> dict[str, object]:
    """The layout of the rows: each path's words behind its bar or, where it has none, in its place."""
    lines = max(note.count("<br>") + 1 for note in notes)
    ends = [max(path.value, *(path.interval or (0,))) if path.value else 0 for path in paths]
    room = [DIGIT * max(map(width_of, note.split("<br>"))) + 12 for note in notes]
    most = max(end / max(0.1, 1 - taken / px) for end, taken in zip(ends, room, strict=True))
    where = {"xref": "x", "xanchor": "left", "yanchor": "middle", "showarrow": False, "align": "left"}
    return {
        "height_px": FOOT + len(paths) * max(ROW, LINE * lines + 10),
        "xaxis": axis(range=[0, most], showticklabels=False, showgrid=False),
        "annotations": [
            where | {"x": end, "y": row, "text": note, "xshift": 6, "font": {"size": 12}}
            for row, (end, note) in enumerate(zip(ends, notes, strict=True))
        ],
    }


def _name(path: Metric, language: str) -> str:
    return style(path.model, language).label


def _color(path: Metric) -> str:
    return style(REFERENCE if path.model.startswith("muse") else path.model).color


def _ratio(record: StageRecord, group: str, path: Metric) -> float | None:
    found = record.find(f"{group}_ratio", path.model)
    return found and found.value


def _values(record: StageRecord, group: str, path: Metric) -> list[str]:
    """Speed, ratio to the baseline and share of the ceiling, as far as they are known; nothing without a speed."""
    if path.value is None:
        return []
    told = [number(round(path.value))]
    if (ratio := _ratio(record, group, path)) is not None:
        told.append(f"{ratio:.3f}×" if ratio != 1 and f"{ratio:.2f}" == "1.00" else f"{ratio:.2f}×")
    if share := record.find(f"{group}_matrix_share", path.model):
        told.append(f"{share.value:.1%}")
    return told


def _item(record: StageRecord, group: str, path: Metric, name: str, language: str) -> str:
    """A path in words, or why it has no speed."""
    told = _values(record, group, path)
    if told:
        told[0] += f" {unit_label('token/s', language)}"
        told[2:] = [say(language, "figure.share", share=share) for share in told[2:]]
    return f"{name}{texts(language)['colon']} {join(language, told or [path.reason])}"


def _title(group: str, language: str) -> str:
    name = group.removeprefix("bench_")
    kind, _, size = name.rpartition("_")
    label = texts(language).get(f"bench.{kind}")
    return f"{label} ({size})" if label else name.replace("_", " ")
