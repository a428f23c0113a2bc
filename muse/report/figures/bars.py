"""GPU memory and throughput as bars, models of one measure together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from muse.records.schema import Metric, StageRecord

from ..texts import texts
from .style import (
    BAR,
    CLEAR,
    bar_rows,
    join,
    make_figure,
    metric_label,
    need,
    number,
    rounded,
    say,
    style,
    whiskers,
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
