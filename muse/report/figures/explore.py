"""Pictures of one text in one model: phases, one read of the memory, what is written and forgotten, switches.

S or T tokens, L layers, H heads, D channels; `words` are the tokens as they are shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.colors import get_colorscale

from ..numbers import number, rounded
from ..texts import say, texts
from .style import BELOW, NEUTRAL, axis, make_figure

BLUE, ORANGE = "#0072b2", "#d55e00"
PHASES = get_colorscale("phase")
LOUD = 0.7  # quantile of the magnitudes from which on a colour is full
DIVERGING = [[0, BLUE], [0.5, "rgba(128,136,150,0.12)"], [1, ORANGE]]
RISING = [[0, "rgba(213,94,0,0.04)"], [1, "rgba(213,94,0,1)"]]
PIXELS = 22  # of a row of a head or a switch
MOST_WORDS, WORDS_ON_A_PHONE = 48, 16  # below an axis, where they stand upright beside each other
NAMED = 3  # places that a text alternative names


def tokens_axis(words: Sequence[str], **more: object) -> dict[str, object]:
    """Return an axis with a word at each token, so many that they do not lie on each other."""
    look = {"tickmode": "array", "tickangle": -90, **ticks(words, MOST_WORDS)}
    return axis("", range=[-0.5, len(words) - 0.5], showgrid=False, zeroline=False, **look | more)


def ticks(words: Sequence[str], most: int) -> dict[str, object]:
    """Return the marks of an axis with a word at each token, or at every so many that there are at most `most`."""
    marks = [*range(0, len(words), max(1, math.ceil(len(words) / most)))]
    return {"tickvals": marks, "ticktext": unmarked([words[at] for at in marks])}


def unmarked(words: Sequence[str]) -> list[str]:
    """Return words for plotly, which takes <..> in a text for a mark."""
    return [escape(word, quote=False) for word in words]


def named(words: Sequence[str], at: int) -> str:
    """Return a token by its word and place."""
    return f"“{words[at]}” ({at})"


def phases(states: np.ndarray, words: Sequence[str], label: str, language: str = "en") -> go.Figure:
    """Phase (colour) and size (grey where small) of every channel of states c(L+1 T D), a panel for each layer."""
    said, shown, traces, notes, layout, items = texts(language), unmarked(words), [], [], {}, []
    count, height = len(states), 1 / len(states)
    size, angle = np.abs(states), np.degrees(np.angle(states))
    for layer in range(count):
        on = {"xaxis": f"x{layer + 1}" if layer else "x", "yaxis": f"y{layer + 1}" if layer else "y"}
        name = say(language, "figure.layer_number", number=layer - 1) if layer else said["explore.embedding"]
        covered = 0.9 * (1 - np.minimum(1, size[layer] / np.quantile(size[layer], LOUD)))
        text = [[f"{shown[t]}<br>|z| = {number(float(s))}" for t, s in enumerate(row)] for row in size[layer].T]
        traces.append(
            go.Heatmap(
                z=[rounded(row) for row in angle[layer].T], zmin=-180, zmax=180, colorscale=PHASES, text=text, **on,
                hovertemplate="%{text}<br>%{z:.0f}°<extra>" + name + " · %{y}</extra>", showscale=layer == 0,
                colorbar={"title": {"text": said["explore.phase_axis"]}, "tickvals": [-180, -90, 0, 90, 180],
                          "thickness": 12, "ticksuffix": "°"},
            )
        )  # fmt: skip
        cover = [[0, "rgba(128,136,150,0)"], [1, "rgba(128,136,150,1)"]]
        traces.append(
            go.Heatmap(z=[rounded(row) for row in covered.T], zmin=0, zmax=1, colorscale=cover, showscale=False,
                       hoverinfo="skip", **on)
        )  # fmt: skip
        top = 1 - layer * height
        last = layer == count - 1
        layout[f"xaxis{layer + 1}" if layer else "xaxis"] = tokens_axis(
            words, anchor=on["yaxis"], showticklabels=last, **({} if last else {"matches": f"x{count}"})
        )
        title = said["explore.channel"] if layer == count // 2 else ""
        domain = [max(0, top - height + 0.02), top - 0.05]
        layout[f"yaxis{layer + 1}" if layer else "yaxis"] = axis(
            title, domain=domain, anchor=on["xaxis"], showgrid=False
        )
        notes.append({"text": f"<b>{name}</b>", "showarrow": False, "xref": f"{on['xaxis']} domain", "x": 0,
                      "yref": f"{on['yaxis']} domain", "y": 1, "xanchor": "left", "yanchor": "bottom",
                      "font": {"size": 12}})  # fmt: skip
        spread = 1 - np.abs(states[layer].sum(0)) / np.maximum(size[layer].sum(0), 1e-300)
        values = {"size": number(float(size[layer].mean())), "spread": number(float(spread.mean()))}
        items.append(say(language, "explore_phases.item", name=name, **values))
    return make_figure(
        "explore_phases", language, traces, items, height_px=120 + 190 * count, fields={"model": label},
        annotations=notes, **layout,
    )  # fmt: skip


def contributions(
    rotated: np.ndarray, plain: np.ndarray, words: Sequence[str], layer: int, head: int, language: str = "en"
) -> go.Figure:
    """Signed share of one read that each of S tokens gives, with rotation as bars and without as marks."""
    said = texts(language)
    x, place = [*range(len(rotated))], {"layer": layer, "head": head, "word": named(words, len(rotated) - 1)}
    shown = unmarked(words[: len(x)])
    hover = "%{customdata}: %{y:.1%}<extra></extra>"
    colours = [BLUE if share >= 0 else ORANGE for share in rotated]
    traces = [
        go.Bar(x=x, y=rounded(rotated), name=said["explore.rotated"], customdata=shown, hovertemplate=hover,
               marker={"color": colours}),
        go.Scatter(x=x, y=rounded(plain), name=said["explore.plain"], customdata=shown, hovertemplate=hover,
                   mode="markers",
                   marker={"symbol": "diamond-open", "size": 9, "color": NEUTRAL, "line": {"width": 2}}),
    ]  # fmt: skip
    items = [
        say(language, "explore_read.item", name=name, list=strongest(shares, words, language))
        for name, shares in ((said["explore.rotated"], rotated), (said["explore.plain"], plain))
    ]
    return make_figure(
        "explore_read", language, traces, items, height_px=420, fields=place, showlegend=True, legend=BELOW,
        xaxis=tokens_axis(words[: len(x)]), yaxis=axis(said["explore.share_of_read"], tickformat=".0%"),
        narrow={"xaxis": ticks(words[: len(x)], WORDS_ON_A_PHONE)},
    )  # fmt: skip


def strongest(shares: np.ndarray, words: Sequence[str], language: str) -> str:
    """Return the tokens of the largest shares, whatever their sign, in words."""
    order = np.argsort(-np.abs(shares), kind="stable")[:NAMED]
    told = (f"{named(words, at)} {shares[at]:+.0%}" for at in order.tolist())
    return texts(language)["and"].join(text.replace("-", "−") for text in told)


def traffic(
    new: np.ndarray, forgotten: np.ndarray, words: Sequence[str], label: str, language: str = "en"
) -> go.Figure:
    """What each token writes (a share of what is then held) and takes away, by layer and head: (L H T) twice."""
    said, traces, notes, layout, items = texts(language), [], [], {}, []
    layers, heads, _ = new.shape
    rows = [say(language, "explore.head", layer=layer, head=head) for layer in range(layers) for head in range(heads)]
    for place, (key, shares) in enumerate((("written", new), ("forgotten", forgotten))):
        on = {"xaxis": "x2" if place else "x", "yaxis": "y2" if place else "y"}
        flat = shares.reshape(layers * heads, -1)
        name = said[f"explore.{key}"]
        traces.append(
            go.Heatmap(
                z=[rounded(row) for row in flat], zmin=0, zmax=1, colorscale=RISING, y=rows, showscale=not place,
                text=[unmarked(words)] * len(rows), **on,
                hovertemplate="%{text}<br>%{y}: %{z:.1%}<extra>" + name + "</extra>",
                colorbar={"tickformat": ".0%", "thickness": 12},
            )
        )  # fmt: skip
        domain = [[0.54, 0.95], [0, 0.41]][place]
        layout["yaxis2" if place else "yaxis"] = axis("", domain=domain, anchor=on["xaxis"], autorange="reversed",
                                                      showgrid=False, tickmode="array", tickvals=rows)  # fmt: skip
        layout["xaxis2" if place else "xaxis"] = tokens_axis(words, anchor=on["yaxis"], showticklabels=bool(place),
                                                             **({} if place else {"matches": "x2"}))  # fmt: skip
        notes.append({"text": f"<b>{name}</b>", "showarrow": False, "xref": f"{on['xaxis']} domain", "x": 0,
                      "yref": f"{on['yaxis']} domain", "y": 1, "xanchor": "left", "yanchor": "bottom",
                      "font": {"size": 12}})  # fmt: skip
        items.append(say(language, "explore_traffic.item", name=name, list=most(flat.mean(0), words, language)))
    return make_figure(
        "explore_traffic", language, traces, items, height_px=170 + 2 * PIXELS * len(rows), fields={"model": label},
        annotations=notes, **layout,
    )  # fmt: skip


def most(shares: np.ndarray, words: Sequence[str], language: str) -> str:
    """Return the tokens of the largest mean shares in words; the first token, before which nothing is, is left out."""
    order = 1 + np.argsort(-shares[1:], kind="stable")[:NAMED]
    return texts(language)["and"].join(f"{named(words, at)} {shares[at]:.0%}" for at in order.tolist())


def switch_losses(
    losses: Mapping[str, np.ndarray], words: Sequence[str], label: str, language: str = "en"
) -> go.Figure:
    """Change of each token's loss under each switch, (T-1,) by name; the first one is what the others differ from."""
    said, (_, *names) = texts(language), losses
    before = next(iter(losses.values()))
    changes = np.array([losses[name] - before for name in names])
    rows = [said[f"explore.switch.{name}"] for name in names]
    limit = max(1e-9, min(3.0, float(np.abs(changes).max())))
    trace = go.Heatmap(
        z=[rounded(row) for row in changes], y=rows, zmin=-limit, zmax=limit, colorscale=DIVERGING,
        text=[unmarked(words)] * len(rows), hovertemplate="%{text}<br>%{y}: %{z:+.3f} nat<extra></extra>",
        colorbar={"title": {"text": "nat"}, "thickness": 12, "tickformat": "+.2~f"},
    )  # fmt: skip
    means = (f"{mean:+.3f}".replace("-", "−") for mean in changes.mean(1).tolist())
    items = [f"{row}{said['colon']} {mean}" for row, mean in zip(rows, means, strict=True)]
    return make_figure(
        "explore_switches", language, [trace], items, height_px=180 + PIXELS * len(rows), fields={"model": label},
        xaxis=tokens_axis(words), yaxis=axis("", autorange="reversed", showgrid=False),
    )  # fmt: skip



def read_in_words(
    rotated: np.ndarray, plain: np.ndarray, words: Sequence[str], layer: int, head: int, language: str = "en"
) -> list[str]:
    """Return from which tokens a read comes, with and without rotation, and what points against it."""
    first, other = (strongest(shares, words, language) for shares in (rotated, plain))
    place = {"layer": layer, "head": head, "word": named(words, len(rotated) - 1)}
    against = rotated[rotated < 0]
    return [
        say(language, "explore.answer.read", rotated=first, plain=other, **place),
        say(language, "explore.answer.negative", count=len(against), total=len(rotated), share=f"{-against.sum():.0%}"),
    ]


def traffic_in_words(new: np.ndarray, forgotten: np.ndarray, words: Sequence[str], language: str = "en") -> str:
    """Return where most is written and where most is forgotten, mean over layers and heads of (L H T)."""
    written, lost = (most(shares.mean((0, 1)), words, language) for shares in (new, forgotten))
    return say(language, "explore.answer.traffic", written=written, forgotten=lost)
