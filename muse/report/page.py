"""Records to the HTML of the report: verdicts, stages, numbers and where they come from.

Every function returns HTML as text. Words come from the language files and numbers from the records.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from muse import catalog
from muse.catalog import BASELINE
from muse.records.criteria import PERPLEXITY_RATIO, VRAM_RATIO
from muse.records.schema import Criterion, Report, StageRecord

from .export import export_html, scale_label, template_text, write_assets
from .figures.style import alike, column_decimals, decimals, metric_label, number, say, style, told
from .texts import texts

__all__ = [
    "badge",
    "commit",
    "downloads",
    "excerpts",
    "export_html",
    "folded",
    "heading",
    "lab_style",
    "note_no_mixing",
    "numbers_table",
    "provenance",
    "scale_banner",
    "scale_notice",
    "stage_table",
    "stage_title",
    "summary",
    "table",
    "verdict_table",
    "write_assets",
]

LIMITS = {"perplexity": PERPLEXITY_RATIO, "vram": VRAM_RATIO}
HARDER_MEMORY = ("with_optimizer", "matched", "recomputed")
"""Variants of the memory measurement that stand beside the one of the criterion."""

ICONS = {"pass": "✓", "fail": "✕", "not_measured": "–"}


def _e(value: object) -> str:
    return html.escape(str(value))


def lab_style() -> str:
    """Return the style of the other functions' HTML for JupyterLab; pages have it already and drop this one."""
    return f'<style class="muse-lab">{template_text("parts.css")}</style>'


def heading(text: str, level: int = 2) -> str:
    """Return a heading, which the page's table of contents then lists."""
    return f"<h{level}>{_e(text)}</h{level}>"


def stage_title(stage: str, language: str = "en") -> str:
    """Return a stage's name as readers know it."""
    return texts(language).get(f"stage.{stage}", stage)


def scale_notice(stages: Iterable[StageRecord], language: str = "en") -> str:
    """Return the label that every page carries when any stage ran below the published scale, else an empty text."""
    reduced = [stage for stage in stages if stage.scale == "reduced"]
    if not reduced:
        return ""
    found = list(dict.fromkeys(reduction for stage in reduced for reduction in stage.reductions))
    return scale_label(found, language) or texts(language)["scale.reduced"]


def scale_banner(report: Report, language: str = "en") -> str:
    """Return the scale label as a block, or nothing at published scale."""
    notice = scale_notice(report.stages, language)
    return f'<p class="muse muse-scale" role="note">{_e(notice)}</p>' if notice else ""


def note_no_mixing(language: str = "en") -> str:
    """Return the note that the reference Stage 1 sees one token only."""
    return f'<div class="muse"><p class="muse-note" role="note">{_e(texts(language)["note.no_mixing"])}</p></div>'


def summary(report: Report, language: str = "en") -> str:
    """Return the headline: how many criteria pass, fail or were not measured, and which stages did not finish."""
    words = texts(language)
    if not report.stages:
        lines = [words["summary.nothing"]]
    elif len(report.judged) < 2:
        lines = [_headline(report.criteria, words)]
    else:
        counted = "summary.counts_of_model"
        lines = [
            f"{style(one.model, language).label}{words['colon']} {_headline(one.criteria, words, counted)}"
            for one in report.judged
        ]
    failed = sum(stage.status == "failed" for stage in report.stages)
    more = ""
    if failed:
        sentence = words["summary.stage_failed"].format(n=failed, total=len(report.stages))
        more = f'<p class="muse-warning" role="note">{_e(sentence)}</p>'
    return f'<div class="muse"><p class="muse-headline">{"<br>".join(map(_e, lines))}</p>{more}</div>'


def _headline(criteria: Sequence[Criterion], words: dict[str, str], counted: str = "summary.counts") -> str:
    verdicts = [criterion.verdict for criterion in criteria]
    if verdicts and verdicts.count("pass") == len(verdicts):
        return words["summary.all_pass"]
    counts = {"passed": "pass", "failed": "fail", "open": "not_measured"}
    return words[counted].format(**{name: verdicts.count(verdict) for name, verdict in counts.items()})


