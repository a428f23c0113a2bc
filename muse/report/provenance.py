"""Where a run's numbers come from, and the files that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from markupsafe import Markup

from muse import catalog
from muse.records.environment import NOT_INSTALLED
from muse.records.schema import Report

from .citation import bibtex
from .html import render
from .numbers import number
from .texts import stage_title, texts


def provenance(report: Report, folder: str | Path, language: str = "en", companions: Iterable[str] = ()) -> Markup:
    """Return commit, versions, hardware, seeds, command, inputs by SHA-256, all parameters, and links to the raw data.

    Links are seen from index.html in `folder`, the run's; `companions` are named as their files are.
    """
    words, run = texts(language), report.run
    inputs = dict.fromkeys((file.path, file.sha256, number(file.num_bytes)) for s in report.stages for file in s.inputs)
    about = {
        "run": _code(run.id),
        "profile": _code(run.profile),
        "started": f"{run.started_utc:%Y-%m-%d %H:%M:%S} UTC",
        "commit": commit(report, language),
        "seeds": words["and"].join(map(str, run.seeds)),
        "command": _code(run.command),
        "hardware": words["join"].join(
            f"{words.get(f'hardware.{key}', key)}{words['colon']} {value}" for key, value in run.hardware.items()
        ),
        "versions": words["join"].join(f"{key} {_version(value, words)}" for key, value in run.versions.items()),
    }
    return render(
        "provenance", language, run=run, about={words[f"provenance.{key}"]: value for key, value in about.items()},
        files=list(inputs), citation=bibtex(report, Path(folder) / "report.json"),
        links=_downloads(report, Path(folder), language, companions),
    )  # fmt: skip


def _code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)


def _version(version: str, words: Mapping[str, str]) -> str:
    return words["provenance.not_installed"] if version == NOT_INSTALLED else version


def commit(report: Report, language: str) -> str:
    """Return the commit that the run was made from, and whether it was clean where that is known."""
    words, run = texts(language), report.run
    if run.git_commit is None:
        return words["provenance.no_commit"]
    if run.git_dirty is not False:
        return run.git_commit
    return words["figure.with_unit"].format(name=run.git_commit, unit=words["provenance.clean"])


def _downloads(report: Report, folder: Path, language: str, companions: Iterable[str]) -> dict[str, str]:
    """The files of a run, each with what it is; of records and notebooks only those that `folder` still holds."""
    words = texts(language)
    links = {"report.json": words["downloads.report"], "run.json": words["downloads.run"]}
    for stage in report.stages:
        title, notebook = stage_title(stage.stage, words), f"notebooks/{catalog.stem(stage.stage)}.ipynb"
        if (folder / (record := f"records/{stage.stage}.json")).exists():
            links[record] = words["downloads.record"].format(stage=title)
        if stage.status == "ok" and (folder / notebook).exists():
            links[notebook] = words["downloads.notebook"].format(stage=title)
    return links | {f"companions/{name}.json": words["downloads.companion"].format(name=name) for name in companions}
