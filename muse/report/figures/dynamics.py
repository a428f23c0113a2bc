"""Pictures of a complex memory: its use of the plane, how long it holds what, and how fast it rotates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import plotly.graph_objects as go

from muse.records.schema import Metric, Series, StageRecord

from ..numbers import alike, number, rounded
from ..texts import join, say, texts
from .style import BELOW, NEUTRAL, axis, curve, error_bars, log_axis, make_figure, metric_label, need, style

PLANE = ("imaginary_energy_share", "phase_spread")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PERIODS = " period"  # end of the name of a layer's series
UNTRAINED, BEFORE = "_untrained", "untrained "
"""What the name of a metric ends in, and that of a series begins with, where it is of the model before its training."""

LIVES_TOKENS = (10, 100)  # what counts as a short life, and beyond which one is long
DOT_PIXELS = (6, 26)  # of a head that is not read, and of one that is read alone
UNMOVED = 0.1
"""Share by which a training may change the median channel's period and has still left the rotation where it began."""

OF_UNTRAINED = {"color": NEUTRAL, "dash": "dot", "width": 2}


def plane_use(record: StageRecord, language: str = "en") -> go.Figure:
    """Energy in the imaginary plane and spread of phases behind each layer, a panel each, and both before training."""
    words, traces, items, notes, layout = texts(language), [], [], [], {}
    metrics = [m for m in record.metrics if m.name in PLANE and m.samples]
    need(metrics, f"metric {' or '.join(PLANE)}", record)
    names = list(dict.fromkeys(found.name for found in metrics))
    for found in metrics:
        look, name, place = style(found.model, language), metric_label(found.name, language), names.index(found.name)
        number = str(place + 1) if place else ""
        on = {"xaxis": f"x{number}", "yaxis": f"y{number}", "showlegend": not place, "meta": name}
        before = record.find(found.name + UNTRAINED, found.model)
        layers = range(len(found.samples))
        traces.append(curve(look, layers, found.samples, {"width": 2}, "lines+markers", marker={"size": 9}, **on))
        items.append(f"{name}{words['colon']} {join(language, alike(rounded(found.samples)))}")
        if before and before.samples:
            label = words["figure.untrained"]
            line = curve(look, layers, before.samples, OF_UNTRAINED, name=label, legendgroup=label, **on)
            traces.append(line)
            items.append(f"{name}, {label}{words['colon']} {join(language, alike(rounded(before.samples)))}")
        title = {"text": f"<b>{name}</b>", "font": {"size": 12}, "showarrow": False, "align": "left"}
        notes.append(title | {"xref": f"x{number} domain", "yref": f"y{number} domain", "x": 0, "y": 1,
                              "xanchor": "left", "yanchor": "bottom"})  # fmt: skip
    domains = [[0, 0.44], [0.56, 1]] if len(names) > 1 else [[0, 1]]
    narrow = {"height": 520}
    for place, domain in enumerate(domains):
        number = str(place + 1) if place else ""
        layout[f"xaxis{number}"] = axis(words["figure.layer"], dtick=1, domain=domain, anchor=f"y{number}")
        layout[f"yaxis{number}"] = axis("", range=[0, 1.02], anchor=f"x{number}", domain=[0, 0.92])
        narrow[f"xaxis{number}"] = {"domain": [0, 1]}
        narrow[f"yaxis{number}"] = {"domain": [[0.6, 0.95], [0, 0.35]][place] if len(names) > 1 else [0, 0.92]}
    return make_figure(
        "plane_use", language, traces, _begun(items), fields={"untrained": _about_untrained(record, language)},
        narrow=narrow, showlegend=True, annotations=notes, legend=BELOW, **layout,
    )  # fmt: skip


def _begun(items: Sequence[str]) -> list[str]:
    """The items of a list that is a sentence of its own: the first begins with a capital."""
    return [item if place else item[:1].upper() + item[1:] for place, item in enumerate(items)]


def _about_untrained(record: StageRecord, language: str) -> str:
    """The sentence on the model before its training: what its line is, or that nothing is recorded of it."""
    known = any(m.name.endswith(UNTRAINED) for m in record.metrics)
    return texts(language)["dynamics.untrained" if known else "dynamics.no_untrained"]


