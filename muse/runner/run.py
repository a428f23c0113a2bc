"""The driver of a run: notebooks through papermill to records, pages and the report; the only file that knows paths."""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TextIO

from muse import catalog
from muse.catalog import REPORT
from muse.host import processes
from muse.host.exit_codes import CRITERION_FAILED, FAILED, INTERRUPTED, NOT_MEASURED, OK
from muse.host.files import sha256_of, write_atomic
from muse.host.paths import shorten_file, shortened, with_short_paths
from muse.host.progress import PROGRESS_FILE_VARIABLE, StageLines
from muse.host.signals import Interruptions
from muse.params import NO_CUDA, ParamsError, Row, Settings, of_rows, of_today, validate
from muse.records.criteria import judge_basic_test
from muse.records.environment import git_state, utc_now, versions
from muse.records.reasons import RECORDED
from muse.records.scale import reductions_of
from muse.records.schema import Imported, Reduction, Report, RunInfo, StageRecord
from muse.records.store import RecordError, read_record, write_record
from muse.report import plain, published
from muse.report.assemble import add_companions, assemble, failed_record
from muse.report.texts import texts

from . import notebook_calls
from .check import asked, disk_problems, place_problems, raise_problems, working_folder
from .folder import REPORT_FILE, check_folder, check_no_run, fresh_folder
from .notebooks import REPOSITORY, Notebook, find_notebooks, folders_and_problems, stage_parameters
from .surroundings import PACKAGE, surroundings

EXPORT_SECONDS = 600


BASIC_TEST = "basic_test"
"""What the exit code of a run can ask for in place of the criteria."""


def default_out(settings: Settings) -> Path:
    """Return the folder of a run that names none."""
    return Path("reports") / settings.profile


def exit_code(report: Report, gate: bool | str) -> int:
    """Return FAILED where a stage failed, else with `gate` whether a criterion fails or was not measured, else OK.

    The gate BASIC_TEST asks the lines of the basic test instead of the criteria.
    """
    if any(record.status != "ok" for record in report.stages):
        return FAILED
    asked = judge_basic_test(report.stages, texts("en")) if gate == BASIC_TEST else report.criteria
    verdicts = {criterion.verdict for criterion in asked} if gate else set()
    return CRITERION_FAILED if "fail" in verdicts else NOT_MEASURED if "not_measured" in verdicts else OK


def smaller_than_published(settings: Settings, text: str = "") -> list[Reduction]:
    """Return in which way a run is smaller than published; the corpus counts where a stage reads it."""
    unread = set() if {*catalog.READING} & {*settings.stages} else {"corpus"}
    return reductions_of(settings.model_dump(exclude=unread), text)


def run_info(settings: Settings, command: str, hardware: dict[str, str]) -> RunInfo:
    """Return what is known at the start; the hardware was asked in another process, which then freed the GPU."""
    started = utc_now()
    commit, dirty = git_state(REPOSITORY)
    return RunInfo(
        id=f"{settings.profile}-{started:%Y%m%dT%H%M%SZ}",
        profile=settings.profile,
        started_utc=started,
        git_commit=commit,
        git_dirty=dirty,
        versions=versions(),
        hardware=hardware,
        seeds=list(settings.seeds),
        command=shortened(command, absolute_paths(command)),
        params=with_short_paths(settings.model_dump()),
    )


