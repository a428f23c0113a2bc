"""Is it the complex numbers? What records say of the real twin and of single complex parts, in words."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from muse.catalog import BASELINE, MODELS, TWIN, WITH_MEMORY
from muse.records.schema import Metric, StageRecord

from .companions import WHOLE_MEMORY, Companion, metrics_of
from .figures.style import alike, join, metric_decimals, number, say, style, told
from .texts import texts

COMPLEX_PARTS = tuple(row.name for row in MODELS if row.removes_complex)
"""Changes of the memory that each take away one thing that only complex numbers have."""


def twin_note(record: StageRecord, language: str = "en", companions: Sequence[Companion] = ()) -> str:
    """Return the comparison with its conclusion and with what it does not isolate; empty without its interval.

    Companions that took complex parts away, one at a time, are quoted.
    """
    ratio = record.find(WHOLE_MEMORY, TWIN)
    if ratio is None or ratio.value is None or ratio.interval is None:
        return ""
    words = texts(language)
    sentences = [words["twin.toy_scale"]] if record.scale == "reduced" else []
    sentences.append(say(language, "twin.ratio", value=told(ratio)[0], doubt=_doubt(ratio, language)))
    sentences.append(say(language, f"twin.{conclusion(ratio)}", percent=number(round(abs(ratio.value - 1) * 100, 2))))
    sentences += [*_share(record, language), words["twin.not_isolated"]]
    sentences += _parts(companions, language) or [words["twin.companions"]]
    title, text = html.escape(words["twin.title"]), html.escape(" ".join(sentences))
    return f'<div class="muse"><p class="muse-note" role="note"><b>{title}</b> {text}</p></div>'


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
        return say(language, "twin.documents", low=low, high=high)
    lowest, highest = alike([min(ratio.samples), max(ratio.samples)], metric_decimals([ratio]))
    seeds = {"n": len(ratio.samples), "lowest": lowest, "highest": highest}
    return say(language, "twin.documents_and_seeds", low=low, high=high, **seeds)


def _share(record: StageRecord, language: str) -> list[str]:
    """How much of the complex memory's gain over Phase 2, in nats, the twin has too; nothing unless both gain."""
    found = [record.find(f"perplexity_ratio_to_{BASELINE}", model) for model in (WITH_MEMORY, TWIN)]
    if any(metric is None or metric.value is None or not 0 < metric.value < 1 for metric in found):
        return []
    memory, twin = (metric.value for metric in found)
    percent = f"{100 * math.log(twin) / math.log(memory):.0f}"
    of_memory, of_twin = alike([memory, twin])
    return [say(language, "twin.share", memory=of_memory, twin=of_twin, percent=percent)]


def _parts(companions: Sequence[Companion], language: str) -> list[str]:
    """One sentence for each companion that took complex parts away, with a conclusion where none was missed."""
    sentences = []
    for companion in companions:
        ratios = metrics_of(companion.report, "perplexity", WHOLE_MEMORY)
        if found := [metric for metric in ratios if metric.model in COMPLEX_PARTS and metric.interval is not None]:
            parts = join(language, (_part(metric, metric_decimals(found), language) for metric in found))
            sentences.append(say(language, "twin.parts", name=companion.name, parts=parts))
            if not any(metric.interval[0] > 1 for metric in found):
                sentences.append(texts(language)["twin.none_missed"])
    return sentences


def _part(metric: Metric, places: int, language: str) -> str:
    value, low, high = told(metric, places)
    part = style(metric.model, language).label
    return say(language, "twin.part", part=part, value=value, low=low, high=high, n=len(metric.samples))
