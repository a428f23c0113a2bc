"""Perplexities with their intervals, of models and of averages of their trainings, beside what is known of the text."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from muse.records.schema import Metric, StageRecord

from ..numbers import number, rounded, told, with_interval
from ..texts import say, texts
from .panels import NAME, PHONE_TITLE, room_for, rows_axis, value_note, wrapped
from .style import NEUTRAL, interval_words, log_axis, make_figure, need, style, whiskers

FLOORS = {"floor_perplexity": "solid", "bigram_floor_perplexity": "dash", "uniform_perplexity": "dot"}

NEAR = 3
"""Factor beyond the models within which a floor is drawn; one that lies farther is told in the caption only."""

ROW = 40  # pixels

MARGIN = 0.04
"""Share of the axis that stays free beyond all that is drawn."""


def perplexity_bars(record: StageRecord, language: str = "en") -> go.Figure:
    """Perplexity of each model with its interval, beside the floors that hold for this data.

    The average of a model's trainings has a row of its own below it, with a hollow marker.
    """
    words = texts(language)
    models = [m for m in record.metrics if m.name == "perplexity" and m.value is not None]
    need(models, "metric perplexity", record)
    averages = {m.model: m for m in record.metrics if m.name == "ensemble_perplexity" and m.value is not None}
    found = [m for model in models for m in (model, averages.get(model.model)) if m]
    names, items = zip(*(_names(metric, language) for metric in found), strict=True)
    traces = [_dot(metric, row, names[row], language) for row, metric in enumerate(found)]
    drawn = [x for metric in found for x in (metric.value, *(metric.interval or ()))]
    lines, far = [], []
    for name, dash in FLOORS.items():
        floor = record.find(name)
        if floor is None or floor.value is None:
            continue
        told_floor = say(language, "figure.with_unit", name=words[f"floor.{name}"], unit=number(floor.value))
        near = min(drawn) / NEAR <= floor.value <= max(drawn) * NEAR
        (lines if near else far).append(told_floor)
        if near:
            line = {"color": NEUTRAL, "dash": dash, "width": 2}
            x, y = rounded([floor.value] * 2), [-0.5, len(found) - 0.5]
            traces.append(go.Scatter(x=x, y=y, mode="lines", name=told_floor, line=line))
    values = [value_note(told(metric), row, language) for row, metric in enumerate(found)]
    shown = [x for trace in traces for x in trace.x] + drawn
    low, high = (math.log10(pick(shown)) for pick in (min, max))
    room = MARGIN * ((high - low) or 1)
    fields = {"interval": interval_words(found, language)}
    fields["far"] = say(language, "perplexity_bars.far", list=words["join"].join(far)) if far else ""
    return make_figure(
        "perplexity_bars", language, traces, [*items, *lines], ROW * len(found) + 90 + 34 * bool(lines), fields,
        narrow={"yaxis": {"ticktext": ["<br>".join(wrapped(part, NAME) for part in name.split("<br>"))
                                       for name in names]},
                "xaxis": {"title": {"text": wrapped(words["figure.perplexity_axis"], PHONE_TITLE)}}},
        xaxis=log_axis(words["figure.perplexity_axis"], shown) | {"range": [low - room, high + room]},
        yaxis=rows_axis(names), annotations=values,
        margin={"l": 8, "r": room_for([value["text"] for value in values]), "t": 56, "b": 8},
    )  # fmt: skip


def _names(metric: Metric, language: str) -> tuple[str, str]:
    """The name of a row, and its value in a sentence."""
    look, averaged, size = style(metric.model, language), metric.name == "ensemble_perplexity", len(metric.labels)
    name = look.label + ("<br>" + say(language, "figure.averaged", n=size) if averaged else "")
    told = say(language, "perplexity_bars.averaged", n=size) if averaged else ""
    return name, f"{look.label}{told} {with_interval(metric, language=language)}"


def _dot(metric: Metric, row: int, name: str, language: str) -> go.Scatter:
    look = style(metric.model, language)
    symbol = look.symbol + "-open" * (metric.name == "ensemble_perplexity")
    return go.Scatter(
        x=rounded([metric.value]), y=[row], error_x=whiskers(metric), mode="markers", name=name, showlegend=False,
        marker={"color": look.color, "symbol": symbol, "size": 12},
    )  # fmt: skip
