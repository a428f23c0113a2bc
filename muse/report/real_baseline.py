"""Is it the complex numbers? What records say of the real model of equal size and of single complex parts, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from muse.catalog import BASELINE, MODELS, TWIN, WITH_MEMORY
from muse.records.schema import Metric, StageRecord

from .companions import WHOLE_MEMORY, Companion, metrics_of
from .figures.style import style
from .html import render
from .numbers import alike, metric_decimals, number, told
from .texts import join, say

COMPLEX_PARTS = tuple(row.name for row in MODELS if row.removes_complex)
"""Changes of the memory that each take away one thing that only complex numbers have."""


def real_baseline_note(record: StageRecord, language: str = "en", companions: Sequence[Companion] = ()) -> Markup:
    """Return the comparison with its conclusion and with what it does not isolate; empty without its interval.

    Companions that took complex parts away, one at a time, are quoted.
    """
    ratio = record.find(WHOLE_MEMORY, TWIN)
    if ratio is None or ratio.value is None or ratio.interval is None:
        return Markup()
    sentences = [_say(language, "toy_scale")] if record.scale == "reduced" else []
    percent = number(round(abs(ratio.value - 1) * 100, 2))
    sentences.append(_say(language, "ratio", value=told(ratio)[0], doubt=_doubt(ratio, language)))
    sentences.append(_say(language, conclusion(ratio), percent=percent))
    sentences += [*_share(record, language), _say(language, "not_isolated")]
    sentences += _parts(companions, language) or [_say(language, "companions")]
    return render("note", language, title=_say(language, "title"), text=" ".join(sentences))


def _say(language: str, key: str, **fields: object) -> str:
    return say(language, f"real_baseline.{key}", **fields)


def conclusion(ratio: Metric) -> str:
    """Return better, worse or no_difference, by where the interval lies beside 1; unknown below two paired seeds."""
    low, high = ratio.interval
    if len(ratio.samples) < 2:
        return "unknown"
    return "better" if low > 1 else "worse" if high < 1 else "no_difference"


def _doubt(ratio: Metric, language: str) -> str:
    """The interval and, where there are two or more paired seeds, their lowest and highest ratio."""
    _, low, high = told(ratio)
    if len(ratio.samples) < 2:
        return _say(language, "documents", low=low, high=high)
    lowest, highest = alike([min(ratio.samples), max(ratio.samples)], metric_decimals([ratio]))
    seeds = {"n": len(ratio.samples), "lowest": lowest, "highest": highest}
    return _say(language, "documents_and_seeds", low=low, high=high, **seeds)


def _share(record: StageRecord, language: str) -> list[str]:
    """How much of the complex memory's gain over Phase 2, in nats, the real one has; nothing unless both gain."""
    found = [record.find(f"perplexity_ratio_to_{BASELINE}", model) for model in (WITH_MEMORY, TWIN)]
    if any(metric is None or metric.value is None or not 0 < metric.value < 1 for metric in found):
        return []
    complex_ratio, real_ratio = (metric.value for metric in found)
    memory, real = alike([complex_ratio, real_ratio])
    percent = f"{100 * math.log(real_ratio) / math.log(complex_ratio):.0f}"
    return [_say(language, "share", memory=memory, real=real, percent=percent)]


def _parts(companions: Sequence[Companion], language: str) -> list[str]:
    """One sentence for each companion that took complex parts away, with a conclusion where none was missed."""
    sentences = []
    for companion in companions:
        ratios = metrics_of(companion.report, "perplexity", WHOLE_MEMORY)
        if found := [metric for metric in ratios if metric.model in COMPLEX_PARTS and metric.interval is not None]:
            parts = join(language, (_part(metric, metric_decimals(found), language) for metric in found))
            sentences.append(_say(language, "parts", name=companion.name, parts=parts))
            if not any(metric.interval[0] > 1 for metric in found):
                sentences.append(_say(language, "none_missed"))
    return sentences


def _part(metric: Metric, places: int, language: str) -> str:
    value, low, high = told(metric, places)
    part = style(metric.model, language).label
    return _say(language, "part", part=part, value=value, low=low, high=high, n=len(metric.samples))