def badge(kind: str, label: str) -> str:
    """Return a verdict, one of pass, fail and not_measured, as a sign and a word."""
    return f'<span class="muse-badge {kind}"><span aria-hidden="true">{ICONS[kind]}</span> {_e(label)}</span>'


def verdict_table(report: Report, language: str = "en") -> str:
    """Return the five criteria as cards: verdict in a word and a sign, value, target, basis and reason.

    Further candidates follow, each under a heading of its own.
    """
    parts = []
    for one in report.judged:
        if parts:
            parts.append(heading(texts(language)["verdict.of_model"].format(model=style(one.model, language).label), 3))
        parts.append(_cards(one.criteria, one.model, report.stages, language))
    return "".join(parts)


def _cards(criteria: Sequence[Criterion], model: str, stages: Sequence[StageRecord], language: str) -> str:
    cards = "".join(_card(criterion, model, stages, language) for criterion in criteria)
    return f'<div class="muse muse-cards">{cards}</div>'


def _card(criterion: Criterion, model: str, stages: Sequence[StageRecord], language: str) -> str:
    words, name = texts(language), criterion.name
    asked = {"model": style(model, language).label, "baseline": style(BASELINE, language).label}
    question = say(language, f"criterion.{name}.question", **asked, limit=LIMITS.get(name))
    value = _criterion_value(criterion, words)
    meaning = (
        "" if criterion.value is None else f" <small>{_e(say(language, f'criterion.{name}.value', **asked))}</small>"
    )
    beside = _harder_memory(model, stages, language) if name == "vram" else []
    return (
        f'<article class="muse-card {criterion.verdict}" data-criterion="{name}">'
        f"<header><h3>{_e(words[f'criterion.{name}'])}</h3>"
        f"{badge(criterion.verdict, words[f'verdict.{criterion.verdict}'])}</header>"
        f"<p>{_e(question)}</p>"
        f'<dl><dt>{_e(words["verdict.value"])}</dt><dd class="value">{_e(value)}{meaning}</dd>'
        f"{''.join(f'<dd>{_e(line)}</dd>' for line in beside)}"
        f"<dt>{_e(words['verdict.target'])}</dt><dd>{_e(criterion.target)}</dd>"
        f"<dt>{_e(words['verdict.basis'])}</dt><dd>{_e(words[f'basis.{criterion.basis}'])}</dd></dl>"
        f'<p class="reason">{_e(criterion.reason)}</p></article>'
    )


def _criterion_value(criterion: Criterion, words: Mapping[str, str]) -> str:
    """The value for reading; a ratio never reads like its limit unless it is on it."""
    if criterion.value is None:
        return words["verdict.none"]
    limit = LIMITS.get(criterion.name)
    value = number(criterion.value)
    if limit is not None:
        value = alike([criterion.value], decimals([criterion.value], marks=(limit,)))[0]
    return f"{words['basis.estimate']} {value}" if criterion.basis == "estimate" else value


