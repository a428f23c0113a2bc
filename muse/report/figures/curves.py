"""Curves of a stage: losses over tokens and over positions, and what a growing scale does."""

from __future__ import annotations

import plotly.graph_objects as go

from muse.records.schema import Series, StageRecord

from ..numbers import alike, number
from ..texts import join, say, texts
from .style import axis, curve, log_axis, make_figure, need, style


def loss_curves(record: StageRecord, language: str = "en") -> go.Figure:
    """Training and validation loss over tokens, from the series `training_loss` and `validation_loss`.

    The seeds of a model share its entry in the legend and in the caption.
    """
    words, traces, items, last = texts(language), [], [], {}
    curves = [s for s in record.series if s.name in ("training_loss", "validation_loss") and s.y]
    need(curves, "series training_loss or validation_loss", record)
    for found in curves:
        look, validation = style(found.model, language), found.name == "validation_loss"
        kind, entry = words["figure.validation" if validation else "figure.training"], f"{found.model} {found.name}"
        about = {"name": look.label + words["and"] + kind, "legendgroup": entry}
        about["showlegend"] = entry not in {trace.legendgroup for trace in traces}
        if validation:
            last.setdefault(look.label, []).append(found.y[-1])
            line, mode = {"width": 2.5, "dash": look.dash}, "lines+markers"
        else:
            line, mode, about["opacity"] = {"width": 1}, "lines", 0.5
        traces.append(curve(look, found.x, found.y, line, mode, **about))
        items.append(say(language, "loss_curves.item", model=look.label, kind=kind, **_ends(found)))
    ends = [f"{label} {words['and'].join(alike(losses))}" for label, losses in last.items()]
    return make_figure(
        "loss_curves", language, traces, items, fields={"last": join(language, ends) or "–"},
        xaxis=axis(words["figure.tokens"], tickformat="~s"), yaxis=axis(words["figure.loss_axis"]),
    )  # fmt: skip


def _ends(found: Series) -> dict[str, str]:
    first, last = alike([found.y[0], found.y[-1]])
    return {"first": first, "last": last, "low": number(found.x[0]), "high": number(found.x[-1])}


def loss_by_position(record: StageRecord, language: str = "en") -> go.Figure:
    """Mean loss at each position of the evaluation window, from the series `loss_by_position`."""
    words, traces, items = texts(language), [], []
    curves = [s for s in record.series if s.name == "loss_by_position" and s.y]
    need(curves, "series loss_by_position", record)
    for found in curves:
        look = style(found.model, language)
        smooth, count = _in_bins(found)
        traces.append(curve(look, smooth.x, smooth.y, {"dash": look.dash, "width": 2}))
        items.append(say(language, "loss_by_position.item", model=look.label, **_ends(smooth)))
    return make_figure(
        "loss_by_position", language, traces, items, fields={"bin": count},
        xaxis=axis(words["figure.position"]), yaxis=axis(words["figure.loss_axis"]), showlegend=True,
    )  # fmt: skip


def _in_bins(found: Series, most: int = 64) -> tuple[Series, int]:
    """Return the curve averaged over runs of neighbouring points, at most about `most`, and how long a run is."""
    size = max(1, len(found.y) // most)
    starts = range(0, len(found.y) - size + 1, size)
    x, y = ([sum(values[i : i + size]) / size for i in starts] for values in (found.x, found.y))
    return found.model_copy(update={"x": x, "y": y}), size


def scale_stress(record: StageRecord, language: str = "en") -> go.Figure:
    """What happens as weights or inputs are scaled, from every series whose name starts with `scale_stress`."""
    words, traces, items = texts(language), [], []
    curves = [s for s in record.series if s.name.startswith("scale_stress") and s.y]
    need(curves, "series scale_stress", record)
    for index, found in enumerate(curves):
        look, name = style(found.model, language), found.y_name.replace("_", " ")
        line = {"dash": ("solid", "dash", "dot", "dashdot")[index % 4], "width": 2}
        label = look.label + words["and"] + name
        traces.append(curve(look, found.x, found.y, line, "lines+markers", name=label))
        items.append(say(language, "scale_stress.item", model=look.label, name=name, **_ends(found)))
    x, y = ([value for found in curves for value in getattr(found, key)] for key in ("x", "y"))
    x_title, y_title = (
        " / ".join(dict.fromkeys(getattr(found, key).replace("_", " ") for found in curves))
        for key in ("x_name", "y_name")
    )
    wide = min(y) > 0 and max(y) > 100 * min(y)
    return make_figure(
        "scale_stress", language, traces, items, showlegend=True,
        xaxis=log_axis(x_title, x) if min(x) > 0 else axis(x_title),
        yaxis=log_axis(y_title, y) if wide else axis(y_title),
    )  # fmt: skip
