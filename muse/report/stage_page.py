"""The page of a stage from its record alone, in any language: question, answer, figures, numbers.

An English report shows executed notebooks in their place, which are written in English; another one links to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bs4 import BeautifulSoup
from markupsafe import Markup

from muse import catalog
from muse.host.files import write_atomic
from muse.records.reading import read_reading
from muse.records.schema import Reduction, StageRecord

from . import answers, figures, reading_block
from .assemble import companions_of, stage_record
from .export import assets_folder, number_figures
from .figures.style import mimebundle
from .frame import page_text
from .html import render
from .page import numbers_table, scale_notice, titled
from .real_baseline import real_baseline_note
from .texts import texts


def write(
    folder: Path, stage: str, links: Sequence[tuple[str, str]], language: str, reductions: Sequence[Reduction] = ()
) -> None:
    """Write a stage's page into the folder of its run; RecordError where the stage left no record.

    `reductions` say in which way the run is smaller than published, beside what the stage itself says.
    """
    record, page = stage_record(folder, stage), folder / catalog.page(stage)
    notebook = folder / catalog.notebook_page(stage)
    drawn = [Markup(mimebundle(figure)["text/html"]) for figure in figures.of_stage(record, language)]
    title, notice = titled(record, language), scale_notice([record], language, reductions)
    read, num_read = _reading(folder, record, language)
    main = render(
        "stage", language, title=title, stage=record, notice=notice, figures=drawn, reading=read,
        answer=_answer(record, language), note=real_baseline_note(record, language, companions_of(folder)),
        numbers=numbers_table(record, language), notebook=notebook.name if notebook.is_file() else "",
    )  # fmt: skip
    soup = BeautifulSoup(main, "html.parser")
    for table in soup.select("details.code:has(table)"):
        table["open"] = ""
    number_figures(soup.main, language)
    text = page_text(soup, title, links=links, language=language, here=f"../{catalog.page(stage)}",
                     num_figures=len(drawn) + num_read, assets=assets_folder(page))  # fmt: skip
    write_atomic(page, text)


def _reading(folder: Path, record: StageRecord, language: str) -> tuple[list[Markup], int]:
    """How the watched memory reads a few words, where the run has kept that, and how many figures are in it."""
    reading = read_reading(folder) if record.stage == "dynamics" and record.status == "ok" else None
    return reading_block.html(reading, language) if reading else ([], 0)


def _answer(record: StageRecord, language: str) -> list[str]:
    """The stage's answer, in which a program's error is marked as English."""
    found = answers.of_stage(record, language)
    if record.status == "ok":
        return found
    error = Markup('<code lang="en">{}</code>').format(record.error)
    return [Markup(texts(language)["answer.failed"]).format(error=error), *found[1:]]