def check(
    rows: Sequence[Row], out: str | Path | None, preloaded: Sequence[str] = ()
) -> tuple[list[Settings], dict[str, str]]:
    """Return every row's settings with absolute folders, and the hardware; ParamsError says what keeps them from a run.

    Nothing is started or moved but one process that asks; the modules `preloaded` are imported meanwhile.
    """
    made = [folders_and_problems(row.settings, working_folder()) for row in rows]
    every = [settings for settings, _ in made]
    names = tuple(f"{name}:" for name in catalog.NAMED)
    readable = [not any(line.startswith(names) for line in lines) for _, lines in made]
    home = working_folder() / (out or default_out(every[0]))
    with asked(list(zip(every, readable, strict=True))) as question:
        for row, (settings, lines) in zip(rows, made, strict=True):
            folder = home / row.name
            if places := place_problems(settings, {"--out": folder}, {}):
                lines += places
            else:
                check_folder(folder.resolve())
        if rows[0].values:
            check_no_run(home)
        if preloaded:
            processes.warm_up(preloaded)
        answer = question.answer()
    problems = []
    for row, (settings, lines), found in zip(rows, made, answer["problems"], strict=True):
        lines += found
        if settings.device == "cuda" and "gpu" not in answer["hardware"]:
            lines.append(NO_CUDA)
        problems += [(row.name, line) for line in lines]
    raise_problems(of_rows(problems, len(rows)) or disk_problems(every[0], home, answer["num_bytes"], len(rows)))
    return every, answer["hardware"]


def other_code(imported: Imported | None, info: RunInfo) -> str | None:
    """Return in which way a stage ran other code than its run says, or None."""
    if imported is None:
        return None
    expected = {"muse": PACKAGE.name, "commit": info.git_commit, **info.versions}
    got = {"muse": imported.package, "commit": imported.git_commit, **imported.versions}
    known = [name for name in got if name in expected and not _alike(got[name], expected[name])]
    found = [f"{name} {got[name]}, not {expected[name]}" for name in known]
    return f"the notebook imported other code than run.json says: {'; '.join(found)}" if found else None


def _alike(one: str | None, other: str | None) -> bool:
    """Whether two versions are one: metadata may leave out which build it is, as in 2.11.0 for 2.11.0+cu130."""
    if one == other or one is None or other is None:
        return one == other
    (public, _, build), (other_public, _, other_build) = one.partition("+"), other.partition("+")
    return public == other_public and not (build and other_build)


def absolute_paths(command: str) -> list[str]:
    """Return the absolute paths among a command's words: a word of its own, behind `key=`, or in a list there."""
    values = (word if word.startswith("/") else word.partition("=")[2] for word in shlex.split(command))
    return [path for value in values for path in re.findall(r"(?:^\[?|, *)[\"']?(/[^,\]\"']+)", value)]


def folders_of(settings: Settings) -> list[str]:
    """Return the folders that settings name, which may lie anywhere."""
    named = [getattr(settings, name) for name in (*catalog.NAMED, *catalog.WRITTEN)]
    return [str(Path(name).expanduser().absolute()) for name in named if name and (name.startswith(("/", "~", ".")))]


