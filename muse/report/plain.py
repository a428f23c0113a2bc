"""A run in plain form: the verdicts in the terminal, and small pages where a notebook could not be shown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from muse.records.schema import Criterion, Metric, Report

from .texts import texts


def page(title: str, language: str, body: str) -> str:
    """Return a complete page that needs nothing else; `body` is HTML."""
    style = (
        "body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td,th{text-align:left;padding:.3em}"
    )
    return (
        f'<!doctype html><html lang="{language}"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style} :root{{color-scheme:light dark}}</style>'
        f"</head><body><main><h1>{escape(title)}</h1>{body}</main></body></html>\n"
    )


def stage_table(rows: list[tuple[str, str, str, str]], language: str) -> str:
    """Return a table of stages from (title, outcome, link to the page or '', link to the log)."""
    text = texts(language)
    lines = [f"<tr><th>{text['fallback.stage']}</th><th>{text['fallback.outcome']}</th><th></th><th></th></tr>"]
    for title, outcome, page, log in rows:
        link = f'<a href="{escape(page)}">{text["fallback.page"]}</a>' if page else ""
        lines.append(
            f"<tr><td>{escape(title)}</td><td>{escape(outcome)}</td><td>{link}</td>"
            f'<td><a href="{escape(log)}">{text["fallback.log"]}</a></td></tr>'
        )
    return f"<table>{''.join(lines)}</table>"


def index_body(lead: str, rows: list[tuple[str, str, str, str]], criteria: Sequence[Criterion], language: str) -> str:
    """Return the body of an index: what is the matter, how the stages ended, and the verdicts."""
    text = texts(language)
    verdicts = "".join(
        f"<tr><td>{c.name}</td><td>{text[f'verdict.{c.verdict}']}</td><td>{escape(c.reason)}</td></tr>"
        for c in criteria
    )
    return (
        f"<p>{lead}</p><h2>{text['fallback.stages']}</h2>{stage_table(rows, language)}"
        f"<h2>{text['fallback.criteria']}</h2><table>{verdicts}</table>"
    )


def verdict_table(report: Report) -> list[str]:
    """Return a line for each criterion and candidate: its name, verdict, value and target."""
    first, *others = report.judged
    asked = [(c.name, c) for c in first.criteria]
    asked += [(f"{other.model} {c.name}", c) for other in others for c in other.criteria]
    rows = [
        (name, c.verdict.replace("_", " "), "-" if c.value is None else f"{c.value:.4g}", c.target) for name, c in asked
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [f"{n:<{widths[0]}}  {v:<{widths[1]}}  {x:>{widths[2]}}  {t}" for n, v, x, t in rows]


BENCH_COLUMNS = ("path", "tokens/s", "ms", "n", "ratio", "matrix", "copy", "extra MiB", "gate")


def bench_tables(metrics: Sequence[Metric]) -> list[str]:
    """Return the lines of a bench: the ceilings, then one table for each group, from its metrics alone."""
    values = {(metric.name, metric.model): metric for metric in metrics}
    lines = [
        f"{m.name.removeprefix('bench_').replace('_', ' ')}: {m.value:.4g} {m.unit} ({m.note})"
        for m in metrics
        if m.name.endswith("_ceiling") and m.value is not None
    ]
    groups = dict.fromkeys(m.name.removesuffix("_speed") for m in metrics if m.name.endswith("_speed"))
    for group in groups:
        paths = [m for m in metrics if m.name == f"{group}_speed"]
        rows = [_bench_row(group, path, values) for path in paths]
        lines += ["", group.removeprefix("bench_").replace("_", " "), *_aligned([BENCH_COLUMNS, *rows])]
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
        for what in ("forward", "loss", "gradient", "worst_gradient")
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
        f"ok: {', '.join(errors)}" if speed.value is not None else speed.note,
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines: first and last column to the left, numbers to the right."""
    last = len(rows[0]) - 1
    widths = [max(len(row[column]) for row in rows) for column in range(last)]
    return [
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=False))
        )
        + f"  {row[last]}"
        for row in rows
    ]
