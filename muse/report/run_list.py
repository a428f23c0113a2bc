"""The runs of a folder, and the trainings of one, as tables; the runs also as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from .companions import settings_of, stage_of
from .figures.style import style
from .frame import INDEX, TEXT_PAGE, write_page
from .html import render
from .numbers import number
from .page import headline
from .runs import Checkpoint, Run
from .tables import Table
from .texts import join, say, texts

MARK = '<main data-page="runs" id="content">'
"""By which the page of a folder of runs is known."""


def runs_table(runs: Sequence[Run], folder: Path, language: str = "en", *, linked: bool = False) -> Table:
    """Return a row for each run: name, date, models, scale, text, verdict, and whether it came to its end."""
    words = texts(language)
    keys = ("compare.run", "runs.date", "runs.models", "stages.scale", "runs.text", "runs.verdict", "stages.status")
    rows = [
        [
            _linked(run) if linked else run.name,
            f"{run.report.run.started_utc:%Y-%m-%d %H:%M}",
            join(language, (style(model, language).label for model in _models(run))),
            words["scale.short" if any(s.scale == "reduced" for s in run.report.stages) else "scale.published"],
            _text(run),
            " ".join(headline(run.report, language)),
            _status(run, language),
        ]
        for run in runs
    ]
    note = "" if rows else say(language, "runs.none", folder=folder)
    return Table(words["runs.title"], [words[key] for key in keys], rows, note=note)


def _linked(run: Run) -> str | Markup:
    """The run's name, as a link where it has a page."""
    if not (run.folder / INDEX).is_file():
        return run.name
    return Markup('<a href="{}/{}">{}</a>').format(quote(run.folder.name), INDEX, run.name)


def _models(run: Run) -> list[str]:
    """The models that left a number, in the order of the settings."""
    planned = settings_of(run.report).get("models") or []
    measured = dict.fromkeys(m.model for stage in run.report.stages for m in stage.metrics if m.model)
    return [name for name in planned if name in measured] or list(measured)


def _text(run: Run) -> str:
    record = stage_of(run.report, "perplexity") or stage_of(run.report, "train")
    return (record.text if record else "") or "–"


def _status(run: Run, language: str) -> str:
    if run.report.run.finished_utc is None:
        return texts(language)["runs.unfinished"]
    if run.failed:
        return say(language, "runs.failed", stages=join(language, run.failed))
    return texts(language)["runs.finished"]


def checkpoints_table(checkpoints: Sequence[Checkpoint]) -> Table:
    """Return a row for each training: model, seed, tokens, best validation loss, folder; for a terminal."""
    rows = [
        (
            one.model,
            str(one.seed),
            f"{one.planned_tokens:,}" if one.tokens is None else f"{one.tokens:,}",
            "unfinished" if one.loss is None else f"{one.loss:.4f}",
            one.folder.name,
        )
        for one in checkpoints
    ]
    head = ("model", "seed", "tokens", "loss (nat/token)", "folder")
    return Table("Trainings", head, rows, {1, 2, 3}, "" if rows else "No training was found.")


def write_index(runs: Sequence[Run], folder: Path, language: str = "en", problems: Sequence[str] = ()) -> Path:
    """Write the page of a folder of runs; it links to theirs and tells what could not be read."""
    words = texts(language)
    table = runs_table(runs, folder, language, linked=True)
    main = render(
        "tables", language, title=words["runs.title"], lines=[words["runs.lead"], *problems], notice="",
        tables=[table._replace(title=say(language, "runs.count", n=number(len(runs))))],
    )  # fmt: skip
    main = Markup(str(main).replace('<main id="content">', MARK, 1))
    write_page(folder / INDEX, main, words["runs.title"], language=language)
    return folder / INDEX


def is_run_list(page: Path) -> bool:
    """Return whether a file is the page of a folder of runs."""
    try:
        return MARK in page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def list_link(run_folder: Path, language: str) -> list[tuple[str, str]]:
    """Return the link from a page of a run to the list of all runs, where there is one."""
    return [(texts(language)["runs.title"], f"../{INDEX}")] if is_run_list(run_folder.parent / INDEX) else []


def further_links(run_folder: Path, language: str) -> list[tuple[str, str]]:
    """Return the links from a run's index.html to its page of text and to the list of all runs, as far as they are."""
    found = [(texts(language)["text_page.short"], TEXT_PAGE)] if (run_folder / TEXT_PAGE).is_file() else []
    return found + list_link(run_folder, language)