@dataclass
class Run:
    """One run on its way: where it writes, what it runs, and how each stage has ended."""

    settings: Settings
    info: RunInfo
    folder: Path
    notebooks: list[Notebook]
    command: str
    export: Callable[..., str | None]
    lines: StageLines
    shared_script: bool = False  # whether index.html loads the script of its figures, as the stages' pages do
    errors: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    pages: dict[str, Future[str | None]] = field(default_factory=dict)  # of finished stages, made while the next runs
    environment: Mapping[str, str] = field(default_factory=dict)  # of the processes that execute notebooks
    exporter: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1))

    @property
    def records(self) -> Path:
        return self.folder / "records"

    @property
    def folders(self) -> list[str]:
        """The folders of this run that no reader needs to know."""
        return [str(self.folder), str(self.notebooks[0].path.parent), *folders_of(self.settings)]

    def log(self, stage: str) -> Path:
        return self.folder / "logs" / f"{stage}.log"

    def executed(self, notebook: Notebook) -> Path:
        return self.folder / "notebooks" / notebook.path.name

    def stage(self, notebook: Notebook) -> None:
        """Run one stage, or say why not, and leave its record and its page."""
        stage, started = notebook.stage, utc_now()
        self.lines.start(stage)
        if stage == REPORT:
            self.text_page()
        blocked = [needed for needed in catalog.stage(stage).needs if needed in self.errors]
        error = f"not run: needs {', '.join(blocked)}, which failed" if blocked else self.execute(notebook)
        shorten_file(self.executed(notebook), self.folders)
        error = (error or self.page(notebook)) if stage == REPORT else self.check_record(stage, error)
        if error:
            self.fail(stage, started, error)
        self.done.add(stage)
        if stage != REPORT:
            self.pages[stage] = self.exporter.submit(self.page, notebook)
        self.lines.end("failed" if error else "ok", error or "")

    def text_page(self) -> None:
        """Write the page of losses by token, which the report links to; where it cannot be made, the log says why."""
        from muse.report import text_page  # it takes a while to import, as do the others

        try:
            text_page.write(self.folder, self.settings.language)
        except (RecordError, ParamsError) as error:
            with self.log(REPORT).open("a", encoding="utf-8") as log:
                log.write(f"text.html: {error}\n")

    def execute(self, notebook: Notebook) -> str | None:
        """Execute the notebook within the time limit; return how it failed, or None."""
        minutes, output = self.settings.stage_timeout_minutes, self.executed(notebook)
        (self.records / f"{notebook.stage}.json").unlink(missing_ok=True)  # a record is this stage's own or none
        try:
            return processes.call(
                notebook_calls.execute_notebook,
                {
                    "notebook": notebook.path,
                    "output": output,
                    "parameters": stage_parameters(self.settings, notebook, self.records),
                },
                log=self.log(notebook.stage),
                environment=self.environment,
                timeout_seconds=60 * minutes,
                tick=self.lines.tick,
            )
        except TimeoutError:
            where = notebook_calls.last_cell(output)
            return f"stopped: took longer than stage_timeout_minutes = {minutes:g}" + (f" ({where})" if where else "")

    def check_record(self, stage: str, error: str | None) -> str | None:
        """Return the error, or what is wrong with the record that a stage without an error has left."""
        try:
            record = read_record(StageRecord, self.records / f"{stage}.json")
        except RecordError as problem:
            return error or f"the notebook ran but left no valid record: {problem}"
        if record.stage != stage:
            return error or f"the notebook wrote the record of {record.stage}, expected {stage}"
        if record.status != "ok":
            return error or record.error or "the record says failed"
        return error or other_code(record.imported, self.info)

    def fail(self, stage: str, started: datetime, error: str) -> None:
        """Record that a stage failed; what it had measured before stays in the record."""
        error = self.errors[stage] = shortened(error, self.folders)
        path = self.records / f"{stage}.json"
        notebook = next(notebook for notebook in self.notebooks if notebook.stage == stage)
        parameters = stage_parameters(self.settings, notebook, self.records)
        del parameters["record_dir"]
        record = failed_record(with_short_paths(parameters), stage, started, error)
        with suppress(RecordError):
            own = read_record(StageRecord, path)
            failed = {"status": "failed", "error": error, "finished_utc": utc_now()}
            record = own.model_copy(update=failed) if own.stage == stage else record
        write_record(record, path)
        with self.log(stage).open("a", encoding="utf-8") as log:
            log.write(f"\n{stage} failed: {error}\n")

    def page(self, notebook: Notebook) -> str | None:
        """Make a stage's page, or one of our own; return what went wrong, unless the stage failed.

        Notebooks are written in English: in another language a stage's page is made from its record, and the executed
        notebook has a page beside it.
        """
        stage, language = notebook.stage, self.settings.language
        beside = self.folder / catalog.notebook_page(stage)
        beside.unlink(missing_ok=True)
        if stage == REPORT or language == RECORDED:
            error = self.export_notebook(notebook, self.folder / catalog.page(stage), self.links(stage), language)
        else:
            links = [link for link in self.links(stage) if link[1].endswith(("/index.html", catalog.page(stage)))]
            links.append((texts(language)["stage_page.notebook"], f"../{catalog.notebook_page(stage)}"))
            error = None
            if self.executed(notebook).exists():
                error = self.export_notebook(notebook, beside, links, RECORDED)
            error = self.page_of_record(stage) or error
        if error and stage != REPORT and not (self.folder / catalog.page(stage)).exists():
            self.plain_stage(notebook)
        return None if stage in self.errors else error

    def page_of_record(self, stage: str) -> str | None:
        """Make a stage's page from its record alone; return what went wrong."""
        about = {"folder": self.folder, "stage": stage, "links": self.links(stage), "language": self.settings.language}
        return self.call(notebook_calls.stage_page, about | {"reductions": self.reductions(stage)}, stage)

    def page_again(self, notebook: Notebook) -> str | None:
        """Make a stage's page anew; return what went wrong.

        An English one stays where the executed notebook is no longer kept, and is made from the record where the page
        is of another language.
        """
        page, language = self.folder / catalog.page(notebook.stage), self.settings.language
        if language != RECORDED or self.executed(notebook).exists():
            return self.page(notebook)
        kept = page.exists() and f'<html lang="{language}">' in page.read_text(encoding="utf-8")
        return None if kept else self.page_of_record(notebook.stage)

    def links(self, stage: str) -> list[tuple[str, str]]:
        """Return (label, href) of all pages, seen from that of a stage or of the report."""
        up = "" if stage == REPORT else "../"
        shown = (self.notebooks[-1], *self.notebooks[:-1])
        links = [(self.label(other), up + catalog.page(other.stage)) for other in shown]
        if stage == REPORT:
            from muse.report.run_list import further_links

            links += further_links(self.folder, self.settings.language)
        return links

    def export_notebook(
        self, notebook: Notebook, page: Path, links: Sequence[tuple[str, str]], language: str
    ) -> str | None:
        """Export the executed notebook as a page; return what went wrong, with no page left then."""
        stage, is_index = notebook.stage, notebook.stage == REPORT
        arguments = {
            "notebook": self.executed(notebook),
            "page": page,
            "links": links,
            "inline_assets": is_index and not self.shared_script,
            "title": texts(language).get(f"stage.{stage}", self.label(notebook)),
            "language": language,
            "error": self.errors.get(stage),
            "reductions": [] if is_index else self.reductions(stage),  # the report says it itself
        }
        error = "no executed notebook"
        if self.executed(notebook).exists():
            error = self.call(self.export, arguments, stage)
        if error is None and page.exists():
            return None
        page.unlink(missing_ok=True)
        return error or "no page was written"

    def call(self, made: Callable[..., str | None], arguments: Mapping[str, object], stage: str) -> str | None:
        """Make a page in a process of its own; return what went wrong."""
        try:
            return processes.call(
                made, arguments, log=self.log(stage), environment=os.environ, timeout_seconds=EXPORT_SECONDS
            )
        except TimeoutError:
            return f"the export took longer than {EXPORT_SECONDS} s"

    def reductions(self, stage: str) -> list[Reduction]:
        """Return in which way a stage is smaller than published: by its settings, or by the text its record names."""
        text = ""
        with suppress(RecordError):
            text = read_record(StageRecord, self.records / f"{stage}.json").text
        return smaller_than_published(self.settings, text)

    def label(self, notebook: Notebook) -> str:
        """Return a page's name in the report's language."""
        if notebook.stage == REPORT:
            return texts(self.settings.language)["fallback.report"]
        return texts(self.settings.language).get(f"stage.{notebook.stage}", notebook.title)

    def plain_stage(self, notebook: Notebook) -> None:
        """Write a page that says how the stage ended, where its notebook cannot be shown."""
        stage, language = notebook.stage, self.settings.language
        page, rows = self.folder / catalog.page(stage), [self.row(notebook, "../")]
        about = {"links": self.links(stage), "here": "../" + catalog.page(stage)}
        about["reductions"] = self.reductions(stage)
        write_atomic(page, plain.page(self.label(notebook), language, rows, **about))

    def row(self, notebook: Notebook, up: str = "") -> tuple[str, str, str, str]:
        """Return (title, outcome, page, log) of a stage for the plain pages."""
        text = texts(self.settings.language)
        outcome = self.errors.get(notebook.stage) or (text["fallback.ok"] if notebook.stage in self.done else "-")
        page = "" if notebook.stage == REPORT else up + catalog.page(notebook.stage)
        log = f"{up}logs/{notebook.stage}.log" if self.log(notebook.stage).exists() else ""
        return self.label(notebook), outcome, page, log

    def plain_index(self, interrupted: bool) -> None:
        """Write the honest little index of a run whose report could not be made."""
        language = self.settings.language
        text, rows = texts(language), [self.row(notebook) for notebook in self.notebooks]
        lead = text["fallback.interrupted" if interrupted else "fallback.lead"]
        title = text["fallback.title"].format(profile=self.settings.profile)
        about = {"links": self.links(REPORT), "here": catalog.page(REPORT)}
        about["reductions"] = smaller_than_published(self.settings)
        page = plain.page(title, language, rows, lead, assemble(self.folder, language).criteria, **about)
        write_atomic(self.folder / "index.html", page)

    def draw_stills(self) -> None:
        """Let the pages have still pictures of their figures, where there is a browser to draw them."""
        from muse.report.stills import draw_stills  # it takes a while to import

        pages = [self.folder / catalog.page(notebook.stage) for notebook in self.notebooks]
        try:
            draw_stills(self.folder, pages)
        except Exception as error:  # whatever is wrong with a browser; the pages are whole and say that there are none
            with self.log(REPORT).open("a", encoding="utf-8") as log:
                log.write(f"no still pictures of the figures: {error}\n")

    def interrupt(self) -> None:
        """Record the stages that an interruption has stopped or kept from running."""
        current = self.lines.stages[self.lines.index] if self.lines.index >= 0 else None
        for notebook in self.notebooks:
            stage = notebook.stage
            if stage not in self.done:
                self.fail(stage, utc_now(), "interrupted" if stage == current else "not run: the run was interrupted")
                if stage != REPORT:
                    self.plain_stage(notebook)
        if current is not None:
            self.lines.end("interrupted")

    def cite(self, report: Path) -> None:
        """Put the hash of the finished report into the citation on the page, which was made before it."""
        from muse.report.citation import PENDING

        page = self.folder / "index.html"
        text = page.read_text(encoding="utf-8")
        write_atomic(page, text.replace(PENDING, sha256_of(report)))

    def finish(self, info: RunInfo, interrupted: bool) -> Report:
        """Write what is still missing: a plain index where the report failed, the end of run.json, and report.json."""
        made = {stage: page.result() for stage, page in self.pages.items()}
        if problems := [f"the page of {stage}: {error}" for stage, error in made.items() if error]:
            known = [self.errors[REPORT]] if REPORT in self.errors else []
            self.fail(REPORT, utc_now(), "; ".join(known + problems))
        for notebook in self.notebooks:
            shorten_file(self.executed(notebook), self.folders)
            shorten_file(self.log(notebook.stage), self.folders)
        if not (self.folder / "index.html").exists():
            self.plain_index(interrupted)
        ended = info.model_copy(update={"finished_utc": utc_now(), "interrupted": interrupted})
        write_record(ended, self.folder / "run.json")
        path, report = self.folder / REPORT_FILE, assemble(self.folder)
        if found := published.basic_test(report):
            text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
            write_atomic(self.folder / published.FILE, text + "\n")
        write_record(report, path)
        report = read_record(Report, path)
        self.cite(path)
        for line in plain.verdict_table(report):
            self.lines.line(line)
        self.lines.line((self.folder / "index.html").as_uri())
        return report