def _harder_memory(model: str, stages: Sequence[StageRecord], language: str) -> list[str]:
    """A line for each further way in which the memory stage has measured a model and the baseline: its ratio."""
    record = next((stage for stage in stages if stage.stage == "memory" and stage.status == "ok"), None)
    lines = []
    for variant in HARDER_MEMORY if record else ():
        ours, theirs = (record.find(f"peak_memory_{variant}", name) for name in (model, BASELINE))
        if ours and theirs and ours.value is not None and theirs.value:
            ratio = ours.value / theirs.value
            value = alike([ratio], decimals([ratio], marks=(VRAM_RATIO,)))[0]
            if "estimate" in (ours.basis, theirs.basis):
                value = f"{texts(language)['basis.estimate']} {value}"
            lines.append(say(language, f"criterion.vram.{variant}", value=value))
    return lines


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = (), caption: str = "") -> str:
    """Return a table that scrolls sideways; cells are HTML, `numeric` columns stand to the right.

    A row of a single cell spans all columns.
    """
    right = [' class="num"' if column in numeric else "" for column in range(len(head))]
    top = "".join(f'<th scope="col"{css}>{_e(title)}</th>' for title, css in zip(head, right, strict=True))
    body = ""
    for row in rows:
        spans = len(row) == 1
        cells = [f'<td class="span" colspan="{len(head)}">{row[0]}</td>'] if spans else []
        cells = cells or [f"<td{css}>{cell}</td>" for cell, css in zip(row, right, strict=True)]
        body += f"<tr>{''.join(cells)}</tr>"
    label = f' role="region" aria-label="{_e(caption)}"' if caption else ""
    return (
        f'<div class="muse muse-table" tabindex="0"{label}><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _duration(started: datetime, finished: datetime | None) -> str:
    if finished is None:
        return "–"
    seconds = max(0, round((finished - started).total_seconds()))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def stage_table(report: Report, language: str = "en") -> str:
    """Return every stage that ran or was meant to, with status, scale, duration, error and a link to its page."""
    words = texts(language)
    records = {stage.stage: stage for stage in report.stages}
    planned = report.run.params.get("stages")
    names = list(dict.fromkeys([*(planned if isinstance(planned, list) else []), *records]))
    names.sort(key=lambda name: catalog.stem(str(name)))
    head = [words[f"stages.{key}"] for key in ("stage", "status", "scale", "duration")]
    rows = [row for name in names for row in _stage_rows(str(name), records.get(name), language)]
    return table(head, rows, numeric=[3])


def _stage_rows(name: str, record: StageRecord | None, language: str) -> list[list[str]]:
    """Return the row of a stage and, where it failed, a row of one cell with its error."""
    words = texts(language)
    title = _e(stage_title(name, language))
    if record is None:
        return [[title, badge("not_measured", words["stages.missing"]), "–", "–"]]
    failed = record.status == "failed"
    status = badge("fail" if failed else "pass", words["stages.failed" if failed else "stages.ok"])
    scale = words["scale.short" if record.scale == "reduced" else "scale.published"]
    link = f'<a href="{_e(catalog.page(name))}">{title}</a>'
    row = [link, status, _e(scale), _duration(record.started_utc, record.finished_utc)]
    if not failed:
        return [row]
    log = f'<a href="logs/{_e(name)}.log">{_e(words["stages.log"])}</a>'
    return [row, [f"<code>{_e((record.error or '?').strip()[-600:])}</code> {log}"]]


def numbers_table(stage: StageRecord, language: str = "en") -> str:
    """Return every metric of a stage with unit, count, interval, basis and note; a failed one's error first."""
    words, failure, title = texts(language), "", "numbers.caption"
    if stage.status == "failed":
        failure = f'<div class="failure"><b>{_e(words["stages.failed"])}</b><pre>{_e(stage.error or "?")}</pre></div>'
        title = "numbers.kept"
    if not stage.metrics:
        return failure or f'<p class="muse">{_e(words["numbers.none"])}</p>'
    head = [words[f"numbers.{key}"] for key in ("name", "model", "value", "unit", "n", "interval", "basis", "note")]
    rows = [
        [
            _e(metric_label(metric.name, language)),
            _e(style(metric.model, language).label),
            _e(value),
            _e(metric.unit),
            _e(number(metric.n)),
            _e(" – ".join(ends)),
            _e(words[f"basis.{metric.basis}"]),
            f'<div class="muse-long">{_e(metric.note)}</div>' if metric.note else "",
        ]
        for metric, places in zip(stage.metrics, column_decimals(stage.metrics), strict=True)
        for value, *ends in [told(metric, places)]
    ]
    caption = f"{stage_title(stage.stage, language)}{words['colon']} {words[title]}"
    found = table(head, rows, numeric=[2, 4, 5], caption=caption)
    note = f"<p>{_e(words['numbers.interval_note'])}</p>" if any(metric.interval for metric in stage.metrics) else ""
    return failure + folded(f"{words[title]} ({len(rows)})", found + note)


def excerpts(stage: StageRecord, language: str = "en") -> str:
    """Return the texts that belong to a stage's evidence, such as what a trained model writes."""
    if not stage.excerpts:
        return ""
    blocks = "".join(
        f"<p><b>{_e(style(item.model, language).label)}</b> {_e(item.name.replace('_', ' '))}</p>"
        f'<p class="muse-excerpt">{_e(item.text)}</p>'
        for item in stage.excerpts
    )
    return f'<details class="code muse"><summary>{_e(texts(language)["excerpts.title"])}</summary>{blocks}</details>'


def _definitions(values: dict[str, object]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_e(key)}</th><td class="long">{_e(item)}</td></tr>' for key, item in values.items()
    )
    return f'<div class="muse muse-table" tabindex="0"><table><tbody>{rows}</tbody></table></div>'


