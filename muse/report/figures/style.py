"""The one visual language of all figures: model styles, axes, and how a figure is displayed.

The page strips layout templates and draws with its own theme, so figures carry data and axes and little else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import plotly.graph_objects as go
from markupsafe import Markup

from muse.catalog import BASELINE, COMPACT, COMPACT_BASELINE, COMPACT_TWIN, REFERENCE, TWIN, WITH_MEMORY, YARDSTICK
from muse.records.schema import Metric, StageRecord

from ..arms import arm_label
from ..html import render
from ..numbers import RATIO, number, rounded
from ..texts import join, say, texts

PLOTLY_MIME = "application/vnd.plotly.v1+json"
LAB_ONLY = "muse-lab-only"
"""Marks, in its metadata, an output that pages have in another way."""

PLOTLY_CONFIG = {"displaylogo": False, "showSendToCloud": False}
"""How plotly behaves in JupyterLab; pages have the same in `figures.js`. Its own default offers to upload a figure."""

BELOW = {"orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"}
"""A legend at the lower edge of a figure, below the title of its axis."""

PAPER, LINES = ("paper_bgcolor", "plot_bgcolor"), ("gridcolor", "zerolinecolor", "linecolor")
"""What pages give their figures themselves, for light and for dark: of a layout, and of its axes."""

NEUTRAL, GRID = "#7b8290", "rgba(128,136,150,0.25)"
CLEAR = "rgba(0,0,0,0)"


class NothingToDraw(ValueError):  # noqa: N818  it tells the state of the record, nothing went wrong
    """The record holds no data of the kind that the figure shows."""


def need(found: Sequence[object], what: str, record: StageRecord) -> None:
    """Raise NothingToDraw, saying `what` is missing, unless something was found."""
    if not found:
        raise NothingToDraw(f"stage {record.stage}: the record has no {what}")


@dataclass(frozen=True)
class Style:
    """How one model looks in every figure: never by colour alone."""

    label: str
    color: str
    symbol: str
    dash: str


MODELS = {
    WITH_MEMORY: ("#b8659b", "square", "dash"),
    REFERENCE: ("#0072b2", "circle", "solid"),
    BASELINE: ("#d55e00", "diamond", "dashdot"),
    YARDSTICK: ("#009473", "triangle-up", "dot"),
    TWIN: ("#8a7a1f", "cross", "longdash"),
    COMPACT: ("#d1495b", "diamond-tall", "16px,3px"),
    COMPACT_TWIN: ("#7a7f1f", "x", "3px,3px"),
    COMPACT_BASELINE: ("#b5651d", "diamond-wide", "10px,3px,3px,3px"),
    "stage1_memory_no_rotation": ("#8f6bd6", "triangle-down", "longdashdot"),
    "stage1_memory_real_scores": ("#c4566a", "star", "2px,6px"),
    "stage1_memory_no_decay": ("#2f8fa3", "pentagon", "8px,2px"),
    "stage1_memory_untied": ("#5f7f9f", "hexagon", "12px,4px,4px,4px"),
    "stage1_memory_modrelu": ("#a0522d", "bowtie", "6px,6px"),
    "stage1_memory_positions": ("#3f8f5f", "hourglass", "2px,2px,8px,2px"),
    "stage1_compact_half_rank": ("#5b6fc4", "triangle-left", "14px,2px,2px,2px"),
    "stage1_compact_double_rank": ("#2f7f8f", "triangle-right", "4px,6px"),
    "stage1_compact_real_table": ("#9f6b2f", "star-square", "10px,6px"),
    "stage1_compact_adjoint_head": ("#7d5fa0", "star-diamond", "2px,4px,6px,4px"),
    "stage1_compact_no_rotation": ("#a85f8f", "diamond-cross", "8px,4px,2px,4px"),
    "stage1_compact_real_scores": ("#5f8f3f", "circle-cross", "6px,2px,6px,8px"),
    "stage1_compact_angles": ("#3f6fa8", "square-cross", "4px,2px,12px,2px"),
}
"""Okabe-Ito colours, some darkened, so that each has a contrast of 3:1 on the light and on the dark page."""


def style(model: str, language: str = "en") -> Style:
    """Return the style of a model; words after the known name, such as `seed 0`, stay in the label."""
    for name, look in MODELS.items():
        rest = model[len(name) :]
        if model.startswith(name) and not rest[:1].isalnum() and rest[:1] != "_":
            label, rest = texts(language)[f"model.{name}"], rest.strip(" ,/")
            separator = " " if rest.startswith("(") else texts(language)["and"]
            return Style(f"{label}{separator}{rest}" if rest else label, *look)
    return Style(arm_label(model, language) or model, NEUTRAL, "x", "solid")


def metric_label(name: str, language: str = "en") -> str:
    """Return the name of a metric in words: the language file's, else its own; a ratio to a model names both."""
    measured, _, model = name.partition(RATIO)
    if model and f"metric.{name}" not in texts(language):
        of, over = metric_label(measured, language), style(model, language).label
        return say(language, "metric.ratio", metric=of, model=over)
    return texts(language).get(f"metric.{name}", name.replace("_", " "))


