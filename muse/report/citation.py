"""How a run is cited, and its table of models for a paper."""

from __future__ import annotations

from pathlib import Path

from muse.catalog import MODEL_NAMES
from muse.host.files import sha256_of
from muse.records.environment import NOT_INSTALLED
from muse.records.schema import Report

from .docs import main_table
from .figures.style import style
from .runs import Run
from .tables import Table, written
from .texts import texts

PENDING = "SHA-256-of-report.json-once-it-is-written"
"""What stands in a citation for the hash of a report that is still being made."""


def bibtex(report: Report, path: Path) -> str:
    """Return the BibTeX entry of a run: title, version, commit, date, and the SHA-256 of its report.json in `path`."""
    run = report.run
    version = run.versions.get("muse-workbook", NOT_INSTALLED)
    commit = run.git_commit or "unknown"
    if run.git_dirty is not False:
        commit += " with uncommitted changes" if run.git_dirty else ", perhaps with uncommitted changes"
    fields = {
        "title": f"{texts('en')['report.title']} MUSE run {run.id}",
        "version": "unknown" if version == NOT_INSTALLED else version,
        "date": f"{run.started_utc:%Y-%m-%d}",
        "note": f"commit {commit}; report.json SHA-256 {sha256_of(path) if path.is_file() else PENDING}",
    }
    lines = [f"  {key} = {{{value}}}," for key, value in fields.items()]
    return "\n".join([f"@misc{{{run.id},", *lines, "}"])


def exported(run: Run, form: str) -> str:
    """Return a run's table of models in Markdown, LaTeX or CSV, the first two with the citation behind it.

    In CSV each row ends with commit and SHA-256, so that it stays plain CSV.
    """
    report, path = run.report, run.folder / "report.json"
    measured = {metric.model for stage in report.stages for metric in stage.metrics}
    head, rows = main_table(report, [model for model in MODEL_NAMES if model in measured])
    title = f"{run.report.run.id}: {', '.join(style(model).label for model in MODEL_NAMES if model in measured)}"
    if form == "csv":
        source = [report.run.git_commit or "", sha256_of(path) if path.is_file() else ""]
        head, rows = ["quantity", *head[1:], "commit", "report_sha256"], [[*row, *source] for row in rows]
    text = written([Table(title, head, rows, set(range(1, len(head))))], form)
    entry = bibtex(report, path)
    if form == "md":
        return f"{text}\n\n```bibtex\n{entry}\n```"
    return text if form == "csv" else "\n".join([text, *(f"% {line}" for line in entry.splitlines())])