def half_lives(record: StageRecord, language: str = "en") -> go.Figure:
    """Each head's half-life with its spread over tokens, larger where more is read; hollow before training."""
    metrics = [m for m in record.metrics if m.name == "memory_half_life" and m.samples]
    need(metrics, "metric memory_half_life", record)
    found = metrics[0]
    others = [record.find(name, found.model) for name in ("memory_half_life_low", "memory_half_life_high")]
    low, high = (m.samples if m and len(m.samples) == len(found.samples) else found.samples for m in others)
    shares, look, (smallest, largest) = _read_shares(record, found), style(found.model, language), DOT_PIXELS
    sizes = rounded(smallest + (largest - smallest) * share**0.5 for share in shares)
    about = {"x": rounded(_side_by_side(found.layers)), "mode": "markers", "text": _heads(found, language)}
    about["hovertemplate"] = "%{text}: %{y}<extra></extra>"
    traces = [
        go.Scatter(
            y=rounded(found.samples), name=look.label, **about,
            marker={"color": look.color, "opacity": 0.7, "line": {"width": 1, "color": NEUTRAL}, "size": sizes},
            error_y=error_bars(zip(found.samples, low, high, strict=True), look.color, thickness=1, width=0),
        )
    ]  # fmt: skip
    words, before = texts(language), record.find("memory_half_life" + UNTRAINED, found.model)
    drawn = [*low, *high]
    if before and len(before.samples) == len(found.samples):
        marker = {"color": NEUTRAL, "symbol": "line-ew-open", "size": 14, "line": {"width": 2}}
        traces.append(go.Scatter(y=rounded(before.samples), name=words["figure.untrained"], marker=marker, **about))
        drawn += before.samples
    caption = f"{_lives_in_words(found, shares, language)} {_about_untrained(record, language)}".strip()
    return make_figure(
        "half_lives", language, traces, fields={"caption": caption}, showlegend=len(traces) > 1,
        xaxis=axis(words["figure.layer"], dtick=1), yaxis=log_axis(words["figure.half_life_axis"], drawn),
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


def _heads(lives: Metric, language: str) -> list[str]:
    """The heads by layer and place in it; as the record calls them where it does not say their layers."""
    if len(lives.layers) != len(lives.samples):
        return lives.labels
    return [
        say(language, "figure.head", layer=layer, head=lives.layers[:at].count(layer))
        for at, layer in enumerate(lives.layers)
    ]


def _lives_in_words(lives: Metric, shares: Sequence[float], language: str) -> str:
    rows = list(zip(lives.samples, _heads(lives, language), strict=True))
    (low, low_name), (high, high_name) = min(rows), max(rows)
    short, long = LIVES_TOKENS
    read = {"read_short": 0.0, "read_middle": 0.0, "read_long": 0.0}
    for life, share in zip(lives.samples, shares, strict=True):
        read["read_short" if life < short else "read_middle" if life <= long else "read_long"] += share / sum(shares)
    numbers = {"low": low, "high": high, "short": short, "long": long, "n": lives.n}
    fields = {name: number(value) for name, value in numbers.items()}
    fields |= zip(read, percents(list(read.values())), strict=True)
    return say(language, "half_lives.caption", low_name=low_name, high_name=high_name, **fields)


def percents(shares: Sequence[float]) -> list[str]:
    """Shares of a whole in percent, whole numbers that add up to 100: the largest remainders are rounded up."""
    found = [math.floor(100 * share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda place: found[place] - 100 * shares[place])
    for place in by_remainder[: 100 - sum(found)]:
        found[place] += 1
    return [f"{percent}%" for percent in found]


def rotation_periods(record: StageRecord, language: str = "en") -> go.Figure:
    """Tokens that each rotating channel takes for a turn, sorted, a line per layer, beside those before training."""
    words, traces, items = texts(language), [], []
    curves = [s for s in record.series if s.name == f"layer {s.layer}{PERIODS}" and s.y]
    need(curves, f"series named layer N{PERIODS}", record)
    untrained = {(s.model, s.layer): s for s in record.series if s.name == f"{BEFORE}layer {s.layer}{PERIODS}" and s.y}
    for index, found in enumerate(curves):
        name = say(language, "figure.layer_number", number=found.layer)
        line = {"dash": DASHES[index % len(DASHES)], "width": 2}
        opacity = 1 - 0.6 * index / len(curves)
        traces.append(curve(style(found.model, language), *_sorted_shares(found), line, name=name, opacity=opacity))
        ends = {"low": number(found.y[0]), "middle": number(median(found.y)), "high": number(found.y[-1])}
        items.append(say(language, "rotation_periods.item", name=name, **ends))
    for index, found in enumerate(untrained.values()):
        label = words["figure.untrained"]
        about = {"name": label, "legendgroup": label, "showlegend": not index}
        traces.append(curve(style(found.model, language), *_sorted_shares(found), OF_UNTRAINED, **about))
    fields = {"untrained": _moved(curves, untrained, language)}
    return make_figure(
        "rotation_periods", language, traces, _begun(items), fields=fields, showlegend=True,
        xaxis=axis(words["figure.share_of_channels"], tickformat=".0%"),
        yaxis=log_axis(words["figure.period_axis"], (y for found in curves for y in found.y)),
        legend=BELOW,
    )  # fmt: skip


def _sorted_shares(found: Series) -> tuple[list[float], list[float]]:
    """Every so many points of a sorted series, over the share of the channels that come before."""
    thinned = range(0, len(found.y), max(1, len(found.y) // 64))
    return [(i + 0.5) / len(found.y) for i in thinned], [found.y[i] for i in thinned]


def _moved(curves: Sequence[Series], untrained: dict[tuple[str, int | None], Series], language: str) -> str:
    """The sentence on what training did to the rotation, from sorted periods of the same layer before and after."""
    pairs = [
        (after, before)
        for found in curves
        if (start := untrained.get((found.model, found.layer))) and len(start.y) == len(found.y)
        for after, before in zip(found.y, start.y, strict=True)
        if after > 0 and before > 0
    ]
    if not pairs:
        return texts(language)["dynamics.no_untrained"]
    change = math.expm1(median(abs(math.log(after / before)) for after, before in pairs))
    return say(language, f"rotation_periods.{'unmoved' if change <= UNMOVED else 'moved'}", change=f"{change:.1%}")
