"""A run and its companions as figures: what changes of the memory cost, and what the length of the context does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go

from muse.catalog import WITH_MEMORY
from muse.records.schema import Metric, Report

from ..companions import Companion, changed_settings, context, metrics_of, of_kind, same_data, settings_of, stage_of
from ..numbers import with_interval
from ..texts import say, texts
from .curves import HEIGHT, named
from .ratios import perplexity_ratios
from .stage import with_text
from .style import Style, axis, curve, error_bars, interval_words, log_axis, make_figure, style

ASIDE = 1.02
"""Factor by which neighbouring models of one length stand apart, so that their whiskers can be told from each other."""

Points = dict[str, list[tuple[int, Metric]]]


def of_companions(main: Report, companions: Sequence[Companion], language: str = "en") -> list[go.Figure]:
    """Return every figure that the companions have data for.

    Over lengths, a companion of the main run's length that was made for those of other lengths adds the models that the
    main run lacks; all of them, where the main run has another recipe.
    """
    figures = [memory_changes(companion, language) for companion in of_kind(main, companions, "changes")]
    lengths = [companion.report for companion in of_kind(main, companions, "lengths")]
    profiles = {report.run.profile for report in lengths}
    further = [companion.report for companion in of_kind(main, companions, "other")]
    lengths += [report for report in further if report.run.profile in profiles and same_data(main, report)]
    if not any(changed_settings(main, report) for report in lengths):
        lengths.insert(0, main)
    for draw in (perplexity_by_length, memory_by_length):
        figure = draw(lengths, language)
        figures += [figure] if figure else []
    return figures


def memory_changes(companion: Companion, language: str = "en") -> go.Figure:
    """Perplexity of each changed memory over that of the whole one, the costliest change first."""
    record = stage_of(companion.report, "perplexity")
    figure = perplexity_ratios(record, language, WITH_MEMORY, "memory_changes", run=companion.name)
    return with_text(figure, record.text, language)


def perplexity_by_length(reports: Sequence[Report], language: str = "en") -> go.Figure | None:
    """Perplexity of each model over the length of its context; None without two lengths."""
    points = _points(reports, "perplexity", "perplexity", context)
    figure = _over_length("perplexity_by_length", points, language, axis(texts(language)["figure.per_token"]))
    records = [record for report in reports if (record := stage_of(report, "perplexity"))]
    read = texts(language)["and"].join(dict.fromkeys(record.text for record in records if record.text))
    return figure and with_text(figure, read, language)


def memory_by_length(reports: Sequence[Report], language: str = "en") -> go.Figure | None:
    """Peak memory of each model over the length of its sequences, estimates hollow; None without two lengths."""
    points = _points(reports, "memory", "peak_memory", lambda report: settings_of(report, "memory")["n_seq"])
    values = [metric.value for line in points.values() for _, metric in line]
    y = log_axis(texts(language)["figure.gib_axis"], values) if values else {}
    batches = {str(settings_of(report, "memory").get("memory_batch_size", "?")) for report in reports}
    return _over_length("memory_by_length", points, language, y, batch=texts(language)["and"].join(sorted(batches)))


def _points(reports: Sequence[Report], stage: str, name: str, length: Callable[[Report], int]) -> Points:
    """The models that were measured at more than one length, from the shortest up; the first report of each counts."""
    points: dict[str, dict[int, Metric]] = {}
    for report in reports:
        for metric in metrics_of(report, stage, name):
            points.setdefault(metric.model, {}).setdefault(length(report), metric)
    return {model: sorted(line.items()) for model, line in points.items() if len(line) > 1}


def _over_length(name: str, points: Points, language: str, y: dict[str, object], **fields: object) -> go.Figure | None:
    """Return one line for each model, over a logarithmic axis that is marked at the lengths; None without points."""
    if not points:
        return None
    words, traces, items = texts(language), [], []
    for place, (model, line) in enumerate(points.items()):
        told = [with_interval(metric, language=language) + _estimate(metric, words) for _, metric in line]
        traces.append(_line(style(model, language), line, told, place - (len(points) - 1) / 2))
        values = words["and"].join(
            say(language, "figure.with_unit", name=text, unit=f"{length:,}")
            for (length, _), text in zip(line, told, strict=True)
        )
        items.append(f"{traces[-1].name}{words['colon']} {values}")
    every = [metric for line in points.values() for _, metric in line]
    fields |= {"interval": interval_words(every, language)}
    lengths = sorted({length for line in points.values() for length, _ in line})
    ticks = {"tickmode": "array", "tickvals": lengths, "ticktext": [f"{length:,}" for length in lengths]}
    x = axis(words["figure.length_axis"], type="log", **ticks)
    low, high = (pick(end for m in every for end in (m.value, *(m.interval or ()))) for pick in (min, max))
    if y.get("type") == "log":
        low, high = math.log10(low), math.log10(high)
    span = [low - 0.06 * ((high - low) or 1), high + 0.06 * ((high - low) or 1)]
    ends = [(style(model, language), line[-1][1].value) for model, line in points.items()]
    if y.get("type") == "log":
        ends = [(look, math.log10(value)) for look, value in ends]
    y = y | {"range": span}
    return make_figure(
        name, language, traces, items, HEIGHT, fields, xaxis=x, yaxis=y, showlegend=False, **named(ends, span)
    )


def _line(look: Style, line: list[tuple[int, Metric]], told: list[str], aside: float) -> go.Scatter:
    """The points of one model; where they have whiskers, it stands `aside` by so many factors."""
    has_whiskers = any(metric.interval for _, metric in line)
    factor = ASIDE**aside if has_whiskers else 1
    found = curve(
        look,
        (length * factor for length, _ in line),
        (metric.value for _, metric in line),
        {"dash": look.dash, "width": 2},
        "lines+markers",
        marker={"size": 9, "symbol": [look.symbol + "-open" * (metric.basis == "estimate") for _, metric in line]},
        hovertext=[f"{look.label}, {length:,}: {text}" for (length, _), text in zip(line, told, strict=True)],
        hoverinfo="text",
    )
    if has_whiskers:
        ends = [(metric.value, *(metric.interval or [metric.value] * 2)) for _, metric in line]
        found.error_y = error_bars(ends, look.color, thickness=1)
    return found


def _estimate(metric: Metric, words: Mapping[str, str]) -> str:
    return f" {words['basis.estimate']}" if metric.basis == "estimate" else ""
