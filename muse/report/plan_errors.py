"""Tables of what the plan says beside what cards said: reports/plan.json as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from muse.catalog import COMPARED

from .figures.style import style
from .tables import markdown

FILE = "plan.json"
PEAKS = {
    "peak_memory": "as it runs",
    "peak_memory_recomputed": "recomputed",
    "peak_memory_plain": "nothing recomputed",
    "peak_memory_matched": "float32",
    "peak_memory_training_step": "a training step, Muon",
    "peak_memory_training_step_adamw": "a training step, AdamW",
    "peak_memory_recipe_step": "a step of the recipe",
}
"""Metrics of peaks, and how the tables call them."""

OF_TWO_CHUNKS = "peak of two chunks"
"""Kind of what is planned for code that held two chunks of logits, beside records of such code."""

Rows = Sequence[Mapping[str, object]]


def tables(reports: Path) -> str:
    """Return a table of peaks for each record, of the older code too, one of times, and in words the largest errors."""
    rows = json.loads((reports / FILE).read_text(encoding="utf-8"))
    peaks = [row for row in rows if row["kind"] == "peak"]
    parts = [f"Peaks, GiB: planned, measured, and the error. {worst(peaks)}"]
    for run in dict.fromkeys(row["run"] for row in peaks):
        parts.append(f"`{run}`\n\n{_peaks([row for row in peaks if row['run'] == run])}")
    older = [row for row in rows if row["kind"] == OF_TWO_CHUNKS]
    plain = [row for row in older if row["what"] != "peak_memory_recomputed"]
    parts.append(
        "The same records, planned with two chunks of logits held, as their code held them. "
        f"Where blocks are kept: {worst(plain)}"
    )
    for run in dict.fromkeys(row["run"] for row in older):
        parts.append(f"`{run}`, two chunks\n\n{_peaks([row for row in older if row['run'] == run])}")
    times = [row for row in rows if row["kind"] in ("step", "sweep")]
    head = ["", "record", "what", "planned", "measured", "error"]
    told = [
        [style(row["model"]).label, f"`{row['run']}`", row["what"], *_sides(row), percent(row)] for row in times
    ]
    return "\n\n".join([*parts, f"Time. {worst(times)}", markdown(head, told)])


def _sides(row: Mapping[str, object]) -> list[str]:
    return [f"{row[key]:,.1f} {row['unit']}" for key in ("estimate", "measured")]


def _peaks(rows: Rows) -> str:
    models = [name for name in COMPARED if any(row["model"] == name for row in rows)]
    kinds = [what for what in PEAKS if any(row["what"] == what for row in rows)]
    found = {(row["model"], row["what"]): cell(row) for row in rows}
    cells = [[style(name).label, *(found.get((name, what), "") for what in kinds)] for name in models]
    return markdown(["", *(PEAKS[what] for what in kinds)], cells)


def cell(row: Mapping[str, object]) -> str:
    """Return a number's estimate, what was measured, and the error."""
    return f"{row['estimate']:.3f}, {row['measured']:.3f}: {percent(row)}"


def percent(row: Mapping[str, object]) -> str:
    """Return by how much an estimate is too high."""
    return f"{100 * (row['estimate'] / row['measured'] - 1):+.1f} %"


def worst(rows: Rows) -> str:
    """Return the largest error, and how many are within 5 and 25 %."""
    errors = [abs(row["estimate"] / row["measured"] - 1) for row in rows]
    within = {limit: sum(error <= limit / 100 for error in errors) for limit in (5, 25)}
    told = ", ".join(f"{count} within {limit} %" for limit, count in within.items())
    return f"Of {len(errors)} numbers {told}; the largest error is {100 * max(errors):.1f} %."
