"""Which figures a stage shows, in which order."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import plotly.graph_objects as go

from muse.records.schema import StageRecord

from ..texts import say
from .bars import memory_bars, throughput_bars
from .bench import bench_figures
from .counting import counting_figures
from .curves import loss_by_position, loss_curves, scale_stress
from .dynamics import half_lives, plane_use, rotation_periods
from .gradients import gradient_norms
from .perplexity import perplexity_bars
from .ratios import BASELINES, perplexity_ratios
from .style import NothingToDraw

FIGURES = (
    loss_curves,
    *(partial(perplexity_ratios, baseline=baseline) for baseline in BASELINES),
    perplexity_bars,
    loss_by_position,
    memory_bars,
    throughput_bars,
    gradient_norms,
    scale_stress,
    plane_use,
    half_lives,
    rotation_periods,
)


def of_stage(record: StageRecord, language: str = "en") -> list[go.Figure]:
    """Return every figure that the record has data for; captions name the text that was read."""
    figures = []
    for draw in FIGURES:
        with suppress(NothingToDraw):
            figures.append(draw(record, language))
    figures += bench_figures(record, language) + counting_figures(record, language)
    return [with_text(figure, record.text, language) for figure in figures]


def with_text(figure: go.Figure, text: str, language: str) -> go.Figure:
    """Let a figure's caption name the text, if there is one, that its numbers are of; return the figure."""
    if text:
        figure.layout.meta["caption"] += say(language, "figure.text", text=text)
    return figure
