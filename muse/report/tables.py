"""Tables of text in every form they are written in: lines for a terminal, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """A table of cells; `numeric` columns stand to the right."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Collection[int] = ()
    note: str = ""
    lead: str = ""  # above the table


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table without empty rows and columns; an empty text where nothing is left."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows) if row is head or any(row[1:])]
    filled = [at for at in range(len(head)) if at == 0 or any(row[at] for row in rows)]
    lines = [[row[at] for at in filled] for row in (head, ["---"] * len(head), *rows) if rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def aligned(sides: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines; `sides` has < or > for each column but the last."""
    columns = list(zip(sides, zip(*rows, strict=True), strict=False))
    forms = [f"{{:{side}{max(map(len, cells))}}}" for side, cells in columns]
    return ["  ".join([*map(str.format, forms, row), row[-1]]) for row in rows]


def _sides(table: Table) -> str:
    return "".join(">" if column in table.numeric else "<" for column in range(len(table.head)))


def _terminal(table: Table) -> str:
    lines = [line.rstrip() for line in aligned(_sides(table)[:-1], [table.head, *table.rows])] if table.rows else []
    about = [table.lead] if table.lead else []
    return "\n".join([table.title, *about, *("  " + line for line in lines), *([table.note] if table.note else [])])


def _markdown(table: Table) -> str:
    parts = [f"## {table.title}", table.lead, markdown(table.head, table.rows), table.note]
    return "\n\n".join(filter(None, parts))


def _tex(table: Table) -> str:
    columns = _sides(table).replace("<", "l").replace(">", "r")
    rows = [" & ".join(map(_escaped, row)) + r" \\" for row in (table.head, *table.rows)]
    rows[1:1] = [r"\hline"]
    lines = [f"% {' '.join(part.split())}" for part in (table.title, table.lead, table.note) if part]
    return "\n".join([*lines, rf"\begin{{tabular}}{{{columns}}}", *rows, r"\end{tabular}"])


TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "−": "$-$"}
TEX |= {sign: rf"\{sign}" for sign in "&%$#_{}"} | {"<": "$<$", ">": "$>$"}


def _escaped(cell: str) -> str:
    return "".join(TEX.get(letter, letter) for letter in cell)


def _csv(table: Table) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.head, *table.rows])
    return text.getvalue().rstrip("\n")


FORMS: dict[str, Callable[[Table], str]] = {"terminal": _terminal, "md": _markdown, "tex": _tex, "csv": _csv}


def written(tables: Iterable[Table], form: str) -> str:
    """Return tables in one of FORMS, an empty line between them."""
    return "\n\n".join(FORMS[form](table) for table in tables)
