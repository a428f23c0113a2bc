"""Curves of a stage: losses over tokens and over positions, and what a growing scale does."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import plotly.graph_objects as go

from muse.catalog import BASELINE
from muse.records.schema import Series, StageRecord

from ..numbers import alike, number
from ..texts import join, say, texts
from .panels import NAME, end_labels, room_for, wrapped
from .style import Style, axis, curve, log_axis, make_figure, need, style

HEIGHT, PLOT = 400, 300
"""Pixels of a figure of curves, and of its plot about: axes and their titles take the rest."""

WARM_UP = 0.1
"""Share of a training that may lie above the top of the axis: what follows is what is compared."""


def loss_curves(record: StageRecord, language: str = "en") -> go.Figure:
    """Training and validation loss over tokens, from the series `training_loss` and `validation_loss`.

    The seeds of a model share its name at the end of its curves; the caption has their mean and range.
    """
    words, traces, items, last, bins = texts(language), [], [], {}, {1}
    curves = [s for s in record.series if s.name in ("training_loss", "validation_loss") and s.y]
    need(curves, "series training_loss or validation_loss", record)
    for found in curves:
        look, validation = style(found.model, language), found.name == "validation_loss"
        kind = words["figure.validation" if validation else "figure.training"]
        about = {"name": look.label + words["and"] + kind}
        if validation:
            last.setdefault(look, []).append(found.y[-1])
            line, mode = {"width": 2.5, "dash": look.dash}, "lines+markers"
        else:
            line, mode, about["opacity"] = {"width": 1}, "lines", 0.5
        drawn, size = (found, 1) if validation else _in_bins(found)
        bins.add(size)
        traces.append(curve(look, drawn.x, drawn.y, line, mode, **about))
        items.append(say(language, "loss_curves.item", model=look.label, kind=kind, **_ends(found)))
    shown, cut = _after_the_start(curves)
    ends = [f"{look.label} {_mean_and_range(losses, language)}" for look, losses in last.items()]
    caption = say(language, "loss_curves.caption", last=join(language, ends) or "–")
    if max(bins) > 1:
        caption += say(language, "loss_curves.bins", n=max(bins))
    if cut:
        caption += say(language, "loss_curves.cut", start=number(round(cut, 2)))
    if not last:
        last = {style(found.model, language): [found.y[-1]] for found in curves}
    return make_figure(
        "loss_curves", language, traces, items, HEIGHT, {"caption": caption}, showlegend=False,
        xaxis=axis(words["figure.tokens"], tickformat="~s"), yaxis=axis(words["figure.loss_axis"], range=shown),
        **named([(look, fmean(losses)) for look, losses in last.items()], shown),
    )  # fmt: skip


def _mean_and_range(losses: Sequence[float], language: str) -> str:
    if len(losses) == 1:
        return alike(losses)[0]
    mean, low, high = alike([fmean(losses), min(losses), max(losses)])
    return say(language, "loss_curves.seeds", mean=mean, low=low, high=high, n=len(losses))


def _after_the_start(curves: Sequence[Series]) -> tuple[list[float], float | None]:
    """Return the range of losses after the first tokens, and the highest loss where that lies above it."""
    later = [y for s in curves for x, y in zip(s.x, s.y, strict=True) if x >= WARM_UP * s.x[-1]] or [0.0, 1.0]
    margin = 0.05 * (max(later) - min(later)) or 0.1
    top, first = max(later) + margin, max(y for s in curves for y in s.y)
    return [min(later) - margin, top], first if first > top else None


def named(ends: Sequence[tuple[Style, float]], span: Sequence[float]) -> dict[str, object]:
    """The layout in which curves carry their names at their ends; a phone has these in lines below each other."""
    named = [(look.label, look.color, y) for look, y in ends]
    phone = [(wrapped(look.label, NAME), look.color, y) for look, y in ends]
    labels, short = (end_labels(found, span, PLOT) for found in (named, phone))
    return {
        "annotations": labels,
        "margin": {"l": 8, "r": room_for([text for text, *_ in named]) + 12, "t": 56, "b": 8},
        "narrow": {"annotations": short, "margin": {"r": room_for([text for text, *_ in phone]) + 8}},
    }


def _ends(found: Series) -> dict[str, str]:
    first, last = alike([found.y[0], found.y[-1]])
    return {"first": first, "last": last, "low": number(found.x[0]), "high": number(found.x[-1])}


def loss_by_position(record: StageRecord, language: str = "en") -> go.Figure:
    """Loss at each position of the evaluation window less that of the baseline there, from `loss_by_position`.

    What is hard in the text is hard for all models, and leaves with the difference. Without the baseline the losses
    themselves are drawn.
    """
    words, traces, items, ends = texts(language), [], [], []
    curves = [s for s in record.series if s.name == "loss_by_position" and s.y]
    need(curves, "series loss_by_position", record)
    beside = next((s for s in curves if s.model == BASELINE and len(curves) > 1), None)
    for found in curves:
        look = style(found.model, language)
        smooth, count = _in_bins(found)
        items.append(say(language, "loss_by_position.item", model=look.label, **_ends(smooth)))
        if beside is not None:
            if found is beside or len(found.y) != len(beside.y):
                continue
            difference = [a - b for a, b in zip(found.y, beside.y, strict=True)]
            smooth, count = _in_bins(found.model_copy(update={"y": difference}), 32)
        traces.append(curve(look, smooth.x, smooth.y, {"dash": look.dash, "width": 2}))
        ends.append((look, smooth.y[-1]))
    values = [y for trace in traces for y in trace.y] + ([0.0] if beside else [])
    margin = 0.05 * (max(values) - min(values)) or 0.1
    shown, kind, more = [min(values) - margin, max(values) + margin], "", {}
    title, names = words["figure.loss_axis"], {"baseline": style(BASELINE, language).label}
    if beside is not None:
        title, kind = say(language, "figure.loss_difference_axis", **names), "_difference"
        ends.append((style(BASELINE, language), 0.0))
        line = {"color": style(BASELINE, language).color, "width": 2}
        more["shapes"] = [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0, "line": line}]
    return make_figure(
        "loss_by_position" + kind, language, traces, items, HEIGHT, {"bin": count, **names}, showlegend=False,
        xaxis=axis(words["figure.position"]), yaxis=axis(title, range=shown), **more, **named(ends, shown),
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
    for found in curves:
        look, name = style(found.model, language), _axis_words(found.y_name, words)
        line = {"dash": look.dash, "width": 2}
        traces.append(curve(look, found.x, found.y, line, "lines+markers", name=look.label))
        items.append(say(language, "scale_stress.item", model=look.label, name=name, **_ends(found)))
    x, y = ([value for found in curves for value in getattr(found, key)] for key in ("x", "y"))
    x_title, y_title = (
        " / ".join(dict.fromkeys(_axis_words(getattr(found, key), words) for found in curves))
        for key in ("x_name", "y_name")
    )
    wide = min(y) > 0 and max(y) > 100 * min(y)
    return make_figure(
        "scale_stress", language, traces, items, showlegend=True,
        xaxis=log_axis(x_title, x) if min(x) > 0 else axis(x_title),
        yaxis=log_axis(y_title, y) if wide else axis(y_title),
    )  # fmt: skip


def _axis_words(name: str, words: dict[str, str]) -> str:
    """The name of a series' axis in the language's words, where it has any."""
    return words.get(f"axis.{name}", name.replace("_", " "))
