"""A run's companions to HTML: a line for what each is, repeated trainings with their verdict, and headline numbers."""

from __future__ import annotations

import html
from collections.abc import Sequence
from urllib.parse import quote

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
    stage_of,
)
from .figures.style import alike, decimals, join, metric_decimals, number, say, style, told
from .page import badge, commit, folded, heading, table
from .texts import texts


def _e(value: object) -> str:
    return html.escape(str(value))


def lines(main: Report, companions: Sequence[Companion], language: str = "en") -> str:
    """Return the section's heading and, for each companion, what it is, where, when and from what, and what is odd."""
    words = texts(language)
    items = "".join(_line(main, companion, language) for companion in companions)
    return (
        f"{heading(words['companions.title'])}"
        f'<div class="muse"><p>{_e(words["companions.lead"])}</p><ul class="muse-companions">{items}</ul></div>'
    )


def _line(main: Report, companion: Companion, language: str) -> str:
    report, run = companion.report, companion.report.run
    what = say(language, f"companions.{kind(main, report)}", n=number(context(report)))
    about = [run.hardware.get("gpu") or run.hardware.get("cpu") or "–", f"{run.started_utc:%Y-%m-%d}"]
    about.append(commit(report, language))
    warnings = "".join(f'<p class="muse-warning">{_e(warning)}</p>' for warning in _warnings(main, report, language))
    return (
        f'<li><b><a href="companions/{_e(quote(companion.name))}.json">{_e(companion.name)}</a></b>'
        f"{_e(texts(language)['colon'])} {_e(what)}<br>{_e(join(language, about))}<br><code>{_e(run.command)}</code>"
        f"{warnings}</li>"
    )


def _warnings(main: Report, report: Report, language: str) -> list[str]:
    """Sentences on what keeps a companion from being like the main run, or from being whole."""
    words, found = texts(language), []
    if same_data(main, report) is False:
        found.append(words["companions.other_data"])
    if changed := changed_settings(main, report):
        told = [say(language, "companions.setting", name=name, theirs=theirs, ours=ours)
                for name, (theirs, ours) in changed.items()]  # fmt: skip
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


def tables(main: Report, companions: Sequence[Companion], language: str = "en") -> str:
    """Return the repeated trainings, if any, and a folded table of every companion's headline numbers."""
    again = of_kind(main, companions, "repeat")
    parts = [_repeats(main, companion, language) for companion in again]
    if again:
        parts.append(f"<p>{_e(say(language, 'repeat.note', factor=number(WITHIN_SDS)))}</p>")
    return f'<div class="muse">{"".join(parts)}{_headlines(companions, language)}</div>'


def _repeats(main: Report, companion: Companion, language: str) -> str:
    words = texts(language)
    title = f"{words['repeat.title']} ({companion.name})"
    head = [words["numbers.model"], words["companions.seed"]]
    head += [words[f"repeat.{key}"] for key in ("first", "again", "difference", "spread", "verdict")]
    rows = [_repeat_row(found, language) for found in repeats(main, companion.report)]
    return heading(title, 3) + table(head, rows, numeric=[1, 2, 3, 4], caption=title)


def _repeat_row(found: Repeat, language: str) -> list[str]:
    """The numbers of one training and of its repetition, all with the same decimals."""
    values = [found.first, found.again, abs(found.difference), *found.of_seeds]
    first, again, difference, *of_seeds = alike(values, decimals(values, marks=(0,)))
    sign = "−" if found.difference < 0 else "+" if found.difference > 0 else ""
    model, spread = style(found.model, language).label, _spread(found, of_seeds, language)
    return [_e(model), _e(found.seed), first, again, sign + difference, _e(spread), _verdict(found, texts(language))]


def _spread(found: Repeat, told: Sequence[str], language: str) -> str:
    """The lowest and the highest of the seeds, which are also given as they are told, and their deviation."""
    if found.sd is None:
        return texts(language)["repeat.one_seed"]
    low, high = (told[found.of_seeds.index(pick(found.of_seeds))] for pick in (min, max))
    return say(language, "repeat.of_seeds", low=low, high=high, sd=number(found.sd), n=len(found.of_seeds))


def _verdict(found: Repeat, words: dict[str, str]) -> str:
    if found.within is None:
        return badge("not_measured", words["repeat.unknown"])
    return badge("pass", words["repeat.within"]) if found.within else badge("fail", words["repeat.outside"])


def _headlines(companions: Sequence[Companion], language: str) -> str:
    words = texts(language)
    keys = ("companions.companion", "numbers.model", "companions.context", "criterion.perplexity", "numbers.interval",
            "companions.seeds", "companions.ratios")  # fmt: skip
    rows = [row for companion in companions for row in _headline_rows(companion, language)]
    title = words["companions.headlines"]
    return folded(f"{title} ({len(rows)})", table([words[key] for key in keys], rows, [2, 3, 4, 5], title))


def _headline_rows(companion: Companion, language: str) -> list[list[str]]:
    """Return a row for each model's perplexity, or one that says there is none."""
    record, name = stage_of(companion.report, "perplexity"), _e(companion.name)
    found = [metric for metric in record.metrics if metric.name == "perplexity"] if record else []
    length = number(context(companion.report))
    if not found:
        return [[name, _e(texts(language)["companions.no_perplexity"]), length, "–", "", "", ""]]
    return [
        [
            name,
            _e(style(metric.model, language).label),
            length,
            value,
            " – ".join(ends),
            str(len(metric.samples)) if metric.samples else "",
            _e(metric.reason if metric.value is None else _ratios(record.metrics, metric.model, language)),
        ]
        for metric in found
        for value, *ends in [told(metric)]
    ]


def _ratios(metrics: Sequence[Metric], model: str, language: str) -> str:
    """Return `baseline ratio` for every baseline that a model was compared with."""
    found = [m for m in metrics if m.model == model and m.name.startswith(RATIO) and m.value is not None]
    values = alike([metric.value for metric in found], metric_decimals(found))
    labels = [style(metric.name.removeprefix(RATIO), language).label for metric in found]
    return join(language, map(" ".join, zip(labels, values, strict=True)))
