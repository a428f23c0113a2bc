"""What makes the comparison come out as it does: one thing left out, or given to both sides, from its records."""

from __future__ import annotations

from muse.catalog import (
    BASELINE,
    COMPACT,
    COMPACT_BASELINE,
    COMPACT_TWIN,
    REFERENCE,
    WITH_MEMORY,
)
from muse.records.schema import Report

from .companions import RATIO, stage_of
from .figures.style import style
from .numbers import ratio_cell
from .tables import markdown

OVER = f"_ratio_to_{BASELINE}"
HALF = f"{OVER}_bfloat16"
MUON = "AdamW on both sides, with the smallest and largest of one seed"


def of_both_sides(report: Report, by_adamw: str = "") -> str:
    """Return a table of the compact model's perplexity and GPU memory over Phase 2's; nothing without that model.

    Each row below the first leaves one thing out on both sides, or gives it to both; a cell is empty where that changes
    nothing or was not measured. `by_adamw` is the perplexity where both sides are trained by AdamW.
    """
    if COMPACT not in [one.model for one in report.judged]:
        return ""

    def quality(one: str, other: str = BASELINE) -> str:
        return ratio_cell(stage_of(report, "perplexity").find(f"{RATIO}{other}", one))

    def memory(variant: str, model: str = COMPACT, over: str = OVER) -> str:
        return ratio_cell(stage_of(report, "memory").find(f"peak_memory{variant}{over}", model))

    whole, base = _label(COMPACT), _label(BASELINE)
    rows = [
        ["the whole", f"{whole} over {base}", quality(COMPACT), memory("")],
        *([["the recipe's Muon: none", MUON, by_adamw, ""]] if by_adamw else []),
        ["half precision: none", "all float32, as each runs", "", memory("_matched")],
        ["half precision: both", f"{base} stored in bfloat16 too", "", memory("", over=HALF)],
        ["recomputed blocks: both", "halves of blocks on both sides", "", memory("_recomputed")],
        ["recomputed blocks: none", "on neither side", "", memory("_plain")],
        ["low-rank table: none", f"{_label(WITH_MEMORY)} over {base}, neither recomputed",
         quality(WITH_MEMORY), memory("_plain", WITH_MEMORY)],
        ["low-rank table: both", f"{whole} over {_label(COMPACT_BASELINE)}, both recomputed",
         quality(COMPACT, COMPACT_BASELINE), _over_compact_baseline(report)],
        ["complex memory: none", f"{_label(REFERENCE)} over {base}, neither recomputed",
         quality(REFERENCE), memory("_plain", REFERENCE)],
        ["complex numbers: none", f"{_label(COMPACT_TWIN)} over {base}, both recomputed",
         quality(COMPACT_TWIN), memory("_recomputed", COMPACT_TWIN)],
    ]  # fmt: skip
    return markdown(["left out, or given", "what is divided", "perplexity", "GPU memory"], rows)


def _over_compact_baseline(report: Report) -> str:
    """GPU memory of the compact model over that of Phase 2 with the same table, both recomputed."""
    peaks = [stage_of(report, "memory").find("peak_memory_recomputed", model) for model in (COMPACT, COMPACT_BASELINE)]
    return f"{peaks[0].value / peaks[1].value:.3f}" if all(peaks) else ""


def _label(model: str) -> str:
    return style(model).label
