"""Perplexities with their intervals, beside what is known of the text."""

from __future__ import annotations

import plotly.graph_objects as go

from muse.records.schema import StageRecord

from ..numbers import number, rounded, with_interval
from ..texts import texts
from .style import NEUTRAL, axis, log_axis, make_figure, need, style, whiskers

FLOORS = {"floor_perplexity": "solid", "bigram_floor_perplexity": "dash", "uniform_perplexity": "dot"}


def perplexity_bars(record: StageRecord, language: str = "en") -> go.Figure:
    """Perplexity of each model with its interval, beside the floors that hold for this data."""
    words, traces, items = texts(language), [], []
    found = [m for m in record.metrics if m.name == "perplexity" and m.value is not None]
    need(found, "metric perplexity", record)
    for metric in found:
        look = style(metric.model, language)
        marker = {"color": look.color, "symbol": look.symbol, "size": 13}
        traces.append(go.Scatter(
            x=rounded([metric.value]), y=[look.label], error_x=whiskers(metric), mode="markers", marker=marker,
            name=look.label, showlegend=False,
        ))  # fmt: skip
        items.append(f"{look.label} {with_interval(metric)}")
    labels = [trace.name for trace in traces]
    for name, dash in FLOORS.items():
        floor = record.find(name)
        if floor is None or floor.value is None:
            continue
        items.append(f"{words[f'floor.{name}']} ({number(floor.value)})")
        line, marker = {"color": NEUTRAL, "dash": dash, "width": 2}, {"symbol": "line-ns-open", "size": 26}
        x = rounded([floor.value] * len(labels))
        traces.append(go.Scatter(x=x, y=labels, mode="lines+markers", name=items[-1], line=line, marker=marker))
    return make_figure(
        "perplexity_bars", language, traces, items, height_px=210 + 48 * len(found),
        xaxis=log_axis(words["figure.perplexity_axis"], (x for trace in traces for x in trace.x)),
        yaxis=axis(type="category", autorange="reversed"),
    )  # fmt: skip
