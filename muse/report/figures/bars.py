"""GPU memory and throughput as bars: a panel for each quantity, a row for each model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from muse.catalog import BASELINE
from muse.records.criteria import VRAM_RATIO
from muse.records.schema import Metric, StageRecord

from ..numbers import number
from ..texts import say, texts
from .panels import Bar, Panel, bar_panels
from .style import make_figure, metric_label, need, style

TARGETS = ("peak_memory", "peak_memory_recomputed")
"""Peaks that a limit is asked of: the criterion's, and the one on equal terms beside it."""


def memory_bars(record: StageRecord, language: str = "en") -> go.Figure:
    """Peak memory of each model, variant by variant; of a single model what it holds afterwards too.

    Measured ones are plain, estimates hatched. The limit of a ratio to the baseline stands where it falls.
    """
    found = [m for m in record.metrics if m.unit == "GiB" and m.value is not None]
    kinds = ("peak_memory",) if len({m.model for m in found}) > 1 else ("peak_memory", "held_memory")
    found = [m for m in found if m.name.startswith(kinds)] or found
    need(found, "metric in GiB", record)
    bases = {m.basis for m in found}
    caption = texts(language)[f"memory_bars.{bases.pop() if len(bases) == 1 else 'caption'}"]
    fields = {"caption": say(language, "memory_bars.what", size=_size(record, language)) + caption}
    targets = {}
    if len({m.model for m in found}) > 1:
        words = say(language, "figure.limit", limit=VRAM_RATIO, baseline=style(BASELINE, language).label)
        limits = {m.name: m.value * VRAM_RATIO for m in found if m.model == BASELINE and m.name in TARGETS}
        targets = {name: (limit, words) for name, limit in limits.items()}
    return _panel_figure("memory_bars", found, language, lambda m: f"{m.value:#.3g}", "GiB", fields, targets)


def _size(record: StageRecord, language: str) -> str:
    """How much was passed at once, where the record says so."""
    batch, length = (record.params.get(key) for key in ("memory_batch_size", "n_seq"))
    return say(language, "memory_bars.size", batch=batch, length=f"{length:,}") if batch and length else ""


def throughput_bars(record: StageRecord, language: str = "en") -> go.Figure:
    """Every metric in token/s with its share of the measured matrix ceiling, where the record has one."""
    found = [m for m in record.metrics if m.unit in ("token/s", "tokens/s") and m.value is not None]
    found = [m for m in found if not m.name.startswith("bench_")]  # those have figures of their own
    need(found, "metric in token/s", record)

    def note(metric: Metric) -> str:
        of_model = record.find("ceiling_share", metric.model)
        shares = dict(zip(of_model.labels, of_model.samples, strict=False)) if of_model else {}
        share = shares.get(metric.name.removeprefix("throughput_"))
        return number(round(metric.value)) + ("" if share is None else f" · {share:.1%}")

    words = texts(language)
    caption = words["throughput_bars.training" if record.stage == "train" else "throughput_bars.caption"]
    if any(m.name == "ceiling_share" for m in record.metrics):
        caption += words["throughput_bars.share"]
    unit = words["figure.tokens_per_second"]
    return _panel_figure("throughput_bars", found, language, note, unit, {"caption": caption}, {})


def _panel_figure(
    name: str,
    found: Sequence[Metric],
    language: str,
    note: Callable[[Metric], str],
    unit: str,
    fields: dict[str, object],
    targets: dict[str, tuple[float, str]],
) -> go.Figure:
    """Return one panel for each name of a metric, with a bar for each model, hatched where it is an estimate."""
    words, panels, items = texts(language), [], []
    for quantity in dict.fromkeys(metric.name for metric in found):
        bars, title = {}, metric_label(quantity, language)
        for metric in (metric for metric in found if metric.name == quantity):
            look, value = style(metric.model, language), note(metric)
            label = f"{look.label}{words['and']}{title}".removeprefix(words["and"])
            item = say(language, f"item.{metric.basis}", name=label, value=f"{value} {unit}")
            bars[metric.model] = Bar(look, metric, value, item)
            items.append(item)
        if unit not in title:
            title = say(language, "figure.with_unit", name=title, unit=unit)
        panels.append(Panel(title, bars, targets.get(quantity)))
    return make_figure(name, language, items=items, fields=fields, **bar_panels(panels))
