"""Curves of a stage: losses over tokens and over positions, and what a growing scale does."""

from __future__ import annotations

import plotly.graph_objects as go

from muse.records.schema import Series, StageRecord

from ..texts import texts
from .style import (
    alike,
    axis,
    join,
    log_axis,
    make_figure,
    need,
    number,
    rounded,
    say,
    style,
)


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
