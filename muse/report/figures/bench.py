"""The groups of a bench as figures: a row for each path, those without a speed included."""

from __future__ import annotations

import plotly.graph_objects as go

from muse.catalog import REFERENCE
from muse.records.schema import Metric, StageRecord

from ..numbers import number, rounded
from ..texts import join, say, texts, unit_label
from .panels import wrapped
from .style import BAR, bar_rows, make_figure, style, whiskers

LETTERS = 54
"""Letters of a line above a bar on a phone."""


def bench_figures(record: StageRecord, language: str = "en") -> list[go.Figure]:
    """Return one figure for each group of the record in which at least one path was timed."""
    groups: dict[str, list[Metric]] = {}
    for metric in record.metrics:
        if metric.name.startswith("bench_") and metric.name.endswith("_speed"):
            groups.setdefault(metric.name.removesuffix("_speed"), []).append(metric)
    timed = {group: paths for group, paths in groups.items() if any(path.value is not None for path in paths)}
    return [_figure(record, group, paths, language) for group, paths in timed.items()]


def _figure(record: StageRecord, group: str, paths: list[Metric], language: str) -> go.Figure:
    words, bars, labels, items = texts(language), [], [], []
    for row, path in enumerate(paths):
        told = _told(record, group, path, language)
        labels.append(f"{path.model}{words['colon']} <b>{told}</b>")
        items.append(f"{path.model} {told}")
        color = style(REFERENCE if path.model.startswith("muse") else path.model).color
        if path.value is not None:
            bars.append(go.Bar(x=rounded([path.value]), y=[row], **BAR, showlegend=False, name=path.model,
                               marker={"color": color}, error_x=whiskers(path),
                               hovertext=items[-1], hoverinfo="text"))  # fmt: skip
    text = f"{words['bench_bars.title']}{words['colon']} {_title(group, language)}"
    title = {"text": text, "x": 0, "font": {"size": 15}}
    rows = bar_rows(words["figure.tokens_per_second"], labels, "~s")
    phone = [note | {"text": wrapped(note["text"], LETTERS)} for note in rows["annotations"]]
    return make_figure("bench_bars", language, bars, items, title=title, narrow={"annotations": phone}, **rows)


def _told(record: StageRecord, group: str, path: Metric, language: str) -> str:
    """What is known of a path, in words: speed, ratio and share of the ceiling, or why there is no speed."""
    if path.value is None:
        return path.reason
    told = [f"{number(round(path.value))} {unit_label('token/s', language)}"]
    if (ratio := record.find(f"{group}_ratio", path.model)) and ratio.value is not None:
        told.append(f"{ratio.value:.2f}×")
    if share := record.find(f"{group}_matrix_share", path.model):
        told.append(say(language, "figure.share", share=f"{share.value:.1%}"))
    return join(language, told)


def _title(group: str, language: str) -> str:
    name = group.removeprefix("bench_")
    kind, _, size = name.rpartition("_")
    label = texts(language).get(f"bench.{kind}")
    return f"{label} ({size})" if label else name.replace("_", " ")
