"""The committed counting bench to docs/counting.md: which arm counts, how far, and what its turns are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from muse.catalog import ARMS, can_track
from muse.records.schema import Report, StageRecord
from muse.records.store import read_record

from .arms import score_text, task_label
from .companions import stage_of
from .runs import made
from .tables import markdown
from .texts import texts

FOLDER = "counting"
RECORDS = {"report.json": "One layer", "two-layers.json": "Two layers"}
"""Runs of the bench, and what stands above their tables."""

DRIFT = (
    "The error is a mean over tokens; the length counts how it differs between tokens as well, which for the complex "
    "memory is nearly all: none of its planes turns by shares of the circle, and this says nothing of how it counts."
)


def tables(reports: Path) -> list[str]:
    """Return the sections of every run of the bench that a folder of reports holds; none where there is none."""
    paths = {reports / FOLDER / name: title for name, title in RECORDS.items()}
    return [_of_run(read_record(Report, path), title) for path, title in paths.items() if path.exists()]


def _of_run(report: Report, title: str) -> str:
    record = stage_of(report, "counting")
    tasks = list(dict.fromkeys(one.model.split(" ")[1] for one in record.metrics if one.name == "counting_solved"))
    params = record.params
    told = (
        f"{made(report.run)}; {len(params['counting_seeds'])} seeds an arm and task, after "
        f"{len(params['counting_learning_rates'])} tries; {params['counting_steps']:,} steps of "
        f"{params['counting_batch']} sequences, trained to length {params['counting_length']}."
    )
    sections = [
        ("At four times the training length: score, and seeds that count", _cell("counting_score", solved=True)),
        ("The same with three tokens of four the same one: score", _cell("counting_skewed")),
        ("At the longest: score", _longest),
        ("Longest length with a score of 0.9: median of seeds, tokens", _cell("counting_longest", "{:,.0f}".format)),
        ("Scalars that are trained", _cell("counting_scalars", "{:,.0f}".format)),
        ("Radians a token by which the best plane turns wrong: median", _cell("counting_turn_error", "{:.1e}".format)),
        ("Tokens after which that would break a sum: median", _cell("counting_breaks_at", "{:,.0f}".format)),
    ]
    labels = [task_label(task, "en") for task in tasks]
    found = {head: markdown(["", *labels], _rows(record, tasks, cell)) for head, cell in sections}
    drift = [DRIFT] if any(one.name == "counting_breaks_at" for one in record.metrics) else []
    shown = [f"**{head}**\n\n{rows}" for head, rows in found.items() if rows]
    return "\n\n".join([f"## {title}", told, *shown, *drift])


def _rows(
    record: StageRecord, tasks: Sequence[str], cell: Callable[[StageRecord, str, str], str]
) -> list[list[str]]:
    names = texts("en")
    return [[names[f"arm.{arm}"], *(cell(record, arm, task) for task in tasks)] for arm in ARMS]


def _cell(
    name: str, told: Callable[[float], str] = score_text, solved: bool = False
) -> Callable[[StageRecord, str, str], str]:
    """Return what gives the cell of an arm on a task; a star stands where theory says that one layer can."""

    def cell(record: StageRecord, arm: str, task: str) -> str:
        found = record.find(name, f"{arm} {task}")
        if found is None or found.value is None:
            return ""
        if not solved:
            return told(found.value)
        counted = record.find("counting_solved", f"{arm} {task}")
        return f"{told(found.value)}, {counted.value:.0f} of {counted.n}{' *' if can_track(arm, task) else ''}"

    return cell


def _longest(record: StageRecord, arm: str, task: str) -> str:
    found = [one.y[-1] for one in record.series if (one.name, one.model) == ("counting_score", f"{arm} {task}")]
    return score_text(fmean(found)) if found else ""