def run(
    settings: Settings,
    *,
    out: str | Path | None = None,
    notebooks: Path | None = None,
    command: str = "muse run",
    gate: bool | str = False,
    export: Callable[..., str | None] = notebook_calls.export_page,
    stream: TextIO | None = None,
) -> int:
    """Run the notebooks of the settings' stages into the folder `out` and return the exit code.

    Raises ParamsError before anything is started or moved. A run that is already in `out` moves to `<out>.previous`,
    one that was killed or interrupted to `<out>.unfinished`.
    """
    found = find_notebooks(settings.stages, notebooks)
    computes = any(notebook.computes for notebook in found)
    preloaded = notebook_calls.COMPUTING if computes else notebook_calls.PRELOADED
    (settings,), hardware = check([Row({}, settings)], out, preloaded)
    folder = Path(out or default_out(settings)).resolve()
    info = run_info(settings, command, hardware)
    with (
        fresh_folder(folder) as previous,
        tempfile.TemporaryDirectory(prefix="muse-") as temporary,
        Interruptions(wait=False),
    ):
        write_record(info, folder / "run.json")
        stages = [notebook.stage for notebook in found]
        lines = StageLines(stages, previous_seconds(previous, settings), Path(temporary) / "progress.json", stream)
        own = surroundings(Path(temporary), **{PROGRESS_FILE_VARIABLE: str(lines.progress_file)})
        this = Run(settings, info, folder, found, command, export, lines, environment=own)
        interrupted = False
        try:
            for notebook in found:
                this.stage(notebook)
        except KeyboardInterrupt:
            interrupted = True
            this.interrupt()
        report = this.finish(info, interrupted)
    return INTERRUPTED if interrupted else exit_code(report, gate)


