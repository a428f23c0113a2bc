"""A run's records to the blocks of its report: verdicts, stages, results, companions, and where the numbers come from.

Words come from the language files, numbers from the records, HTML from the templates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import plotly.graph_objects as go
from markupsafe import Markup

from muse import catalog
from muse.catalog import BASELINE
from muse.host.paths import from_checkout
from muse.records.criteria import LIMITS, quoted
from muse.records.reasons import RECORDED
from muse.records.schema import Criterion, Excerpt, Judged, Reduction, Report, StageRecord

from . import companion_tables, figures, first_screen
from .assemble import assemble, companions_of
from .figures.companions import of_companions
from .figures.style import metric_label, mimebundle, style
from .frame import TEXT_PAGE, scale_label
from .html import asset, render
from .notes import note
from .numbers import alike, column_decimals, decimals, number, told
from .provenance import provenance
from .real_baseline import real_baseline_note
from .texts import say, span, stage_title, texts, unit_label

SHARED_BY, LONG_NOTE = 3, 24  # rows and characters from which on a note stands once, below its table
HARDER_MEMORY = {
    "with_optimizer": ("peak_memory_with_optimizer", "peak_memory_with_optimizer"),
    "training_step": ("peak_memory_training_step", "peak_memory_training_step"),
    "training_step_adamw": ("peak_memory_training_step_adamw", "peak_memory_training_step_adamw"),
    "matched": ("peak_memory_matched", "peak_memory_matched"),
    "bfloat16": ("peak_memory", "peak_memory_bfloat16"),
    "recomputed": ("peak_memory_recomputed", "peak_memory_recomputed"),
    "plain": ("peak_memory_plain", "peak_memory_plain"),
}
"""What stands beside the memory criterion, in this order: a metric of the model, over one of the baseline."""


def sections(record_dir: str | Path, language: str = "en") -> list[dict[str, object]]:
    """Return the report of a run as MIME bundles of HTML and of figures, in the order in which they are shown.

    `record_dir` holds the records of the stages; run.json and the companions stand beside it.
    """
    folder, words = from_checkout(record_dir).parent, texts(language)
    report, companions = assemble(folder, language, without_run=True), companions_of(folder)
    blocks = [lead(report, language), *_quality(report, language)]
    blocks += [] if first_screen.counts_only(report) else [verdicts(report, language)]
    blocks += [first_screen.about(report, language), stage_table(report, language)]
    blocks.append(render("heading", level=2, text=words["report.results"]))
    for stage in report.stages:
        title = render("heading", level=3, text=titled(stage, language))
        blocks.append(title + real_baseline_note(stage, language, companions) + text_link(stage, folder, language))
        blocks += [*figures.of_stage(stage, language), numbers_table(stage, language)]
    if companions:
        blocks.append(companion_tables.lines(report, companions, language))
        blocks += of_companions(report, companions, language)
        blocks.append(companion_tables.tables(report, companions, language))
    blocks.append(provenance(report, folder, language, [companion.name for companion in companions]))
    return [{"text/html": block} if isinstance(block, str) else mimebundle(block) for block in blocks]


def titled(stage: StageRecord, language: str) -> str:
    """Return a stage's name with the text that it read, if any."""
    name = stage_title(stage.stage, texts(language))
    return say(language, "figure.with_unit", name=name, unit=stage.text) if stage.text else name


def show(record_dir: str | Path, language: str = "en") -> None:
    """Show the report of a run below a notebook's cell, with the captions of its figures."""
    for block in sections(record_dir, language):
        figures.show_bundle(block)


def text_link(stage: StageRecord, folder: Path, language: str = "en") -> Markup:
    """Return the way from the perplexities to the page of losses by token; an empty text where there is none."""
    if stage.stage != "perplexity" or not (folder / TEXT_PAGE).is_file():
        return Markup()
    words = texts(language)
    link = Markup('<a href="{}">{}</a> {}').format(TEXT_PAGE, words["text_page.link"], words["text_page.about"])
    return render("note", language, title="", text=link)


def _quality(report: Report, language: str) -> list[go.Figure]:
    """Quality against GPU memory, which is the question, where the run has measured both."""
    try:
        return [figures.quality_over_memory(report.stages, language)]
    except figures.NothingToDraw:
        return []


def scale_notice(stages: Iterable[StageRecord], language: str = "en", reductions: Iterable[Reduction] = ()) -> str:
    """Return the label that every page carries when any stage ran below the published scale, else an empty text.

    `reductions` are those of the run, which count for a stage that has none of its own.
    """
    reduced = [stage for stage in stages if stage.scale == "reduced"]
    found = list(dict.fromkeys([*(it for stage in reduced for it in stage.reductions), *reductions]))
    if not reduced and not found:
        return ""
    return scale_label(found, language) or texts(language)["scale.reduced"]


