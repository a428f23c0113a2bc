"""Perplexities with their intervals, of models and of averages of their trainings, beside what is known of the text."""

from __future__ import annotations

import plotly.graph_objects as go

from muse.records.schema import StageRecord

from ..numbers import number, rounded, with_interval
from ..texts import say, texts
from .style import NEUTRAL, axis, log_axis, make_figure, need, style, whiskers

FLOORS = {"floor_perplexity": "solid", "bigram_floor_perplexity": "dash", "uniform_perplexity": "dot"}


def perplexity_bars(record: StageRecord, language: str = "en") -> go.Figure:
    """Perplexity of each model with its interval, beside the floors that hold for this data.

    The average of a model's trainings has a row of its own below it, with a hollow marker.
    """
    words, traces, items = texts(language), [], []
    models = [m for m in record.metrics if m.name == "perplexity" and m.value is not None]
    need(models, "metric perplexity", record)
    averages = {m.model: m for m in record.metrics if m.name == "ensemble_perplexity" and m.value is not None}
    found = [m for model in models for m in (model, averages.get(model.model)) if m]
    for metric in found:
        look, averaged = style(metric.model, language), metric.name == "ensemble_perplexity"
        size = {"n": len(metric.labels)}
        name = look.label + ("<br>" + say(language, "figure.averaged", **size) if averaged else "")
        marker = {"color": look.color, "symbol": look.symbol + "-open" * averaged, "size": 13}
        traces.append(go.Scatter(
            x=rounded([metric.value]), y=[name], error_x=whiskers(metric), mode="markers", marker=marker,
            name=name, showlegend=False,
        ))  # fmt: skip
        told = say(language, "perplexity_bars.averaged", **size) if averaged else ""
        items.append(f"{look.label}{told} {with_interval(metric)}")
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
