"""Gradient norms of all parameters, those of all blocks in a row of their own."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import plotly.graph_objects as go

from muse.records.criteria import GRADIENT_NORM
from muse.records.schema import StageRecord

from ..numbers import number, rounded
from ..texts import join, say, texts
from .panels import wrapped
from .style import axis, log_axis, make_figure, need, style

Norm = tuple[str, str, float]  # model, name of the parameter, norm


def gradient_norms(record: StageRecord, language: str = "en", wanted: tuple[float, float] = GRADIENT_NORM) -> go.Figure:
    """One dot for each parameter's gradient norm on a log scale, from the samples of the metric `gradient_norm`.

    The same parameter of every block shares a row. Norms that a log scale cannot show (zero or not finite) stand at the
    left edge as crosses.
    """
    found = [m for m in record.metrics if m.name == "gradient_norm" and m.labels and m.samples]
    need(found, "labelled samples of the metric gradient_norm", record)
    models = list(dict.fromkeys(m.model for m in found))
    norms: list[Norm] = [
        (m.model, label, norm) for m in found for label, norm in zip(m.labels, m.samples, strict=False)
    ]
    low, high = wanted
    edge = min([low, *(norm for _, _, norm in norms if 0 < norm < math.inf)]) / 3
    rows = _rows(norms, models)
    traces = [_dots(model, [row for row in norms if row[0] == model], rows, edge, language) for model in models]
    band = {"type": "rect", "yref": "paper", "x0": low, "x1": high, "y0": 0, "y1": 1, "layer": "below"}
    caption = " ".join([_norms_in_words(norms, wanted, language), *_without_norm(record, language)])
    x = log_axis(texts(language)["figure.norm_axis"], [edge, high])
    phone = {key: x[key][::3] for key in ("tickvals", "ticktext")}
    phone["title"] = {"text": wrapped(x["title"]["text"], 16)}
    last = max(rows.values())
    heads = [
        {"text": f"<b>{style(model, language).label}</b>", "xref": "paper", "x": 0, "xanchor": "right", "xshift": -6,
         "y": min(at for (of, _), at in rows.items() if of == model) - 1, "showarrow": False, "font": {"size": 12}}
        for model in models
        if len(models) > 1
    ]  # fmt: skip
    ticks = {"tickmode": "array", "tickvals": list(rows.values()), "ticktext": [kind for _, kind in rows]}
    return make_figure(
        "gradient_norms", language, traces, height_px=150 + 18 * (last + 1), fields={"caption": caption},
        xaxis=x, narrow={"xaxis": phone},
        yaxis=axis(range=[last + 0.6, -0.6], tickfont={"size": 10}, zeroline=False, **ticks), annotations=heads,
        shapes=[band | {"fillcolor": "rgba(0,148,115,0.10)", "line": {"width": 0}}], showlegend=False,
    )  # fmt: skip


def _rows(norms: Sequence[Norm], models: Sequence[str]) -> dict[tuple[str, str], int]:
    """The row of each kind of parameter of each model, those of a model together below one for its name."""
    rows: dict[tuple[str, str], int] = {}
    at = 0
    for model in models:
        at += len(models) > 1
        for kind in dict.fromkeys(_kind(name) for of, name, _ in norms if of == model):
            rows[model, kind], at = at, at + 1
    return rows


def _dots(
    model: str, norms: Sequence[Norm], rows: dict[tuple[str, str], int], edge: float, language: str
) -> go.Scatter:
    look, shown = style(model, language), [0 < norm < math.inf for _, _, norm in norms]
    symbol = look.symbol if all(shown) else [look.symbol if ok else "x" for ok in shown]
    return go.Scatter(
        x=rounded(norm if ok else edge for (_, _, norm), ok in zip(norms, shown, strict=True)),
        y=[rows[model, _kind(name)] for _, name, _ in norms],
        mode="markers",
        name=look.label,
        marker={"color": look.color, "size": 8, "symbol": symbol},
        opacity=0.7,  # dots of one row may lie on one another
        text=[f"{name}: {number(norm)}" for _, name, norm in norms],
        hovertemplate="%{text}<extra></extra>",
    )


def _kind(name: str) -> str:
    """The name of a parameter with a star for the number of its block."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _norms_in_words(norms: Sequence[Norm], wanted: tuple[float, float], language: str) -> str:
    low, high = wanted
    several = len({model for model, _, _ in norms}) > 1
    colon = texts(language)["colon"]
    told = [(f"{style(model, language).label}{colon} {name}" if several else name, norm) for model, name, norm in norms]
    outside = [f"{name} {number(norm)}" for name, norm in told if not low <= norm <= high]
    (low_name, low), (high_name, high) = (pick(told, key=lambda row: row[1]) for pick in (min, max))
    fields = {"low": number(low), "low_name": low_name, "high": number(high), "high_name": high_name}
    count = {"inside": len(norms) - len(outside), "total": len(norms)}
    band = say(language, "figure.band", low=number(wanted[0]), high=number(wanted[1]))
    caption = say(language, "gradient_norms.caption", band=band, **count, **fields)
    if outside:
        caption += " " + say(language, "gradient_norms.outside", list=join(language, outside))
    return caption


def _without_norm(record: StageRecord, language: str) -> list[str]:
    """Return sentences that name the parameters whose gradient is zero, missing or not finite."""
    kinds = {"parameters_without_gradient": "none", "parameters_with_non_finite_gradient": "broken"}
    sentences = []
    for name, kind in kinds.items():
        if labels := [label for m in record.metrics if m.name == name for label in m.labels]:
            sentences.append(say(language, f"gradient_norms.{kind}", list=join(language, labels)))
    return sentences
