"""GPU memory and throughput as bars, models of one measure together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from muse.records.schema import Metric, StageRecord

from ..numbers import number, rounded
from ..texts import say, texts
from .style import BAR, CLEAR, Style, bar_rows, make_figure, metric_label, need, style, whiskers


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
    return _bar_figure("throughput_bars", found, language, note, words["figure.tokens_per_second"], caption, "~s")


def _bar_figure(
    name: str,
    found: Sequence[Metric],
    language: str,
    note: Callable[[Metric], str],
    title: str,
    caption: str,
    tickformat: str = "",
) -> go.Figure:
    """Return one horizontal bar for each metric under its name, hatched where it is an estimate.

    Bars of one name stand together: its models are what is compared.
    """
    words, traces, labels, items = texts(language), [], [], []
    names = list(dict.fromkeys(metric.name for metric in found))
    for row, metric in enumerate(sorted(found, key=lambda metric: names.index(metric.name))):
        look, value = style(metric.model, language), note(metric)
        label = f"{look.label}{words['and']}{metric_label(metric.name, language)}".removeprefix(words["and"])
        entry = f"{look.label} ({words[f'basis.{metric.basis}']})"
        traces.append(go.Bar(
            x=rounded([metric.value]), y=[row], **BAR, name=entry, legendgroup=entry,
            showlegend=entry not in {bar.name for bar in traces}, error_x=whiskers(metric),
            marker=_fill(look, metric), hovertext=f"{label}: {value}", hoverinfo="text",
        ))  # fmt: skip
        labels.append(f"{label}{words['colon']} <b>{value}</b>")
        items.append(say(language, f"item.{metric.basis}", name=label, value=value))
    rows = bar_rows(title, labels, tickformat)
    return make_figure(name, language, traces, items, fields={"caption": caption}, **rows, barmode="overlay")


def _fill(look: Style, metric: Metric) -> dict[str, object]:
    pattern = {"shape": "/", "fillmode": "replace", "fgcolor": look.color, "bgcolor": CLEAR, "size": 7}
    line = {"color": look.color, "width": 1.5}
    return {"color": look.color, "line": line, "pattern": pattern if metric.basis == "estimate" else None}
