"""A run's companions to HTML: a line for what each is, repeated trainings with their verdict, and headline numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from muse.records.reasons import why
from muse.records.scale import in_words
from muse.records.schema import Metric, Reduction, Report

from .companions import (
    RATIO,
    WITHIN_SDS,
    Companion,
    Repeat,
    changed_settings,
    context,
    kind,
    of_kind,
    repeats,
    same_data,
    settings_of,
    stage_of,
)
from .figures.style import style
from .html import render
from .numbers import alike, decimals, metric_decimals, number, told
from .provenance import commit
from .texts import join, say, span, texts

VERDICTS = {True: ("pass", "within"), False: ("fail", "outside"), None: ("not_measured", "unknown")}
"""Of a repeated training, by whether it lies within the spread of the seeds: kind of the badge, key of its words."""

IDENTICAL = ("pass", "identical")
"""The same of one that gives the very same number."""


def lines(main: Report, companions: Sequence[Companion], language: str = "en") -> Markup:
    """Return the section's heading and, for each companion, what it is, where, when and from what, and what is odd."""
    return render("companions", language, items=[_line(main, companion, language) for companion in companions])


def _line(main: Report, companion: Companion, language: str) -> dict[str, object]:
    report, run = companion.report, companion.report.run
    machine = run.hardware.get("gpu") or run.hardware.get("cpu") or "–"
    return {
        "name": companion.name,
        "what": say(language, f"companions.{kind(main, report)}", n=number(context(report)), text=_test_text(report)),
        "about": join(language, [machine, f"{run.started_utc:%Y-%m-%d}", commit(report, language)]),
        "command": run.command,
        "warnings": _warnings(main, report, language),
    }


def _test_text(report: Report) -> str:
    """The name of the corpus on which the models were tested."""
    settings = settings_of(report)
    return str(settings.get("test_corpus") or settings.get("corpus")).rpartition("/")[2]


def _warnings(main: Report, report: Report, language: str) -> list[str]:
    """Sentences on what keeps a companion from being like the main run, or from being whole."""
    words, found = texts(language), []
    if same_data(main, report) is False and kind(main, report) != "texts":
        found.append(words["companions.other_data"])
    if changed := changed_settings(main, report):
        told = []
        for name, values in changed.items():
            theirs, ours = (f"{value:,}" if type(value) is int else value for value in values)
            told.append(say(language, "companions.setting", name=words.get(f"setting.{name}", name), theirs=theirs,
                            ours=ours))  # fmt: skip
        found.append(words["companions.settings"].format(list=join(language, told)))
    smaller = _reductions(report) - _reductions(main)
    if smaller:
        told = in_words(sorted(smaller, key=lambda reduction: reduction.setting), words)
        found.append(words["scale.where"].format(note=told).strip())
    if failed := sum(stage.status == "failed" for stage in report.stages):
        found.append(words["summary.stage_failed"].format(n=failed, total=len(report.stages)))
    if report.run.git_dirty:
        found.append(words["provenance.dirty"])
    return found


def _reductions(report: Report) -> set[Reduction]:
    return {reduction for stage in report.stages for reduction in stage.reductions}


def tables(main: Report, companions: Sequence[Companion], language: str = "en") -> Markup:
    """Return the repeated trainings, if any, and a folded table of every companion's headline numbers."""
    words = texts(language)
    of_repeats = ("numbers.model", "companions.seed", "repeat.first", "repeat.again", "repeat.difference",
                  "repeat.spread", "repeat.verdict")  # fmt: skip
    of_headlines = ("companions.companion", "numbers.model", "companions.context", "criterion.perplexity",
                    "numbers.interval", "companions.seeds", "companions.ratios")  # fmt: skip
    return render(
        "companion_tables", language,
        repeats_head=[words[key] for key in of_repeats],
        repeats=[
            (
                f"{words['repeat.title']} ({companion.name})",
                [_repeat_row(found, language) for found in repeats(main, companion.report)],
            )
            for companion in of_kind(main, companions, "repeat")
        ],
        repeats_note=say(language, "repeat.note", factor=number(WITHIN_SDS)),
        headlines_head=[words[key] for key in of_headlines],
        headlines=[row for companion in companions for row in _headline_rows(companion, words, language)],
    )  # fmt: skip


def _repeat_row(found: Repeat, language: str) -> list[object]:
    """The numbers of one training and of its repetition, all with the same decimals; kind and words of the verdict."""
    values = [found.first, found.again, abs(found.difference), *found.of_seeds]
    first, again, difference, *of_seeds = alike(values, decimals(values, marks=(0,)))
    sign = "−" if found.difference < 0 else "+" if found.difference > 0 else ""
    kind_of, key = VERDICTS[found.within] if found.difference else IDENTICAL
    row = [style(found.model, language).label, found.seed, first, again, sign + difference]
    return [*row, _spread(found, of_seeds, language), (kind_of, texts(language)[f"repeat.{key}"])]


def _spread(found: Repeat, told: Sequence[str], language: str) -> str:
    """The lowest and the highest of the seeds, which are also given as they are told, and their deviation."""
    if found.sd is None:
        return texts(language)["repeat.one_seed"]
    low, high = (told[found.of_seeds.index(pick(found.of_seeds))] for pick in (min, max))
    return say(language, "repeat.of_seeds", low=low, high=high, sd=number(found.sd), n=len(found.of_seeds))


def _headline_rows(companion: Companion, words: Mapping[str, str], language: str) -> list[list[str]]:
    """Return a row for each model's perplexity, or one that says there is none."""
    record, length = stage_of(companion.report, "perplexity"), number(context(companion.report))
    found = [metric for metric in record.metrics if metric.name == "perplexity"] if record else []
    rows = [] if found else [[companion.name, words["companions.no_perplexity"], length, "–", "", "", ""]]
    for metric in found:
        value, *ends = told(metric)
        ratios = why(metric, words) if metric.value is None else _ratios(record.metrics, metric.model, language)
        seeds = str(len(metric.samples) or "")
        label = style(metric.model, language).label
        rows.append([companion.name, label, length, value, span(language, ends), seeds, ratios])
    return rows


def _ratios(metrics: Sequence[Metric], model: str, language: str) -> str:
    """Return `baseline ratio` for every baseline that a model was compared with."""
    found = [m for m in metrics if m.model == model and m.name.startswith(RATIO) and m.value is not None]
    values = alike([metric.value for metric in found], metric_decimals(found))
    labels = [style(metric.name.removeprefix(RATIO), language).label for metric in found]
    return join(language, map(" ".join, zip(labels, values, strict=True)))
