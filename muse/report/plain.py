"""A run in plain form: verdicts and times in the terminal, and a page where a notebook could not be shown."""

from __future__ import annotations

from collections.abc import Sequence

from muse.catalog import GATE_STATES
from muse.records.criteria import judge_basic_test
from muse.records.schema import Criterion, Metric, Reduction, Report

from .html import render
from .tables import aligned
from .texts import texts

Row = tuple[str, str, str, str]  # a stage's title and outcome, links to its page or '' and to its log


def page(
    title: str,
    language: str,
    stages: Sequence[Row],
    lead: str = "",
    criteria: Sequence[Criterion] = (),
    *,
    links: Sequence[tuple[str, str]] = (),
    here: str = "",
    reductions: Sequence[Reduction] = (),
) -> str:
    """Return a complete page that needs nothing else: how stages ended and, with a `lead`, the verdicts.

    `links` are (label, href) of the run's pages and `here` the href of this one; `reductions` say in which way the run
    is smaller than published.
    """
    from bs4 import BeautifulSoup

    from .frame import page_text, scale_label

    notice = scale_label(reductions, language)
    main = render("plain", language, title=title, stages=stages, lead=lead, criteria=criteria, notice=notice)
    return page_text(BeautifulSoup(main, "html.parser"), title, links=links, language=language, here=here)


VERDICTS = {"pass": "✓ PASS", "fail": "✕ FAIL", "not_measured": "– not measured"}
"""By sign and word, as the pages have them."""

BASIC_TEST = "basic test: "


def verdict_table(report: Report) -> list[str]:
    """Return a line for each criterion and candidate, for what stands beside it, and for the basic test.

    A line has name, verdict, value and target. Below the table stands what is behind each that does not pass, that is
    smaller than published, or that is of the basic test.
    """
    first, *others = report.judged
    asked = [(c.name, c) for c in first.in_order()]
    asked += [(f"{other.model} {c.name}", c) for other in others for c in other.in_order()]
    asked += [(BASIC_TEST + c.name, c) for c in judge_basic_test(report.stages, texts("en"))]
    table = aligned("<<>", [(name, VERDICTS[c.verdict], _value(c), c.target) for name, c in asked])
    smaller = {stage.scale_note for stage in report.stages if stage.scale_note}
    reasons = [
        f"{name}: {c.reason}"
        for name, c in asked
        if c.verdict != "pass" or name.startswith(BASIC_TEST) or any(note in c.reason for note in smaller)
    ]
    return [*table, *([""] if reasons else []), *reasons]


def _value(criterion: Criterion) -> str:
    value = criterion.value
    if value is None:
        return "-"
    shown = f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"
    return f"{shown} (estimate)" if criterion.basis == "estimate" else shown


GATED = tuple(f"gradient_{state}" for state in GATE_STATES)
BENCH_COLUMNS = ("path", "tokens/s", "ms", "n", "ratio", "matrix", "copy", "extra MiB", "launches", "gate")


def bench_tables(metrics: Sequence[Metric]) -> list[str]:
    """Return the lines of a bench: the ceilings, then one table for each group, from its metrics alone."""
    values = {(metric.name, metric.model): metric for metric in metrics}
    lines = [
        f"{m.name.removeprefix('bench_').replace('_', ' ')}: {m.value:.4g} {m.unit} ({m.note})"
        for m in metrics
        if m.name.endswith("_ceiling") and m.value is not None
    ]
    for metric in metrics:
        if metric.name == "bench_gradient_error":
            text = metric.note if metric.value is None else f"{metric.value:.2g} ({metric.note})"
            lines += ["", f"{metric.model} gradients: {text}"]
    groups = dict.fromkeys(m.name.removesuffix("_speed") for m in metrics if m.name.endswith("_speed"))
    for group in groups:
        paths = [m for m in metrics if m.name == f"{group}_speed"]
        rows = [_bench_row(group, path, values) for path in paths]
        lines += ["", group.removeprefix("bench_").replace("_", " "), *aligned("<" + ">" * 8, [BENCH_COLUMNS, *rows])]
    for metric in metrics:
        if metric.name == "bench_peak_memory":
            text = metric.note if metric.value is None else f"{metric.value / 2**20:.1f} MiB ({metric.note})"
            lines += ["", f"{metric.model} peak memory: {text}".lstrip()]
    return lines


def _bench_row(group: str, speed: Metric, values: dict[tuple[str, str], Metric]) -> tuple[str, ...]:
    def text(what: str, form: str, factor: float = 1) -> str:
        metric = values.get((f"{group}_{what}", speed.model))
        return "-" if metric is None or metric.value is None else format(metric.value * factor, form)

    errors = [
        f"{what.removesuffix('_gradient')} {text(f'{what}_error', '.1e')}"
        for what in ("forward", "loss", "gradient", "worst_gradient", *GATED)
        if (f"{group}_{what}_error", speed.model) in values
    ]
    call = values.get((f"{group}_milliseconds", speed.model))
    return (
        speed.model or "-",
        "-" if speed.value is None else f"{speed.value:,.0f}",
        "-" if call is None else f"{call.value:.2f}",
        str(speed.n),
        text("ratio", ".2f"),
        text("matrix_share", ".1%"),
        text("copy_share", ".1%"),
        text("extra_memory", ".0f", 2**-20),
        text("launches", ".0f"),
        f"ok: {', '.join(errors)}" if speed.value is not None else speed.note,
    )
