"""A run in plain form: the verdicts in the terminal, and small pages where a notebook could not be shown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .criteria import texts
from .records import Criterion, Report


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
    """Return a line for each criterion: its name, verdict, value and target."""
    rows = [
        (c.name, c.verdict.replace("_", " "), "-" if c.value is None else f"{c.value:.4g}", c.target)
        for c in report.criteria
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [f"{n:<{widths[0]}}  {v:<{widths[1]}}  {x:>{widths[2]}}  {t}" for n, v, x, t in rows]
