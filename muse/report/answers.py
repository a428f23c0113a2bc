"""What a stage has found, in words: the criteria that it decides, and one sentence for each model that has the numbers.

The sentences are the texts `answer.<stage>...` of a language. `{model}` stands for a model's name, `{text}` for the
text that was read, and a metric's name for the metric, so `{peak_memory.value:.3f}` is its value. A sentence is left
out for a model that lacks one of its numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from muse.catalog import CANDIDATES
from muse.records.criteria import BASIC_TEST, BESIDE, RULES, judge
from muse.records.schema import StageRecord

from .arms import arm_label
from .texts import texts


def of_stage(record: StageRecord, language: str = "en") -> list[str]:
    """Return the answer of a stage's record, sentence by sentence; what failed says so first."""
    words = texts(language)
    failed = [words["answer.failed"].format(error=record.error)] if record.status != "ok" else []
    found = [*(failed or _verdicts(record, words)), *_sentences(record, words)]
    return found or [words["answer.nothing"]]


def show(record: StageRecord, language: str = "en") -> None:
    """Show the answer below a notebook's cell."""
    from IPython.display import Markdown, display  # not on the way of whoever reads records only

    lines = [re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", line) for line in of_stage(record, language)]
    display(Markdown("\n".join(f"- {line}" for line in lines)))


def _verdicts(record: StageRecord, words: Mapping[str, str]) -> Iterator[str]:
    candidates = [name for name in CANDIDATES if any(metric.model == name for metric in record.metrics)]
    skipped = bool(record.params.get("skip_phase2"))
    for name in candidates:
        asked = {"candidate": name, "skipped_baseline": skipped}
        for found in judge([record], words, rules=RULES | BESIDE | BASIC_TEST, **asked):
            if (RULES | BESIDE | BASIC_TEST)[found.name].stage == record.stage:
                verdict = words[f"verdict.{found.verdict}"]
                yield words["answer.verdict"].format(
                    model=words.get(f"model.{name}", name),
                    criterion=words[f"criterion.{found.name}"],
                    verdict=verdict,
                    reason=_without(verdict + words["colon"], found.reason),
                )


def _without(lead: str, reason: str) -> str:
    """A reason without the verdict that it begins with, where that stands before it."""
    if not reason.lower().startswith(lead.lower()):
        return reason
    rest = reason[len(lead) :].strip()
    return rest[:1].upper() + rest[1:]


def _sentences(record: StageRecord, words: Mapping[str, str]) -> Iterator[str]:
    templates = [text for key, text in words.items() if re.fullmatch(rf"answer\.{record.stage}(\.\w+)?", key)]
    for model in dict.fromkeys(metric.model for metric in record.metrics):
        numbers = {
            metric.name: metric.model_copy(update={"basis": words[f"basis.{metric.basis}"]})
            for metric in record.metrics
            if metric.model == model
        }
        label = words.get(f"model.{model}") or arm_label(model, words["language"]) or model
        named = {"model": label, "text": record.text or "-"}
        for text in templates:
            try:
                yield text.format(**numbers, **named)
            except (KeyError, TypeError):  # a number that this model does not have, or one without a value
                continue