def folded(title: str, body: str) -> str:
    """Return a block that opens on a click."""
    return f'<details class="code"><summary>{_e(title)}</summary>{body}</details>'


def provenance(report: Report, language: str = "en") -> str:
    """Return commit, dirty flag, versions, hardware, seeds, command, inputs by SHA-256 and all parameters."""
    words, run = texts(language), report.run
    inputs = {(file.path, file.sha256): file for stage in report.stages for file in stage.inputs}.values()
    files = table(
        [words["provenance.file"], "SHA-256", words["provenance.bytes"]],
        [
            [_e(file.path), f'<code class="muse-hash">{_e(file.sha256)}</code>', number(file.num_bytes)]
            for file in inputs
        ],
        numeric=[2],
    )
    about = {
        words["provenance.run"]: run.id,
        words["provenance.profile"]: run.profile,
        words["provenance.started"]: _time(run.started_utc),
        words["provenance.commit"]: commit(report, language),
        words["provenance.seeds"]: words["and"].join(map(str, run.seeds)),
        words["provenance.command"]: run.command,
        words["provenance.hardware"]: words["join"].join(f"{key}: {value}" for key, value in run.hardware.items()),
        words["provenance.versions"]: words["join"].join(f"{key} {value}" for key, value in run.versions.items()),
    }
    parts = [_definitions(about)]
    if run.git_dirty:
        parts.insert(0, f'<p class="muse-warning" role="note">{_e(words["provenance.dirty"])}</p>')
    parts.append(f"<h3>{_e(words['provenance.inputs'])}</h3>")
    parts.append(files if inputs else f"<p>{_e(words['provenance.no_inputs'])}</p>")
    parts.append(folded(words["provenance.params"], _definitions(run.params)))
    return f'<div class="muse">{"".join(parts)}</div>'


def commit(report: Report, language: str) -> str:
    """Return the commit that the run was made from, and whether it was clean where that is known."""
    words, run = texts(language), report.run
    if run.git_commit is None:
        return words["provenance.no_commit"]
    return f"{run.git_commit} ({words['provenance.clean']})" if run.git_dirty is False else run.git_commit


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def downloads(report: Report, folder: str | Path, language: str = "en", companions: Iterable[str] = ()) -> str:
    """Return links, seen from index.html, to report.json, run.json, each stage's record and executed notebook.

    `folder` is the run's: only records and notebooks that it still holds are linked. The reports of companions, given
    by name, follow.
    """
    words = texts(language)
    links = {"report.json": words["downloads.report"], "run.json": words["downloads.run"]}
    for stage in report.stages:
        label = words["downloads.record"].format(stage=stage_title(stage.stage, language))
        if Path(folder, record := f"records/{stage.stage}.json").exists():
            links[record] = label
        notebook = f"notebooks/{catalog.stem(stage.stage)}.ipynb"
        if stage.status == "ok" and Path(folder, notebook).exists():
            links[notebook] = words["downloads.notebook"].format(stage=stage_title(stage.stage, language))
    links |= {f"companions/{name}.json": words["downloads.companion"].format(name=name) for name in companions}
    items = "".join(
        f'<li><a href="{_e(quote(path))}">{_e(path)}</a> – {_e(label)}</li>' for path, label in links.items()
    )
    return f'<ul class="muse">{items}</ul>'
