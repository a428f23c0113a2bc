"""Quality over GPU memory: where each model stands beside the baseline, and the corner that the criteria ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from muse.catalog import BASELINE
from muse.records.criteria import PERPLEXITY_RATIO, VRAM_RATIO
from muse.records.schema import Metric, StageRecord

from ..numbers import number, rounded
from ..texts import join, say, texts
from .style import BELOW, NEUTRAL, NothingToDraw, axis, log_axis, make_figure, style

ROWS = {"peak_memory": "", "peak_memory_recomputed": "-open"}
"""Peaks of GPU memory that a model is placed by, each with what its markers' symbols end in: the criterion's row, and
the one on equal terms, where both sides recompute what they can."""

SMALLER = {"d_model", "n_layers"}
"""Reductions by which the models that were trained are smaller than those whose memory is measured."""

BOX = "rgba(0,148,115,0.13)"
MARKS = (1, 1.2, 1.5, 2, 3, 4, 5, 7)
MARGIN = 0.06  # share of an axis that stays free beyond all that is drawn


def quality_over_memory(stages: Sequence[StageRecord], language: str = "en") -> go.Figure:
    """Perplexity over that of the baseline, against GPU memory over that of the baseline; each seed is a dot.

    A model has a column of filled dots where the criterion measures its memory and one of hollow dots where both sides
    recompute. NothingToDraw without a ratio of each kind for one model at least.
    """
    quality, memory = ({s.stage: s for s in stages if s.status == "ok"}.get(name) for name in ("perplexity", "memory"))
    ratios = _of(quality, f"perplexity_ratio_to_{BASELINE}")
    peaks = {name: _of(memory, f"{name}_ratio_to_{BASELINE}") for name in ROWS}
    shown = [model for model in ratios if any(model in row for row in peaks.values())]
    if not shown:
        raise NothingToDraw("no model has both a ratio of perplexity and one of GPU memory")
    traces, items = [], []
    for model in shown:
        traces += _dots(ratios[model], {name: row[model] for name, row in peaks.items() if model in row}, language)
        items.append(_in_words(ratios[model], peaks, language))
    traces.append(_baseline(language))
    names = {"baseline": style(BASELINE, language).label, "quality": PERPLEXITY_RATIO, "memory": VRAM_RATIO}
    inside = [model for model in shown if _inside(ratios[model], peaks["peak_memory"].get(model))]
    caption = say(language, "quality_over_memory.caption", **names)
    caption += say(language, "quality_over_memory.inside" if inside else "quality_over_memory.empty",
                   list=join(language, (style(model, language).label for model in inside)))  # fmt: skip
    if any(metric.basis == "estimate" for row in peaks.values() for metric in row.values()):
        caption += texts(language)["quality_over_memory.estimate"]
    if SMALLER & {reduction.setting for reduction in quality.reductions}:
        caption += texts(language)["quality_over_memory.reduced"]
    x, y = _axes(traces, language, names["baseline"])
    target = _box_words(y, language, names)
    return make_figure(
        "quality_over_memory", language, traces, items, 460, {"caption": caption, **names}, xaxis=x, yaxis=y,
        showlegend=True, shapes=[_box(y)], annotations=[target],
        legend=BELOW, narrow={"annotations": [target | {"font": {"size": 10}}]},
    )  # fmt: skip


def _of(record: StageRecord | None, name: str) -> dict[str, Metric]:
    metrics = record.metrics if record else ()
    return {metric.model: metric for metric in metrics if metric.name == name and metric.value is not None}


def _inside(ratio: Metric, memory: Metric | None) -> bool:
    return memory is not None and ratio.value <= PERPLEXITY_RATIO and memory.value <= VRAM_RATIO


def _dots(ratio: Metric, memory: dict[str, Metric], language: str) -> list[go.Scatter]:
    """The seeds of a model in a column for each row of the memory, the columns joined by a line at the mean."""
    look, seeds = style(ratio.model, language), ratio.samples or [ratio.value]
    line = go.Scatter(
        x=rounded(metric.value for metric in memory.values()), y=rounded([ratio.value] * len(memory)), mode="lines",
        line={"color": look.color, "width": 1.5, "dash": "dot"}, legendgroup=ratio.model, showlegend=False,
        hoverinfo="skip",
    )  # fmt: skip
    columns = []
    for row, (name, metric) in enumerate(memory.items()):
        told = say(language, "quality_over_memory.dot", model=look.label, quality=f"{ratio.value:.3f}",
                   memory=f"{metric.value:.3f}", row=texts(language)[f"quality_over_memory.{name}"])  # fmt: skip
        marker = {"color": look.color, "symbol": look.symbol + ROWS[name], "size": 9, "opacity": 0.85}
        columns.append(go.Scatter(
            x=rounded([metric.value] * len(seeds)), y=rounded(seeds), mode="markers", marker=marker, name=look.label,
            legendgroup=ratio.model, showlegend=not row, hovertext=told, hoverinfo="text",
            meta=texts(language)[f"quality_over_memory.{name}"],
        ))  # fmt: skip
    return ([line] if len(memory) > 1 else []) + columns


def _baseline(language: str) -> go.Scatter:
    look = style(BASELINE, language)
    marker = {"color": look.color, "symbol": look.symbol, "size": 12}
    text = f"{look.label} (1, 1)"
    return go.Scatter(x=[1], y=[1], mode="markers", marker=marker, name=text, hovertext=text, hoverinfo="text")


def _axes(traces: Sequence[go.Scatter], language: str, baseline: str) -> list[dict[str, object]]:
    """The memory from zero, the perplexity logarithmic where it ranges far; both hold the box and the baseline."""
    most = max(VRAM_RATIO, *(max(trace.x) for trace in traces))
    x = axis(say(language, "figure.memory_ratio_axis", baseline=baseline), range=[0, (1 + MARGIN) * most], nticks=7)
    values = [PERPLEXITY_RATIO, *(value for trace in traces for value in trace.y)]
    low, high = min(values), max(values)
    if low > 0 and high > 1.5 * low:
        y = log_axis(say(language, "figure.ratio_log_axis", baseline=baseline), values, MARKS)
        low, high = math.log10(low), math.log10(high)
    else:
        y = axis(say(language, "figure.ratio_axis", baseline=baseline), nticks=6)
    room = (high - low) or 0.1
    return [x, y | {"range": [low - 0.25 * room, high + MARGIN * room]}]


def _box(y: dict[str, object]) -> dict[str, object]:
    low = 10 ** y["range"][0] if y.get("type") == "log" else y["range"][0]
    line = {"color": NEUTRAL, "width": 1.5, "dash": "dot"}
    return {"type": "rect", "x0": 0, "x1": VRAM_RATIO, "y0": low, "y1": PERPLEXITY_RATIO, "fillcolor": BOX,
            "line": line, "layer": "below"}  # fmt: skip


def _box_words(y: dict[str, object], language: str, names: dict[str, object]) -> dict[str, object]:
    """The target in words, in the lower left corner of the box."""
    text = say(language, "quality_over_memory.target", **names)
    return {"x": 0, "y": y["range"][0], "xanchor": "left", "yanchor": "bottom", "xshift": 4, "text": text,
            "align": "left", "showarrow": False, "font": {"size": 12}}  # fmt: skip


def _in_words(ratio: Metric, peaks: dict[str, dict[str, Metric]], language: str) -> str:
    told = [
        f"{number(row[ratio.model].value)} ({texts(language)[f'quality_over_memory.{name}']})"
        for name, row in peaks.items()
        if ratio.model in row
    ]
    return say(language, "quality_over_memory.item", model=style(ratio.model, language).label,
               quality=number(ratio.value), memory=texts(language)["and"].join(told))  # fmt: skip
