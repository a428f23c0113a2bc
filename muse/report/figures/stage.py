"""Records to plotly figures, each with a caption and a text alternative made from its data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial

import plotly.graph_objects as go

from muse.records.criteria import GRADIENT_NORM
from muse.records.schema import Metric, Series, StageRecord

from ..texts import texts
from .bench import bench_figures
from .dynamics import half_lives, plane_use, rotation_periods
from .ratios import BASELINES, perplexity_ratios
from .style import (
    BAR,
    CLEAR,
    NEUTRAL,
    NothingToDraw,
    alike,
    axis,
    bar_rows,
    join,
    log_axis,
    make_figure,
    metric_label,
    need,
    number,
    rounded,
    say,
    style,
    whiskers,
    with_interval,
)

FLOORS = {"floor_perplexity": "solid", "bigram_floor_perplexity": "dash", "uniform_perplexity": "dot"}


def loss_curves(record: StageRecord, language: str = "en") -> go.Figure:
    """Training and validation loss over tokens, from the series `training_loss` and `validation_loss`.

    The seeds of a model share its entry in the legend and in the caption.
    """
    words, traces, items, last = texts(language), [], [], {}
    curves = [s for s in record.series if s.name in ("training_loss", "validation_loss") and s.y]
    need(curves, "series training_loss or validation_loss", record)
    for curve in curves:
        look, validation = style(curve.model, language), curve.name == "validation_loss"
        kind = words["figure.validation" if validation else "figure.training"]
        line = {"width": 2.5, "dash": look.dash} if validation else {"width": 1}
        mode = "lines+markers" if validation else "lines"
        trace = _line(curve, look.label + words["and"] + kind, language, line, mode)
        entry = f"{curve.model} {curve.name}"
        first = entry not in {trace.legendgroup for trace in traces}
        traces.append(trace.update(opacity=1 if validation else 0.5, legendgroup=entry, showlegend=first))
        items.append(say(language, "loss_curves.item", model=look.label, kind=kind, **_ends(curve)))
        if validation:
            last.setdefault(look.label, []).append(curve.y[-1])
    ends = [f"{label} {words['and'].join(alike(losses))}" for label, losses in last.items()]
    return make_figure(
        "loss_curves",
        traces,
        language,
        {"list": join(language, items), "last": join(language, ends) or "–"},
        xaxis=axis(words["figure.tokens"], tickformat="~s"),
        yaxis=axis(words["figure.loss_axis"]),
    )


def _line(curve: Series, label: str, language: str, line: dict[str, object], mode: str) -> go.Scatter:
    look = style(curve.model, language)
    line, marker = {"color": look.color, **line}, {"symbol": look.symbol, "size": 7}
    return go.Scatter(x=rounded(curve.x), y=rounded(curve.y), mode=mode, name=label, line=line, marker=marker)


def _ends(curve: Series) -> dict[str, str]:
    first, last = alike([curve.y[0], curve.y[-1]])
    return {"first": first, "last": last, "low": number(curve.x[0]), "high": number(curve.x[-1])}


def loss_by_position(record: StageRecord, language: str = "en") -> go.Figure:
    """Mean loss at each position of the evaluation window, from the series `loss_by_position`."""
    words, traces, items = texts(language), [], []
    curves = [s for s in record.series if s.name == "loss_by_position" and s.y]
    need(curves, "series loss_by_position", record)
    for curve in curves:
        look = style(curve.model, language)
        smooth, count = _in_bins(curve)
        traces.append(_line(smooth, look.label, language, {"dash": look.dash, "width": 2}, "lines"))
        items.append(say(language, "loss_by_position.item", model=look.label, **_ends(smooth)))
    return make_figure(
        "loss_by_position",
        traces,
        language,
        {"list": join(language, items), "bin": count},
        xaxis=axis(words["figure.position"]),
        yaxis=axis(words["figure.loss_axis"]),
        showlegend=True,
    )


def _in_bins(curve: Series, most: int = 64) -> tuple[Series, int]:
    """Return the curve averaged over runs of neighbouring points, at most about `most`, and how long a run is."""
    size = max(1, len(curve.y) // most)
    starts = range(0, len(curve.y) - size + 1, size)
    x, y = ([sum(values[i : i + size]) / size for i in starts] for values in (curve.x, curve.y))
    return curve.model_copy(update={"x": x, "y": y}), size


def scale_stress(record: StageRecord, language: str = "en") -> go.Figure:
    """What happens as weights or inputs are scaled, from every series whose name starts with `scale_stress`."""
    words, traces, items = texts(language), [], []
    curves = [s for s in record.series if s.name.startswith("scale_stress") and s.y]
    need(curves, "series scale_stress", record)
    for index, curve in enumerate(curves):
        look, name = style(curve.model, language), curve.y_name.replace("_", " ")
        line = {"dash": ("solid", "dash", "dot", "dashdot")[index % 4], "width": 2}
        traces.append(_line(curve, look.label + words["and"] + name, language, line, "lines+markers"))
        items.append(say(language, "scale_stress.item", model=look.label, name=name, **_ends(curve)))
    title = " / ".join(dict.fromkeys(curve.y_name.replace("_", " ") for curve in curves))
    values = [value for curve in curves for value in curve.y]
    wide = min(values) > 0 and max(values) > 100 * min(values)
    positive = all(x > 0 for curve in curves for x in curve.x)
    x_title = " / ".join(dict.fromkeys(curve.x_name.replace("_", " ") for curve in curves))
    return make_figure(
        "scale_stress",
        traces,
        language,
        {"list": join(language, items)},
        xaxis=log_axis(x_title, (x for curve in curves for x in curve.x)) if positive else axis(x_title),
        yaxis=log_axis(title, values) if wide else axis(title),
        showlegend=True,
    )


def perplexity_bars(record: StageRecord, language: str = "en") -> go.Figure:
    """Perplexity of each model with its interval, beside the floors that hold for this data."""
    words = texts(language)
    found = [m for m in record.metrics if m.name == "perplexity" and m.value is not None]
    need(found, "metric perplexity", record)
    labels = [style(m.model, language).label for m in found]
    traces = [_interval_dot(metric, language) for metric in found]
    items = [f"{label} {with_interval(metric)}" for metric, label in zip(found, labels, strict=True)]
    for name, dash in FLOORS.items():
        floor = record.find(name)
        if floor is None or floor.value is None:
            continue
        items.append(f"{words[f'floor.{name}']} ({number(floor.value)})")
        line, marker = {"color": NEUTRAL, "dash": dash, "width": 2}, {"symbol": "line-ns-open", "size": 26}
        x = rounded([floor.value] * len(labels))
        traces.append(go.Scatter(x=x, y=labels, mode="lines+markers", name=items[-1], line=line, marker=marker))
    return make_figure(
        "perplexity_bars",
        traces,
        language,
        {"list": join(language, items)},
        height_px=210 + 48 * len(found),
        xaxis=log_axis(words["figure.perplexity_axis"], (x for trace in traces for x in trace.x)),
        yaxis=axis(type="category", autorange="reversed"),
    )


def _interval_dot(metric: Metric, language: str) -> go.Scatter:
    look = style(metric.model, language)
    marker = {"color": look.color, "symbol": look.symbol, "size": 13}
    x, y = rounded([metric.value]), [look.label]
    return go.Scatter(
        x=x, y=y, error_x=whiskers(metric), mode="markers", marker=marker, name=look.label, showlegend=False
    )


def memory_bars(record: StageRecord, language: str = "en") -> go.Figure:
    """Peak memory of each model, variant by variant; of a single model what it holds afterwards too.

    Measured ones are plain, estimates hatched.
    """
    found = [m for m in record.metrics if m.unit == "GiB" and m.value is not None]
    kinds = ("peak_memory",) if len({m.model for m in found}) > 1 else ("peak_memory", "held_memory")
    found = [m for m in found if m.name.startswith(kinds)] or found
    need(found, "metric in GiB", record)
    bases = {m.basis for m in found}
    caption = texts(language)[f"memory_bars.{bases.pop() if len(bases) == 1 else 'caption'}"]
    return _bar_figure("memory_bars", found, language, lambda m: f"{number(m.value)} GiB", "GiB", caption)


def throughput_bars(record: StageRecord, language: str = "en") -> go.Figure:
    """Every metric in token/s with its share of the measured matrix ceiling, where the record has one."""
    found = [m for m in record.metrics if m.unit in ("token/s", "tokens/s") and m.value is not None]
    found = [m for m in found if not m.name.startswith("bench_")]  # those have figures of their own
    need(found, "metric in token/s", record)

    def note(metric: Metric) -> str:
        speed = f"{number(round(metric.value))} token/s"
        of_model = record.find("ceiling_share", metric.model)
        shares = dict(zip(of_model.labels, of_model.samples, strict=False)) if of_model else {}
        share = shares.get(metric.name.removeprefix("throughput_"))
        return speed if share is None else f"{speed}, {say(language, 'figure.share', share=f'{share:.1%}')}"

    words = texts(language)
    caption = words["throughput_bars.training" if record.stage == "train" else "throughput_bars.caption"]
    return _bar_figure("throughput_bars", found, language, note, words["figure.tokens_per_second"], caption)


def _bar_figure(
    name: str, found: Sequence[Metric], language: str, note: Callable[[Metric], str], title: str, caption: str
) -> go.Figure:
    """Return one horizontal bar for each metric under its name, hatched where it is an estimate.

    Bars of one name stand together: its models are what is compared.
    """
    words, traces, items, seen = texts(language), [], [], set()
    names = list(dict.fromkeys(metric.name for metric in found))
    found = sorted(found, key=lambda metric: names.index(metric.name))
    for row, metric in enumerate(found):
        look = style(metric.model, language)
        label = f"{look.label}{words['and']}{metric_label(metric.name, language)}".removeprefix(words["and"])
        entry = f"{look.label} ({words[f'basis.{metric.basis}']})"
        bar = go.Bar(
            x=rounded([metric.value]),
            y=[row],
            **BAR,
            name=entry,
            legendgroup=entry,
            showlegend=entry not in seen,
            error_x=whiskers(metric),
            hovertext=f"{label}: {note(metric)}",
            hoverinfo="text",
        )
        pattern = {"shape": "/", "fillmode": "replace", "fgcolor": look.color, "bgcolor": CLEAR, "size": 7}
        line = {"color": look.color, "width": 1.5}
        bar.marker = {"color": look.color, "line": line, "pattern": pattern if metric.basis == "estimate" else None}
        traces.append(bar)
        seen.add(entry)
        items.append((f"{label}{words['colon']} <b>{note(metric)}</b>", label, note(metric), metric.basis))
    told = [say(language, f"item.{basis}", name=label, value=value) for _, label, value, basis in items]
    return make_figure(
        name,
        traces,
        language,
        {"caption": caption, "list": join(language, told)},
        **bar_rows(title, [text for text, *_ in items], "~s" if name == "throughput_bars" else ""),
        barmode="overlay",
    )


def gradient_norms(record: StageRecord, language: str = "en", wanted: tuple[float, float] = GRADIENT_NORM) -> go.Figure:
    """One dot for each parameter's gradient norm on a log scale, from the samples of the metric `gradient_norm`.

    The same parameter of every block shares a row. Norms that a log scale cannot show (zero or not finite) stand at the
    left edge as crosses.
    """
    found = [m for m in record.metrics if m.name == "gradient_norm" and m.labels and m.samples]
    need(found, "labelled samples of the metric gradient_norm", record)
    several = len({m.model for m in found}) > 1
    named = [(m, label, norm) for m in found for label, norm in zip(m.labels, m.samples, strict=False)]
    rows = [(f"{style(m.model, language).label}: {label}" if several else label, norm) for m, label, norm in named]
    kinds = list(dict.fromkeys(_kind(name) for name, _ in rows))
    edge = min([wanted[0], *(norm for _, norm in rows if 0 < norm < math.inf)]) / 3
    traces = []
    for model in dict.fromkeys(m.model for m in found):
        of_model = [row for row, (m, _, _) in zip(rows, named, strict=True) if m.model == model]
        look, shown = style(model, language), [0 < norm < math.inf for _, norm in of_model]
        traces.append(
            go.Scatter(
                x=rounded(norm if ok else edge for (_, norm), ok in zip(of_model, shown, strict=True)),
                y=[_kind(name) for name, _ in of_model],
                mode="markers",
                name=look.label,
                showlegend=several,
                marker={"color": look.color, "size": 8, "symbol": [look.symbol if ok else "x" for ok in shown]},
                opacity=0.7,  # dots of one row may lie on one another
                text=[f"{name}: {number(norm)}" for name, norm in of_model],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    low, high = wanted
    label = {"text": say(language, "figure.band", low=number(low), high=number(high)), "textposition": "top right"}
    band = {"type": "rect", "yref": "paper", "x0": low, "x1": high, "y0": 0, "y1": 1, "layer": "below", "label": label}
    return make_figure(
        "gradient_norms",
        traces,
        language,
        {"caption": " ".join([_norms_in_words(rows, wanted, language), *_without_norm(record, language)])},
        height_px=150 + 18 * len(kinds),
        xaxis=log_axis(texts(language)["figure.norm_axis"], [edge, high]),
        yaxis=axis(type="category", range=[len(kinds) - 0.4, -2], tickfont={"size": 10}, dtick=1),
        shapes=[band | {"fillcolor": "rgba(0,148,115,0.10)", "line": {"width": 0}}],
    )


def _kind(name: str) -> str:
    """The name of a parameter with a star for the number of its block."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _norms_in_words(norms: Sequence[tuple[str, float]], wanted: tuple[float, float], language: str) -> str:
    low, high = wanted
    outside = [f"{name} {number(norm)}" for name, norm in norms if not low <= norm <= high]
    smallest, largest = (pick(norms, key=lambda row: row[1]) for pick in (min, max))
    fields = {"low": number(smallest[1]), "low_name": smallest[0], "high": number(largest[1]), "high_name": largest[0]}
    count = {"inside": len(norms) - len(outside), "total": len(norms)}
    caption = say(language, "gradient_norms.caption", **count, **fields)
    if outside:
        caption += " " + say(language, "gradient_norms.outside", list=join(language, outside))
    return caption


def _without_norm(record: StageRecord, language: str) -> list[str]:
    """Return sentences that name the parameters whose gradient is zero, missing or not finite."""
    kinds = {"parameters_without_gradient": "none", "parameters_with_non_finite_gradient": "broken"}
    named = {
        kind: [label for m in record.metrics if m.name == name for label in m.labels] for name, kind in kinds.items()
    }
    return [
        say(language, f"gradient_norms.{kind}", list=join(language, names)) for kind, names in named.items() if names
    ]


FIGURES = (
    loss_curves,
    perplexity_bars,
    *(partial(perplexity_ratios, baseline=baseline) for baseline in BASELINES),
    loss_by_position,
    memory_bars,
    throughput_bars,
    gradient_norms,
    scale_stress,
    plane_use,
    half_lives,
    rotation_periods,
)


def of_stage(record: StageRecord, language: str = "en") -> list[go.Figure]:
    """Return every figure that the record has data for."""
    figures = []
    for draw in FIGURES:
        try:
            figures.append(draw(record, language))
        except NothingToDraw:
            continue
    return figures + bench_figures(record, language)
