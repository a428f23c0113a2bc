"""Is it the complex numbers? What a record says of the real twin beside Stage 1 with memory, in words."""

from __future__ import annotations

import html

from .drawing import number, say
from .records import Metric, StageRecord
from .texts import texts


def twin_note(record: StageRecord, language: str = "en") -> str:
    """Return the comparison with its conclusion and with what it does not isolate; empty without its interval."""
    ratio = record.find("perplexity_ratio_to_stage1_memory", "real_twin")
    if ratio is None or ratio.value is None or ratio.interval is None:
        return ""
    words = texts(language)
    sentences = [words["twin.toy_scale"]] if record.scale == "reduced" else []
    sentences.append(say(language, "twin.ratio", value=number(ratio.value), doubt=_doubt(ratio, language)))
    sentences += [words[f"twin.{conclusion(ratio)}"], words["twin.not_isolated"]]
    title, text = html.escape(words["twin.title"]), html.escape(" ".join(sentences))
    return f'<div class="muse"><p class="muse-note" role="note"><b>{title}</b> {text}</p></div>'


def conclusion(ratio: Metric) -> str:
    """Return help, harm or no_difference, by where the interval lies beside 1; unknown below two paired seeds."""
    low, high = ratio.interval
    if len(ratio.samples) < 2:
        return "unknown"
    return "help" if low > 1 else "harm" if high < 1 else "no_difference"


def _doubt(ratio: Metric, language: str) -> str:
    """The interval and, where there are two or more paired seeds, their lowest and highest ratio."""
    low, high = map(number, ratio.interval)
    if len(ratio.samples) < 2:
        return say(language, "twin.documents", low=low, high=high)
    seeds = {"n": len(ratio.samples), "lowest": number(min(ratio.samples)), "highest": number(max(ratio.samples))}
    return say(language, "twin.documents_and_seeds", low=low, high=high, **seeds)