def lead(report: Report, language: str = "en") -> Markup:
    """Return the first screen: title, scale label, the answer, the run in a line, what failed, and the models."""
    failed = sum(stage.status == "failed" for stage in report.stages)
    return render(
        "lead", language, css=asset("parts.css"), notice=scale_notice(report.stages, language),
        answer=first_screen.answer(report, language), run=first_screen.run_line(report, language),
        models=first_screen.models_table(report, language), failed=failed, total=len(report.stages),
        question="counting" if first_screen.counts_only(report) else "",
    )  # fmt: skip


def headline(report: Report, language: str = "en") -> list[str]:
    """Return for each candidate, in a sentence, how many of its criteria pass."""
    words = texts(language)
    if not report.stages:
        return [words["summary.nothing"]]
    if len(report.judged) < 2:
        return [_counts(report.criteria, words)]
    counted = {one.model: _counts(one.criteria, words) for one in report.judged}
    return [f"{style(model, language).label}{words['colon']} {told}" for model, told in counted.items()]


def verdicts(report: Report, language: str = "en") -> Markup:
    """Return the criteria as cards: verdict in a word and a sign, value, target, basis and reason.

    Further candidates follow, each under a heading of its own.
    """
    asked = [
        {
            "model": style(one.model, language).label,
            "counts": _counts(one.criteria, texts(language)),
            "cards": [_card(found, one, report.stages, language) for found in one.criteria],
        }
        for one in report.judged
    ]
    return render("verdicts", language, asked=asked)


def _counts(criteria: Sequence[Criterion], words: Mapping[str, str]) -> str:
    found = [criterion.verdict for criterion in criteria]
    if found and found.count("pass") == len(found):
        return words["summary.all_pass"]
    counts = {"passed": "pass", "failed": "fail", "open": "not_measured"}
    return words["summary.counts"].format(**{name: found.count(verdict) for name, verdict in counts.items()})


def _card(criterion: Criterion, judged: Judged, stages: Sequence[StageRecord], language: str) -> dict[str, object]:
    name = criterion.name
    asked = {"model": style(judged.model, language).label, "baseline": style(BASELINE, language).label}
    memory = next((stage for stage in stages if stage.stage == "memory" and stage.status == "ok"), None)
    harder, told = [], []
    if name == "vram" and memory:
        harder, told = _harder_memory(judged, memory, language), _told_memory(judged, memory, language)
    return {
        "criterion": criterion,
        "question": say(language, f"criterion.{name}.question", **asked, limit=LIMITS.get(name)),
        "value": _criterion_value(criterion, texts(language)),
        "meaning": "" if criterion.value is None else say(language, f"criterion.{name}.value", **asked),
        "reason": _with_errors_marked(criterion.reason, stages),
        "beside": harder,
        "told": told,
    }


def _with_errors_marked(reason: str, stages: Sequence[StageRecord]) -> str:
    """The reason of a verdict, in which the error of a stage that failed is marked as English."""
    for stage in stages:
        before, error, after = reason.partition(quoted(stage.error)) if stage.error else (reason, "", "")
        if error:
            return Markup('{}<span lang="en">{}</span>{}').format(before, error, after)
    return reason


def _criterion_value(criterion: Criterion, words: Mapping[str, str]) -> str:
    """The value for reading; a ratio never reads like its limit unless it is on it."""
    if criterion.value is None:
        return words["verdict.none"]
    value = _ratio(criterion.value, criterion.name) if criterion.name in LIMITS else number(criterion.value)
    return f"{words['basis.estimate']} {value}" if criterion.basis == "estimate" else value


def _ratio(value: float, criterion: str) -> str:
    return alike([value], decimals([value], marks=(LIMITS[criterion],)))[0]


def _harder_memory(judged: Judged, memory: StageRecord, language: str) -> list[tuple[str, Criterion | None]]:
    """A line for each further way in which a model and the baseline were measured: its ratio, and its own verdict."""
    verdicts = {found.name: found for found in judged.beside}
    lines = []
    for variant, names in HARDER_MEMORY.items():
        ours, theirs = map(memory.find, names, (judged.model, BASELINE))
        if ours and theirs and ours.value is not None and theirs.value:
            value = _ratio(ours.value / theirs.value, "vram")
            if "estimate" in (ours.basis, theirs.basis):
                value = f"{texts(language)['basis.estimate']} {value}"
            lines.append((say(language, f"criterion.vram.{variant}", value=value), verdicts.get(f"vram_{variant}")))
    return lines


