"""What was expected of the comparison, from the table of its predictions, beside what its record says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

from muse.catalog import (
    BASELINE,
    COMPACT,
    COMPACT_BASELINE,
    COMPACT_TWIN,
    REFERENCE,
    TWIN,
    WITH_MEMORY,
    YARDSTICK,
)
from muse.records.schema import Report

from .companions import RATIO, metrics_of, stage_of
from .numbers import ratio_cell
from .tables import markdown

ROW = re.compile(r"^\| *(\d+) *\| *(.*?) *\| *(.*?) *\| *(.*?) *\|$", re.MULTILINE)
"""Number, figure, what was expected, why."""


def beside_results(expected: Path, report: Report) -> str:
    """Return the table of a file of predictions with what the record says in place of the reasons.

    Nothing where the run is not the one that they are about. KeyError for a row of which nothing here knows the answer.
    """
    if not expected.exists() or not metrics_of(report, "perplexity", f"{RATIO}{COMPACT_BASELINE}"):
        return ""
    text = expected.read_text(encoding="utf-8")
    rows = [[number, figure, expected, FOUND[int(number)](report)] for number, figure, expected, _ in ROW.findall(text)]
    told = "Written before the runs ([all of it](../reports/gpu/predictions.md)); test split unless said otherwise."
    return f"{told}\n\n{markdown(['#', 'figure', 'expected', 'found'], rows)}"


def quality(report: Report, model: str, over: str = BASELINE) -> str:
    """Return a model's perplexity over another one's with its interval."""
    return ratio_cell(stage_of(report, "perplexity").find(f"{RATIO}{over}", model))


def memory_rows(report: Report, model: str) -> str:
    """Return a model's GPU memory over Phase 2's: as each runs, both recomputed, neither recomputed."""
    names = (f"peak_memory{variant}_ratio_to_{BASELINE}" for variant in ("", "_recomputed", "_plain"))
    return ", ".join(f"{stage_of(report, 'memory').find(name, model).value:.3f}" for name in names)


def common(report: Report) -> str:
    """Return the compact model's validation perplexity over Phase 2's at the setting that serves all models best."""
    train = stage_of(report, "train")
    regrets = train.find("common_regret")
    regret = dict(zip(regrets.labels, regrets.samples, strict=True))
    one, other = (train.find("tried_validation_loss", model).value + regret[model] for model in (COMPACT, BASELINE))
    return f"{math.exp(one - other):.3f} (validation, one seed)"


def perplexity(report: Report, name: str, model: str) -> float:
    """Return a number of the perplexity stage."""
    return stage_of(report, "perplexity").find(name, model).value


def verdicts(report: Report, model: str) -> str:
    """Return how many of the five criteria a model passes."""
    judged = next(one for one in report.judged if one.model == model)
    passed = sum(criterion.verdict == "pass" for criterion in judged.criteria)
    return f"{passed} of {len(judged.criteria)} pass"


def bfloat16_memory(report: Report) -> str:
    """Return the GPU memory of Phase 2 in bfloat16 over its own in float32."""
    half, own = (stage_of(report, "memory").find(f"peak_memory{kind}", BASELINE).value for kind in ("_bfloat16", ""))
    return f"{half / own:.3f}"


FOUND: dict[int, Callable[[Report], str]] = {
    1: lambda report: quality(report, COMPACT),
    2: common,
    3: lambda report: verdicts(report, COMPACT),
    4: lambda report: memory_rows(report, COMPACT),
    5: lambda report: memory_rows(report, WITH_MEMORY),
    6: lambda report: f"{quality(report, COMPACT_BASELINE)}; {memory_rows(report, COMPACT_BASELINE)}",
    7: bfloat16_memory,
    8: lambda report: "{:.1f} ({:.1f})".format(
        *(perplexity(report, name, WITH_MEMORY) for name in ("perplexity", "word_perplexity"))
    ),
    9: lambda report: f"{perplexity(report, 'ensemble_perplexity', WITH_MEMORY):.1f}",
    10: lambda report: (
        f"{1 / perplexity(report, f'{RATIO}{WITH_MEMORY}', TWIN):.3f}; "
        f"{1 / perplexity(report, f'{RATIO}{COMPACT}', COMPACT_TWIN):.3f}"
    ),
    11: lambda report: quality(report, YARDSTICK),
    12: lambda report: quality(report, REFERENCE),
}
"""What was found, by the number of the row."""