def axis(title: str = "", **settings: object) -> dict[str, object]:
    """Return an axis that leaves room for its labels."""
    lines = dict.fromkeys(LINES, GRID)
    return {"title": {"text": title}, "automargin": True, **lines, **settings}


def log_axis(title: str, values: Iterable[float], digits: Sequence[float] = (1, 2, 5)) -> dict[str, object]:
    """Return a logarithmic axis, marked at the digits in each decade or, where values range far, at powers of ten."""
    values = [value for value in values if 0 < value < math.inf]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    decades = range(low - 1, high + 2)
    step = max(1, round((high - low) / 8))
    marks = [10.0**k for k in decades if k % step == 0]
    if high - low <= 3:
        marks = [digit * 10.0**k for k in decades for digit in digits]
    marks = rounded(marks)
    return axis(title, type="log", tickmode="array", tickvals=marks, ticktext=list(map(number, marks)))


def whiskers(metric: Metric) -> dict[str, object] | None:
    """Return the error bar of a metric's interval; None without one."""
    return None if metric.interval is None else error_bars([(metric.value, *metric.interval)])


def interval_words(metrics: Iterable[Metric], language: str) -> str:
    """Return the sentence on what the intervals of these metrics range over; nothing where there is none."""
    found = [metric for metric in metrics if metric.interval]
    if not found:
        return ""
    over_seeds = any(len(metric.samples) > 1 for metric in found)
    return texts(language)["figure.interval_seeds" if over_seeds else "figure.interval"]


def error_bars(points: Iterable[tuple[float, float, float]], color: str = NEUTRAL, **look: object) -> dict[str, object]:
    """Return the error bars of points, each (value, low, high)."""
    up, down = zip(*((max(0.0, high - value), max(0.0, value - low)) for value, low, high in points), strict=True)
    return {"type": "data", "array": rounded(up), "arrayminus": rounded(down), "color": color, **look}


def curve(
    look: Style, x: Iterable[float], y: Iterable[float], line: dict[str, object], mode: str = "lines", **more: object
) -> go.Scatter:
    """Return a curve in a model's colour and symbol, named after the model unless it is given a name."""
    marker = {"symbol": look.symbol, "size": 7} | more.pop("marker", {})
    more = {"name": look.label, "line": {"color": look.color, **line}, "marker": marker, **more}
    return go.Scatter(x=rounded(x), y=rounded(y), mode=mode, **more)


def make_figure(
    name: str,
    language: str,
    traces: Sequence[object],
    items: Iterable[str] = (),
    height_px: int = 380,
    fields: Mapping[str, object] = MappingProxyType({}),
    narrow: Mapping[str, object] = MappingProxyType({}),
    **layout: object,
) -> go.Figure:
    """Return a figure with the title, caption and text alternative that the language files have for `name`.

    `items` tell in words what is drawn; they and `fields` fill in the texts, of which `fields` may hold the caption.
    `narrow` holds what of the layout differs on a phone, axis by axis. Name, caption, alternative and `narrow` are kept
    in `layout.meta`, where `mimebundle` finds them.
    """
    fields = {"list": join(language, items), **fields}
    caption = fields.get("caption") or say(language, f"{name}.caption", **fields)
    alt = say(language, f"{name}.alt", **fields | {"caption": caption})
    look = {
        "template": go.layout.Template(),
        "meta": {"name": name, "caption": caption, "alt": alt, **({"narrow": dict(narrow)} if narrow else {})},
        "title": {"text": say(language, f"{name}.title", **fields), "x": 0, "font": {"size": 15}},
        "height": height_px,
        "font": {"color": NEUTRAL, "size": 13},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "margin": {"l": 8, "r": 16, "t": 56, "b": 8},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.01, "x": 0},
        "hoverlabel": {"namelength": -1},
    }
    return go.Figure(traces, go.Layout(**look | layout))