def _told_memory(judged: Judged, memory: StageRecord, language: str) -> list[str]:
    """Why the verdict on equal terms is what it is, what no recomputing takes away, and what a small GPU can train."""
    models = {"model": style(judged.model, language).label, "baseline": style(BASELINE, language).label}
    words = texts(language)
    lines = [
        f"{words[f'criterion.{found.name}']}{words['colon']} {found.reason}"
        for found in judged.beside
        if found.basis == "measured"  # of an estimate its line says all there is
    ]
    sides = [
        [memory.find(f"{kind}_memory_recomputed", model) for kind in ("peak", "parameter")]
        for model in (judged.model, BASELINE)
    ]
    found = [metric for side in sides for metric in side]
    if all(metric and metric.value and metric.basis == "measured" for metric in found):
        peak, parameters, peak_baseline, parameters_baseline = (metric.value for metric in found)
        numbers = {
            "peak": peak,
            "parameters": 2 * parameters,
            "peak_baseline": peak_baseline,
            "parameters_baseline": 2 * parameters_baseline,
            "ratio": peak / peak_baseline,
            "parameter_ratio": parameters / parameters_baseline,
        }
        lines.append(say(language, "criterion.vram.what_is_left", **numbers, **models))
    fits, step = (memory.find(name, judged.model) for name in ("trains_within_8_gib", "peak_memory_recipe_step"))
    if fits and fits.value is not None:
        lines.append(say(language, f"criterion.vram.{'trains' if fits.value else 'trains_not'}", **models))
    if step and step.value is not None:
        lines.append(say(language, "criterion.vram.recipe_step", peak=step.value, basis=words[f"basis.{step.basis}"]))
    return lines


def stage_table(report: Report, language: str = "en") -> Markup:
    """Return every stage that ran or was meant to, with status, scale, duration, error and a link to its page."""
    records = {stage.stage: stage for stage in report.stages}
    planned = report.run.params.get("stages")
    names = dict.fromkeys([*(planned if isinstance(planned, list) else []), *records])
    rows = [
        row
        for name in sorted(map(str, names), key=catalog.stem)
        for row in _stage_rows(name, records.get(name), texts(language))
    ]
    return render("stages", language, rows=rows)


def _stage_rows(name: str, record: StageRecord | None, words: Mapping[str, str]) -> list[list[object]]:
    """Return the row of a stage and, where it failed, a row of one cell with its error."""
    title = stage_title(name, words)
    if record is None:
        return [[{"title": title, "page": ""}, ("not_measured", words["stages.missing"]), "–", "–"]]
    failed = record.status == "failed"
    status = ("fail", words["stages.failed"]) if failed else ("pass", words["stages.ok"])
    scale = words["scale.short" if record.scale == "reduced" else "scale.published"]
    row = [{"title": title, "page": catalog.page(name)}, status, scale, _duration(record, words)]
    return [row, [{"error": (record.error or "?").strip()[-600:], "stage": name}]] if failed else [row]


def _duration(record: StageRecord, words: Mapping[str, str]) -> str:
    seconds = max(0, round((record.finished_utc - record.started_utc) / timedelta(seconds=1)))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    largest = "hours" if hours else "minutes" if minutes else "seconds"
    return words[f"duration.{largest}"].format(hours=hours, minutes=minutes, seconds=seconds)


def numbers_table(stage: StageRecord, language: str = "en") -> Markup:
    """Return every metric of a stage with unit, count, interval, basis and note, and the texts it has as evidence.

    A failed stage's error stands first. A note of several rows is told once, below the table.
    """
    words = texts(language)
    head = [words[f"numbers.{key}"] for key in ("name", "model", "value", "unit", "n", "interval", "basis", "note")]
    rows = []
    for metric, places in zip(stage.metrics, column_decimals(stage.metrics), strict=True):
        value, *ends = told(metric, places)
        about = metric_label(metric.name, language), style(metric.model, language).label
        said = note(metric, stage, language)
        unit = unit_label(metric.unit, language)
        rows.append([*about, value, unit, number(metric.n), span(language, ends), words[f"basis.{metric.basis}"], said])
    shared = _shared_notes([row[-1] for row in rows])
    for row in rows:
        if row[-1] in shared:
            row[-1] = words["numbers.note_of"].format(number=shared.index(row[-1]) + 1)
    return render(
        "numbers", language, stage=stage, name=stage_title(stage.stage, words), head=head, rows=rows, shared=shared,
        has_intervals=any(metric.interval for metric in stage.metrics),
        excerpts=[
            {"model": style(item.model, language).label, "name": _excerpt(item, words), "text": item.text}
            for item in stage.excerpts
        ],
    )  # fmt: skip


def _shared_notes(notes: Sequence[str]) -> list[str]:
    """The notes that several rows have, in the order of their first rows; a short one is no longer than its number."""
    rows_of = Counter(notes)
    return [note for note in dict.fromkeys(notes) if rows_of[note] >= SHARED_BY and len(note) > LONG_NOTE]


def _excerpt(item: Excerpt, words: Mapping[str, str]) -> str:
    """What a piece of text is: as its record says in English, else by the first word of its name."""
    name = item.name.replace("_", " ")
    kind = item.name.partition(":")[0]
    return name if words["language"] == RECORDED else words.get(f"excerpt.{kind}", name)
