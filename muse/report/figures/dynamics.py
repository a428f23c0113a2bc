"""Pictures of a complex memory: its use of the plane, how long it holds what, and how fast it turns."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import plotly.graph_objects as go

from muse.records.schema import Metric, StageRecord

from ..texts import texts
from .style import NEUTRAL, alike, axis, join, log_axis, make_figure, metric_label, need, number, rounded, say, style

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
        traces.append(
            go.Scatter(
                x=list(range(len(found.samples))),
                y=rounded(found.samples),
                mode="lines+markers",
                name=look.label + words["and"] + name,
                line={"color": look.color, "dash": PLANE[found.name], "width": 2},
                marker={"symbol": look.symbol, "size": 9},
            )
        )
        items.append(f"{name}{words['colon']} {join(language, alike(rounded(found.samples)))}")
    return make_figure(
        "plane_use",
        traces,
        language,
        {"list": join(language, items)},
        xaxis=axis(words["figure.layer"], dtick=1),
        yaxis=axis(words["figure.plane_axis"], range=[0, 1.02]),
        showlegend=True,
    )


def half_lives(record: StageRecord, language: str = "en") -> go.Figure:
    """Each head's half-life with its spread over tokens, larger where more is read."""
    words = texts(language)
    metrics = [m for m in record.metrics if m.name == "memory_half_life" and m.samples]
    need(metrics, "metric memory_half_life", record)
    found = metrics[0]
    others = [record.find(name, found.model) for name in ("memory_half_life_low", "memory_half_life_high")]
    low, high = (m.samples if m and len(m.samples) == len(found.samples) else found.samples for m in others)
    shares, look = _read_shares(record, found), style(found.model, language)
    layers = found.layers
    smallest, largest = DOT_PIXELS
    marker = {"color": look.color, "opacity": 0.7, "line": {"width": 1, "color": NEUTRAL}}
    trace = go.Scatter(
        x=rounded(_side_by_side(layers)),
        y=rounded(found.samples),
        mode="markers",
        name=look.label,
        marker=marker | {"size": rounded(smallest + (largest - smallest) * share**0.5 for share in shares)},
        error_y={
            "type": "data",
            "array": rounded(b - a for a, b in zip(found.samples, high, strict=True)),
            "arrayminus": rounded(a - b for a, b in zip(found.samples, low, strict=True)),
            "color": look.color,
            "thickness": 1,
            "width": 0,
        },
        text=found.labels,
        hovertemplate="%{text}: %{y}<extra></extra>",
    )
    return make_figure(
        "half_lives",
        [trace],
        language,
        {"caption": _lives_in_words(found, shares, language)},
        xaxis=axis(words["figure.layer"], dtick=1),
        yaxis=log_axis(words["figure.half_life_axis"], [*low, *high]),
    )


def _read_shares(record: StageRecord, lives: Metric) -> list[float]:
    """Share of its layer that each head reads; equal ones where the record has none."""
    found = record.find("memory_read_share", lives.model)
    if found is not None and len(found.samples) == len(lives.samples):
        return found.samples
    heads = max(1, lives.labels.count(lives.labels[0]))
    return [1 / heads] * len(lives.samples)


def _side_by_side(layers: Sequence[int]) -> list[float]:
    """Places of the heads, those of one layer beside each other around its number."""
    seen: dict[int, int] = {}
    places = []
    for layer in layers:
        head = seen[layer] = seen.get(layer, -1) + 1
        places.append(layer + 0.6 * ((head + 0.5) / layers.count(layer) - 0.5))
    return places


def _lives_in_words(lives: Metric, shares: Sequence[float], language: str) -> str:
    rows = list(zip(lives.samples, lives.labels, strict=True))
    (low, low_name), (high, high_name) = min(rows), max(rows)
    short, long = LIVES_TOKENS
    kinds = [0 if life < short else 1 if life <= long else 2 for life in lives.samples]
    read = [sum(s for s, kind in zip(shares, kinds, strict=True) if kind == k) / sum(shares) for k in range(3)]
    return say(
        language,
        "half_lives.caption",
        low=number(low),
        low_name=low_name,
        high=number(high),
        high_name=high_name,
        short=number(short),
        long=number(long),
        read_short=f"{read[0]:.0%}",
        read_middle=f"{read[1]:.0%}",
        read_long=f"{read[2]:.0%}",
        n=number(lives.n),
    )


def rotation_periods(record: StageRecord, language: str = "en") -> go.Figure:
    """Tokens that each rotating channel takes for a turn, sorted, a line per layer."""
    words = texts(language)
    curves = [s for s in record.series if s.name.endswith(PERIODS) and s.y]
    need(curves, f"series named layer N{PERIODS}", record)
    traces, items = [], []
    for index, curve in enumerate(curves):
        look = style(curve.model, language)
        name = say(language, "figure.layer_number", number=curve.layer)
        thinned = range(0, len(curve.y), max(1, len(curve.y) // 64))
        line = {"color": look.color, "dash": DASHES[index % len(DASHES)], "width": 2}
        traces.append(
            go.Scatter(
                x=rounded((i + 0.5) / len(curve.y) for i in thinned),
                y=rounded(curve.y[i] for i in thinned),
                mode="lines",
                name=name,
                line=line,
                opacity=1 - 0.6 * index / len(curves),
            )
        )
        ends = {"low": number(curve.y[0]), "middle": number(median(curve.y)), "high": number(curve.y[-1])}
        items.append(say(language, "rotation_periods.item", name=name, **ends))
    return make_figure(
        "rotation_periods",
        traces,
        language,
        {"list": join(language, items)},
        xaxis=axis(words["figure.share_of_channels"], tickformat=".0%"),
        yaxis=log_axis(words["figure.period_axis"], (y for curve in curves for y in curve.y)),
        showlegend=True,
    )