def render(
    folder: str | Path,
    language: str,
    *,
    companions: Sequence[str | Path] = (),
    shared_script: bool = False,
    stills: bool = False,
    notebooks: Path | None = None,
    export: Callable[..., str | None] = notebook_calls.export_page,
    stream: TextIO | None = None,
) -> int:
    """Make the pages of a finished run again from its records, in a language of choice; return the exit code.

    Nothing is measured and `report.json`, which is always in English, stays as it is. The reports of `companions`,
    folders of other runs, are kept in the run's folder and shown with it from then on. With `shared_script` index.html
    loads the script of its figures from `assets/`, else it is complete in itself; without `stills` its figures have no
    pictures beside the page, for readers without JavaScript. ParamsError, before anything is
    changed, where `folder` holds no run or the report of a companion cannot be read.
    """
    folder = Path(folder).resolve()
    try:
        info = read_record(RunInfo, folder / "run.json")
    except RecordError as error:
        raise ParamsError(f"{folder}: not the folder of a run: {error}") from error
    settings = validate(of_today(info.params) | {"language": language})
    found = find_notebooks(settings.stages, notebooks)
    add_companions(folder, [Path(other).resolve() for other in companions])
    for name in ("logs", "notebooks", "pages"):
        (folder / name).mkdir(exist_ok=True)
    if (folder / "assets").is_dir():
        from muse.report.export import write_assets  # it takes a while to import

        write_assets(folder / "assets")  # the stages' pages share them
    processes.warm_up(notebook_calls.PRELOADED)
    with tempfile.TemporaryDirectory(prefix="muse-") as temporary, Interruptions(wait=False):
        lines = StageLines([REPORT], {}, Path(temporary) / "progress.json", stream)
        failed = {record.stage: record.error or "" for record in assemble(folder).stages if record.status != "ok"}
        failed.pop(REPORT, None)  # it is made anew
        own = surroundings(Path(temporary), **{PROGRESS_FILE_VARIABLE: str(lines.progress_file)})
        this = Run(
            settings, info, folder, found, info.command, export, lines, shared_script, errors=failed, environment=own
        )
        problems = [this.page_again(notebook) for notebook in found[:-1]]
        this.stage(found[-1])
        if stills:
            this.draw_stills()
        lines.line((folder / "index.html").as_uri())
    return FAILED if REPORT in this.errors or any(problems) else OK


def previous_seconds(previous: Path, settings: Settings) -> dict[str, float]:
    """Return how long each stage took in a previous run of the same settings; nothing when there is none."""
    try:
        info = read_record(RunInfo, previous / "run.json")
        records = [read_record(StageRecord, previous / "records" / f"{name}.json") for name in info.params["stages"]]
    except (RecordError, KeyError):
        return {}
    if info.params != with_short_paths(settings.model_dump()) or info.finished_utc is None:
        return {}
    seconds = {r.stage: (r.finished_utc - r.started_utc).total_seconds() for r in records if r.status == "ok"}
    last = max((record.finished_utc for record in records), default=info.finished_utc)
    return seconds | {REPORT: max(0.0, (info.finished_utc - last).total_seconds())}
