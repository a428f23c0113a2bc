"""Perplexity of models over that of one of them: a row for each, with its interval and seeds, beside a line at 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from muse.catalog import BASELINE, WITH_MEMORY
from muse.records.criteria import PERPLEXITY_RATIO
from muse.records.schema import Metric, StageRecord

from ..numbers import metric_decimals, rounded, told, with_interval
from ..texts import say, texts
from .panels import NAME, PHONE_TITLE, room_for, rows_axis, value_note, wrapped
from .style import NEUTRAL, axis, interval_words, log_axis, make_figure, need, style, whiskers

BASELINES = (BASELINE, WITH_MEMORY)
"""The models that a run's own figures compare with; ratios to others stand in its numbers only."""

DOT, SEEDS = -0.1, 0.22
"""Where, from its middle, a row has its value and its seeds; a row is 1 high."""

ROW = 44  # pixels
FAR = 1.5
"""Factor of spread, 1 included, beyond which ratios stand on a logarithmic axis."""

MARKS = (1, 1.2, 1.5, 2, 3, 5, 7)
MARGIN = 0.05  # share of the axis that stays free at either end


def perplexity_ratios(
    record: StageRecord,
    language: str = "en",
    baseline: str = BASELINES[0],
    name: str = "perplexity_ratios",
    **fields: object,
) -> go.Figure:
    """Each model's perplexity over that of the baseline, the highest first; paired seeds as strokes below it.

    Over the baseline of the criterion its limit has a line too. Title, caption and alternative are the texts of `name`,
    with `fields` filled in.
    """
    metric_name = f"perplexity_ratio_to_{baseline}"
    found = [metric for metric in record.metrics if metric.name == metric_name and metric.value is not None]
    need(found, f"metric {metric_name}", record)
    found.sort(key=lambda metric: -metric.value)
    label, places = style(baseline, language).label, metric_decimals(found)
    names = [style(metric.model, language).label for metric in found]
    lines = {1.0: f"{label} = 1"}
    if baseline == BASELINE:
        lines[PERPLEXITY_RATIO] = say(language, "figure.target", limit=PERPLEXITY_RATIO)
    traces = [trace for row, metric in enumerate(found) for trace in _row(metric, row, language, places)]
    values = [value_note(told(metric, places), row, language) for row, metric in enumerate(found)]
    x, one = _ratio_axis(found, label, language, lines), min(lines)
    told_whole = [with_interval(metric, places, language=language) for metric in found]
    items = list(map(" ".join, zip(names, told_whole, strict=True)))
    fields = {"baseline": label, "interval": interval_words(found, language), **fields}
    return make_figure(
        name, language, traces, items, ROW * len(found) + 100, fields,
        narrow={"yaxis": {"ticktext": [wrapped(name, NAME) for name in names]},
                "xaxis": {"nticks": 3, "title": {"text": wrapped(x["title"]["text"], PHONE_TITLE)}}},
        xaxis=x, yaxis=rows_axis(names), showlegend=False,
        shapes=[_line(at, at != 1) for at in lines],
        annotations=values + [_line_words(at, words, x, at > one or len(lines) == 1) for at, words in lines.items()],
        margin={"l": 8, "r": room_for([value["text"] for value in values]), "t": 56, "b": 8},
    )  # fmt: skip


def _line(at: float, is_target: bool) -> dict[str, object]:
    """A line from the first row to the last, dashed where it is a target."""
    line = {"color": NEUTRAL, "width": 2 if is_target else 1.5, "dash": "dot" if is_target else "solid"}
    return {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "layer": "below", "line": line}


def _line_words(at: float, words: str, x: dict[str, object], to_the_right: bool) -> dict[str, object]:
    """What a line is, above its end: of two lines the first one says it to the left."""
    place = math.log10(at) if x.get("type") == "log" else at
    return {"x": place, "xanchor": "left" if to_the_right else "right", "yref": "paper", "y": 1, "yanchor": "bottom",
            "text": words, "showarrow": False, "font": {"size": 12}}  # fmt: skip


def _row(metric: Metric, row: int, language: str, places: int) -> list[go.Scatter]:
    """The value with its whiskers, and below it the seeds."""
    look = style(metric.model, language)
    text = f"{look.label}{texts(language)['colon']} {with_interval(metric, places, language=language)}"
    about = {"name": look.label, "mode": "markers", "hovertext": text, "hoverinfo": "text"}
    marker = {"color": look.color, "symbol": look.symbol, "size": 10}
    dot = go.Scatter(x=rounded([metric.value]), y=[row + DOT], error_x=whiskers(metric), marker=marker, **about)
    if not metric.samples:
        return [dot]
    stroke = {"color": look.color, "symbol": "line-ns-open", "size": 7, "line": {"width": 1.5}}
    seeds = go.Scatter(x=rounded(metric.samples), y=[row + SEEDS] * len(metric.samples), marker=stroke, **about)
    return [dot, seeds]


def _ratio_axis(found: Sequence[Metric], label: str, language: str, lines: Sequence[float]) -> dict[str, object]:
    """A plain axis, or a logarithmic one where ratios lie far apart, with a margin around all that is drawn."""
    values = [*lines, *(x for metric in found for x in (metric.value, *metric.samples, *(metric.interval or ())))]
    title = say(language, "figure.ratio_axis", baseline=label)
    if min(values) > 0 and max(values) > FAR * min(values):
        title = say(language, "figure.ratio_log_axis", baseline=label)
        ends = _with_margin(math.log10(min(values)), math.log10(max(values)))
        return log_axis(title, values, MARKS) | {"range": ends}
    return axis(title, range=_with_margin(min(values), max(values)), nticks=6)


def _with_margin(low: float, high: float) -> list[float]:
    margin = MARGIN * (high - low) or MARGIN
    return [low - margin, high + margin]