def figure_html(figure: dict[str, object], caption: str, alt: str) -> Markup:
    """Return the page's form of a plotly figure: its JSON, its caption, and its text alternative until it is drawn."""
    apart = ("template", "title", "meta", *PAPER)
    layout = {k: _bare(v) for k, v in figure.get("layout", {}).items() if k not in apart}
    title, about = figure.get("layout", {}).get("title") or {}, figure.get("layout", {}).get("meta")
    title = title.get("text", "") if isinstance(title, dict) else str(title)
    about = about if isinstance(about, dict) else {}
    drawn = {"data": _shared(figure.get("data", [])), "layout": layout}
    if narrow := about.get("narrow"):
        drawn["narrow"] = narrow
    data = json.dumps(drawn, ensure_ascii=False, separators=(",", ":"))
    height = layout.get("height") or 380
    return render(
        "figure", data=Markup(data.replace("<", "\\u003c")),  # nothing in the data may end the script element
        alt=alt or caption or title, title=title, caption=caption, name=about.get("name", "figure"), height=height,
        narrow_height=(narrow or {}).get("height") or height,
    )  # fmt: skip


def _bare(part: object) -> object:
    """A part of a layout without the colours of lines, which a page gives its figures itself."""
    return {k: v for k, v in part.items() if k not in LINES} if isinstance(part, dict) else part


def _shared(traces: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """The traces with the number of an earlier one for their `x` where it has the same; `figures.js` looks it up."""
    first: dict[str, int] = {}
    found = []
    for place, trace in enumerate(traces):
        at = first.setdefault(json.dumps(trace.get("x")), place)
        found.append({**trace, "x": at} if at < place and isinstance(trace.get("x"), list) else trace)
    return found


def mimebundle(figure: go.Figure, caption: str = "", alt: str = "") -> dict[str, object]:
    """Return the figure for JupyterLab (plotly JSON), for the page (HTML) and for a terminal (text)."""
    plain = json.loads(figure.to_json())
    about = plain["layout"].get("meta")
    about = about if isinstance(about, dict) else {}
    caption, alt = caption or about.get("caption", ""), alt or about.get("alt", "")
    return {
        PLOTLY_MIME: {"data": plain["data"], "layout": plain["layout"], "config": PLOTLY_CONFIG},
        "text/html": figure_html(plain, caption, alt),
        "text/plain": alt or caption,
    }


def show(figure: go.Figure, caption: str = "", alt: str = "") -> None:
    """Display a figure in JupyterLab and on the page; caption and text alternative default to the figure's own.

    JupyterLab draws it with the extension that the plotly package brings along; a lab without plotly in its own
    environment shows caption and text alternative.
    """
    show_bundle(mimebundle(figure, caption, alt))


def show_bundle(bundle: Mapping[str, object]) -> None:
    """Display a MIME bundle; in JupyterLab a figure has its title and caption below it, as it has on pages.

    Both are left out of the drawing there, where a title and a legend of two lines would lie upon each other.
    """
    from IPython.display import display

    drawn = bundle.get(PLOTLY_MIME)
    if drawn is None:
        display(bundle, raw=True)
        return
    layout = {key: value for key, value in drawn["layout"].items() if key != "title"}
    display({**bundle, PLOTLY_MIME: {**drawn, "layout": layout}}, raw=True)
    title, caption = drawn["layout"].get("title") or {}, (drawn["layout"].get("meta") or {}).get("caption", "")
    below = render("lab_caption", title=title.get("text", ""), caption=caption)
    display({"text/html": below, "text/plain": caption}, raw=True, metadata={LAB_ONLY: True})
