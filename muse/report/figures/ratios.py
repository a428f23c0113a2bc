"""Perplexity of models over that of one of them: a row for each, with its interval and seeds, beside a line at 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from muse.catalog import BASELINE, WITH_MEMORY
from muse.records.schema import Metric, StageRecord

from ..numbers import metric_decimals, rounded, with_interval
from ..texts import say, texts
from .style import NEUTRAL, axis, bar_rows, log_axis, make_figure, need, style, whiskers

BASELINES = (BASELINE, WITH_MEMORY)
"""The models that a run's own figures compare with; ratios to others stand in its numbers only."""

DOT, SEEDS = 0.2, 0.46
"""Where, below its text, a row has its value and its seeds; a row is 1 high."""

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

    Title, caption and alternative are the texts of `name`, with `fields` filled in.
    """
    metric_name = f"perplexity_ratio_to_{baseline}"
    found = [metric for metric in record.metrics if metric.name == metric_name and metric.value is not None]
    need(found, f"metric {metric_name}", record)
    found.sort(key=lambda metric: -metric.value)
    label, labels, items = style(baseline, language).label, [], []
    traces, places = [_line_at_one(len(found), label)], metric_decimals(found)
    for row, metric in enumerate(found):
        model, told = style(metric.model, language).label, with_interval(metric, places)
        traces += _row(metric, row, language, told)
        labels.append(f"{model}{texts(language)['colon']} <b>{told}</b>")
        items.append(f"{model} {told}")
    rows = bar_rows("", labels, "") | {"xaxis": _ratio_axis(found, label, language)}
    fields = {"baseline": label, **fields}
    return make_figure(name, language, traces, items, fields=fields, **rows, showlegend=True)


def _line_at_one(rows: int, label: str) -> go.Scatter:
    """A line at the baseline's own ratio, drawn beside each row's dots and left out behind its text."""
    y = [place for row in range(rows) for place in (row + 0.02, row + 0.58, None)]
    x = [None if place is None else 1 for place in y]
    line = {"color": NEUTRAL, "dash": "dot", "width": 2}
    return go.Scatter(x=x, y=y, mode="lines", name=f"{label} (1)", line=line, hoverinfo="skip")


def _row(metric: Metric, row: int, language: str, told: str) -> list[go.Scatter]:
    """The value with its whiskers, and below it the seeds."""
    look = style(metric.model, language)
    text = f"{look.label}{texts(language)['colon']} {told}"
    about = {"name": look.label, "mode": "markers", "showlegend": False, "hovertext": text, "hoverinfo": "text"}
    marker = {"color": look.color, "symbol": look.symbol, "size": 9}
    stroke = {"color": look.color, "symbol": "line-ns-open", "size": 7, "line": {"width": 1.5}}
    seeds = {"x": rounded(metric.samples), "y": [row + SEEDS] * len(metric.samples)}
    return [
        go.Scatter(x=rounded([metric.value]), y=[row + DOT], error_x=whiskers(metric), marker=marker, **about),
        go.Scatter(**seeds, marker=stroke, **about),
    ]


def _ratio_axis(found: Sequence[Metric], label: str, language: str) -> dict[str, object]:
    """A plain axis, or a logarithmic one where ratios lie far apart, with a margin around all that is drawn."""
    values = [1.0, *(x for metric in found for x in (metric.value, *metric.samples, *(metric.interval or ())))]
    if min(values) > 0 and max(values) > FAR * min(values):
        ends = _with_margin(math.log10(min(values)), math.log10(max(values)))
        return log_axis(say(language, "figure.ratio_log_axis", baseline=label), values, MARKS) | {"range": ends}
    return axis(say(language, "figure.ratio_axis", baseline=label), range=_with_margin(min(values), max(values)))


def _with_margin(low: float, high: float) -> list[float]:
    margin = MARGIN * (high - low) or MARGIN
    return [low - margin, high + margin]
