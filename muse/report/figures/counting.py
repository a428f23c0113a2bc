"""What counts: for each task a heat map of arms over lengths, every try, and the angles that were learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

import plotly.graph_objects as go

from muse.catalog import ARMS, can_track
from muse.records.schema import Series, StageRecord

from ..arms import score_text, task_label
from ..numbers import number, rounded
from ..texts import say, texts
from .panels import NAME, wrapped
from .style import BELOW, NEUTRAL, axis, make_figure

ROW, FOOT = 34, 130
SCALE = [[0, "rgba(0,114,178,0.04)"], [1, "rgba(0,114,178,0.6)"]]
"""From guessing to all right; the numbers in the cells say the same."""

CHOSEN = "✓"
SYMBOLS = ("circle", "square", "diamond", "cross", "x")


def counting_figures(record: StageRecord, language: str = "en") -> list[go.Figure]:
    """Return for each task its heat map, its tries, and its learned angles where an arm has any."""
    tasks = dict.fromkeys(one.model.split(" ")[1] for one in record.series if one.name == "counting_score")
    figures = []
    for task in tasks:
        for name in ("counting_score", "counting_skewed"):
            if _of_task(record, name, task):
                figures.append(_scores(record, name, task, language))
        figures.append(_tries(record, task, language))
        if turns := [one for one in _of_task(record, "counting_turns", task) if task.startswith("mod")]:
            figures.append(_turns(record, task, turns, language))
    return figures


def _of_task(record: StageRecord, name: str, task: str) -> list[Series]:
    return [one for one in record.series if one.name == name and one.model.split(" ")[1] == task]


def _scores(record: StageRecord, name: str, task: str, language: str) -> go.Figure:
    """Mean score of the seeds, a row for each arm with what theory says of it, a column for each length."""
    words, found = texts(language), _of_task(record, name, task)
    arms = [arm for arm in ARMS if any(one.model == f"{arm} {task}" for one in found)]
    lengths, rows, values, items = [f"{length:,.0f}" for length in found[0].x], [], [], []
    for arm in arms:
        curves = [one.y for one in found if one.model == f"{arm} {task}"]
        values.append([mean(column) for column in zip(*curves, strict=True)])
        solved = record.find("counting_solved", f"{arm} {task}")
        theory = words["counting.yes" if can_track(arm, task) else "counting.no"]
        count = {"solved": number(solved.value), "seeds": number(solved.n)} if solved else {"solved": "–", "seeds": "–"}
        rows.append(say(language, "counting.row", arm=words[f"arm.{arm}"], theory=theory, **count))
        items.append(f"{rows[-1]}{words['colon']} {', '.join(map(score_text, values[-1]))}")
    about = {"task": task_label(task, language), "lengths": ", ".join(lengths)}
    text = [list(map(score_text, row)) for row in values]
    return _heat(f"{name}s", (rows, lengths, values, text), words["counting.length"], items, about, language)


def _tries(record: StageRecord, task: str, language: str) -> go.Figure:
    """Score of each try at the training length, a row for each arm, a column for each learning rate."""
    words, found = texts(language), [one for one in record.metrics if one.name == "counting_try"]
    tried = {tuple(one.model.split(" ")[::2]): one for one in found if one.model.split(" ")[1] == task}
    arms = [arm for arm in ARMS if any(arm == one for one, _ in tried)]
    rates = sorted({rate for _, rate in tried}, key=float)
    rows, values, text, items = [words[f"arm.{arm}"] for arm in arms], [], [], []
    for arm, row in zip(arms, rows, strict=True):
        best = record.find("counting_learning_rate", f"{arm} {task}")
        values.append([tried[arm, rate].value for rate in rates])
        marks = [f" {CHOSEN}" if best and float(rate) == best.value else "" for rate in rates]
        text.append([f"{score_text(value)}{mark}" for value, mark in zip(values[-1], marks, strict=True)])
        items.append(f"{row}{words['colon']} {', '.join(text[-1])}")
    about = {"task": task_label(task, language), "lengths": ", ".join(rates), "mark": CHOSEN}
    return _heat("counting_tries", (rows, rates, values, text), words["metric.learning_rate"], items, about, language)


def _heat(
    name: str,
    table: tuple[Sequence[str], Sequence[str], Sequence[Sequence[float]], Sequence[Sequence[str]]],
    title: str,
    items: Sequence[str],
    about: dict[str, str],
    language: str,
) -> go.Figure:
    """A table of rows, columns, values in [0, 1] and their texts as a heat map that can be read without colours."""
    rows, columns, values, text = table
    trace = go.Heatmap(
        z=[rounded(row) for row in values], x=list(columns), y=list(range(len(rows))), zmin=0, zmax=1,
        colorscale=SCALE, text=text, texttemplate="%{text}", showscale=False, hovertemplate="%{x}<br>%{z:.3f}",
        name="", xgap=2, ygap=2,
    )  # fmt: skip
    ticks = {"tickmode": "array", "tickvals": list(range(len(rows))), "autorange": "reversed", "showgrid": False,
             "zeroline": False}  # fmt: skip
    return make_figure(
        name, language, [trace], items, height_px=FOOT + ROW * len(rows), fields=about,
        narrow={"yaxis": {"ticktext": [wrapped(row, NAME) for row in rows]}, "height": FOOT + 2 * ROW * len(rows)},
        xaxis=axis(title, type="category", showgrid=False), yaxis=axis("", ticktext=list(rows), **ticks),
    )  # fmt: skip


def _turns(record: StageRecord, task: str, turns: Sequence[Series], language: str) -> go.Figure:
    """What each token turns each plane by, as a share of the circle, over lines at whole shares 1 / m."""
    words, order, traces, items = texts(language), int(max(turns[0].x)) + 1, [], []
    for place, one in enumerate(turns):
        arm = one.model.split(" ")[0]
        aside = 0.5 * ((place + 0.5) / len(turns) - 0.5)
        marker = {"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 6, "opacity": 0.6}
        x = [token + aside for token in one.x]
        traces.append(go.Scatter(x=rounded(x), y=rounded(one.y), mode="markers", name=words[f"arm.{arm}"],
                                 marker=marker, hovertemplate="%{y:.4f}"))  # fmt: skip
        error, ends = (record.find(f"counting_{name}", one.model) for name in ("turn_error", "breaks_at"))
        if error and ends:
            told = {"error": number(error.value), "length": number(round(ends.value))}
            items.append(say(language, "counting_turns.item", arm=words[f"arm.{arm}"], **told))
    lines = [{"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "y0": j / order, "y1": j / order,
              "line": {"color": NEUTRAL, "dash": "dot", "width": 1}} for j in range(order + 1)]  # fmt: skip
    marks = [j / order for j in range(0, order + 1, math.ceil(order / 12))]
    names = [f"{round(mark * order)}/{order}" for mark in marks]
    return make_figure(
        "counting_turns", language, traces, items, fields={"task": task_label(task, language), "order": order},
        showlegend=True, legend=BELOW, shapes=lines, height_px=420,
        xaxis=axis(words["counting.token"], dtick=1, range=[-0.5, order - 0.5]),
        yaxis=axis(words["counting.turns"], range=[-0.04, 1.04], tickmode="array", tickvals=rounded(marks),
                   ticktext=names, showgrid=False),
    )  # fmt: skip
