"""Pictures of a complex memory: its use of the plane, how long it holds what, and how fast it rotates."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import plotly.graph_objects as go

from muse.records.schema import Metric, StageRecord

from ..numbers import alike, number, rounded
from ..texts import join, say, texts
from .style import NEUTRAL, axis, curve, error_bars, log_axis, make_figure, metric_label, need, style

PLANE = {"imaginary_energy_share": "solid", "phase_spread": "dash"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PERIODS = " period"  # end of the name of a layer's series
LIVES_TOKENS = (10, 100)  # what counts as a short life, and beyond which one is long
DOT_PIXELS = (6, 26)  # of a head that is not read, and of one that is read alone


def plane_use(record: StageRecord, language: str = "en") -> go.Figure:
    """Energy in the imaginary plane and spread of phases behind each layer."""
    words, traces, items = texts(language), [], []
    metrics = [m for m in record.metrics if m.name in PLANE and m.samples]
    need(metrics, f"metric {' or '.join(PLANE)}", record)
    for found in metrics:
        look, name = style(found.model, language), metric_label(found.name, language)
        line = {"dash": PLANE[found.name], "width": 2}
        about = {"name": look.label + words["and"] + name, "marker": {"size": 9}}
        traces.append(curve(look, range(len(found.samples)), found.samples, line, "lines+markers", **about))
        items.append(f"{name}{words['colon']} {join(language, alike(rounded(found.samples)))}")
    return make_figure(
        "plane_use", language, traces, items, showlegend=True,
        xaxis=axis(words["figure.layer"], dtick=1), yaxis=axis(words["figure.plane_axis"], range=[0, 1.02]),
    )  # fmt: skip


def half_lives(record: StageRecord, language: str = "en") -> go.Figure:
    """Each head's half-life with its spread over tokens, larger where more is read."""
    metrics = [m for m in record.metrics if m.name == "memory_half_life" and m.samples]
    need(metrics, "metric memory_half_life", record)
    found = metrics[0]
    others = [record.find(name, found.model) for name in ("memory_half_life_low", "memory_half_life_high")]
    low, high = (m.samples if m and len(m.samples) == len(found.samples) else found.samples for m in others)
    shares, look, (smallest, largest) = _read_shares(record, found), style(found.model, language), DOT_PIXELS
    sizes = rounded(smallest + (largest - smallest) * share**0.5 for share in shares)
    trace = go.Scatter(
        x=rounded(_side_by_side(found.layers)),
        y=rounded(found.samples),
        mode="markers",
        name=look.label,
        marker={"color": look.color, "opacity": 0.7, "line": {"width": 1, "color": NEUTRAL}, "size": sizes},
        error_y=error_bars(zip(found.samples, low, high, strict=True), look.color, thickness=1, width=0),
        text=found.labels,
        hovertemplate="%{text}: %{y}<extra></extra>",
    )
    words = texts(language)
    return make_figure(
        "half_lives", language, [trace], fields={"caption": _lives_in_words(found, shares, language)},
        xaxis=axis(words["figure.layer"], dtick=1), yaxis=log_axis(words["figure.half_life_axis"], [*low, *high]),
    )  # fmt: skip


def _read_shares(record: StageRecord, lives: Metric) -> list[float]:
    """Share of its layer that each head reads; equal ones where the record has none."""
    found = record.find("memory_read_share", lives.model)
    if found is not None and len(found.samples) == len(lives.samples):
        return found.samples
    heads = max(1, lives.labels.count(lives.labels[0]))
    return [1 / heads] * len(lives.samples)


def _side_by_side(layers: Sequence[int]) -> list[float]:
    """Places of the heads, those of one layer beside each other around its number."""
    heads = [layers[:i].count(layer) for i, layer in enumerate(layers)]
    return [layer + 0.6 * ((head + 0.5) / layers.count(layer) - 0.5) for layer, head in zip(layers, heads, strict=True)]


def _lives_in_words(lives: Metric, shares: Sequence[float], language: str) -> str:
    rows = list(zip(lives.samples, lives.labels, strict=True))
    (low, low_name), (high, high_name) = min(rows), max(rows)
    short, long = LIVES_TOKENS
    read = {"read_short": 0.0, "read_middle": 0.0, "read_long": 0.0}
    for life, share in zip(lives.samples, shares, strict=True):
        read["read_short" if life < short else "read_middle" if life <= long else "read_long"] += share / sum(shares)
    numbers = {"low": low, "high": high, "short": short, "long": long, "n": lives.n}
    fields = {name: number(value) for name, value in numbers.items()} | {key: f"{x:.0%}" for key, x in read.items()}
    return say(language, "half_lives.caption", low_name=low_name, high_name=high_name, **fields)


def rotation_periods(record: StageRecord, language: str = "en") -> go.Figure:
    """Tokens that each rotating channel takes for a turn, sorted, a line per layer."""
    words, traces, items = texts(language), [], []
    curves = [s for s in record.series if s.name == f"layer {s.layer}{PERIODS}" and s.y]
    need(curves, f"series named layer N{PERIODS}", record)
    for index, found in enumerate(curves):
        name = say(language, "figure.layer_number", number=found.layer)
        thinned = range(0, len(found.y), max(1, len(found.y) // 64))
        x, y = ((i + 0.5) / len(found.y) for i in thinned), (found.y[i] for i in thinned)
        line = {"dash": DASHES[index % len(DASHES)], "width": 2}
        opacity = 1 - 0.6 * index / len(curves)
        traces.append(curve(style(found.model, language), x, y, line, name=name, opacity=opacity))
        ends = {"low": number(found.y[0]), "middle": number(median(found.y)), "high": number(found.y[-1])}
        items.append(say(language, "rotation_periods.item", name=name, **ends))
    return make_figure(
        "rotation_periods", language, traces, items, showlegend=True,
        xaxis=axis(words["figure.share_of_channels"], tickformat=".0%"),
        yaxis=log_axis(words["figure.period_axis"], (y for found in curves for y in found.y)),
    )  # fmt: skip
