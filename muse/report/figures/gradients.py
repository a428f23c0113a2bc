"""Gradient norms of all parameters, those of all blocks in a row of their own."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import plotly.graph_objects as go

from muse.records.criteria import GRADIENT_NORM
from muse.records.schema import StageRecord

from ..texts import texts
from .style import (
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
