"""Ratios of perplexity: each where its number says, beside a line at 1, on an axis that shows them all."""

from __future__ import annotations

import math

import pytest
from builders import metric, ratio, record

from muse.records.criteria import PERPLEXITY_RATIO, VRAM_RATIO
from muse.report import figures
from muse.report.texts import LANGUAGES, texts

NEAR = [
    ratio("stage1_memory", 0.875, (0.75, 1.125), (0.8, 0.9, 0.925)),
    ratio("real_twin", 1.0625),
    ratio("gpt2", None),
    ratio("real_twin", 2.0, baseline="stage1_memory"),
]


def drawn(metrics, baseline="phase2", language="en"):
    return figures.perplexity_ratios(record(metrics=metrics), language, baseline)


def test_values_intervals_and_seeds_stand_where_the_record_says():
    figure = drawn(NEAR)
    twin, memory, seeds = figure.data
    assert [(line.x0, line.x1) for line in figure.layout.shapes] == [(1, 1), (PERPLEXITY_RATIO, PERPLEXITY_RATIO)]
    assert (twin.name, twin.x[0], twin.error_x.array) == ("Real twin", 1.0625, None)
    assert (memory.name, memory.x[0]) == ("Stage 1 with memory", 0.875)
    assert (memory.error_x.array[0], memory.error_x.arrayminus[0]) == (0.25, 0.125)
    assert list(seeds.x) == [0.8, 0.9, 0.925]
    assert twin.y[0] < memory.y[0] < seeds.y[0] == seeds.y[2]
    assert (round(twin.y[0]), round(memory.y[0]), round(seeds.y[0])) == (0, 1, 1), "the rows of their names"
    assert list(figure.layout.yaxis.ticktext) == ["Real twin", "Stage 1 with memory"]


def test_the_words_name_every_model_with_its_interval():
    figure = drawn(NEAR)
    assert [note.text for note in figure.layout.annotations] == [
        "<b>1.062</b>", "<b>0.875</b><br>0.750 – 1.125", "Phase 2 = 1", "target: at most 1.03"
    ]  # fmt: skip
    assert "Real twin 1.062; Stage 1 with memory 0.875 (0.750 – 1.125)" in figure.layout.meta["alt"]
    assert figure.layout.title.text == "Perplexity against Phase 2"


@pytest.mark.parametrize(("far", "kind"), [(1.125, None), (1.13, "log")])
def test_the_axis_is_logarithmic_where_ratios_lie_far_apart(far, kind):
    axis = drawn([*NEAR[:1], ratio("gpt2", far)]).layout.xaxis
    assert axis.type == kind
    low, high = (10**end if kind else end for end in axis.range)
    assert 0.7 < low < 0.75
    assert far < high < 1.2
    assert ("log scale" in axis.title.text) == bool(kind)
    if kind:
        assert {0.7, 1, 1.2} <= set(axis.tickvals)


def test_a_lone_ratio_of_one_still_has_an_axis():
    low, high = drawn([ratio("gpt2", 1.0)]).layout.xaxis.range
    assert low < 1 < high


def test_a_ratio_of_zero_has_no_place_on_a_logarithmic_axis():
    axis = drawn([ratio("gpt2", 0.0), ratio("stage1", 3.0)]).layout.xaxis
    assert axis.type is None
    assert all(map(math.isfinite, axis.range))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_stage_shows_one_figure_for_each_baseline_of_its_own(language):
    found = figures.of_stage(record(metrics=[*NEAR, ratio("phase2", 0.5, baseline="gpt2")]), language)
    assert list(found[1].data[0].x) == [2.0]
    assert [len(figure.layout.shapes) for figure in found] == [2, 1], "the target is that of one baseline"
    for figure, name in zip(found, ("phase2", "stage1_memory"), strict=True):
        baseline = texts(language)[f"model.{name}"]
        about = figure.layout.meta
        for text in (figure.layout.title.text, figure.layout.xaxis.title.text, about["caption"], about["alt"]):
            assert baseline in text
            assert "{" not in text


def test_without_a_ratio_to_the_baseline_there_is_nothing_to_draw():
    with pytest.raises(figures.NothingToDraw, match="perplexity_ratio_to_stage1_memory"):
        drawn(NEAR[:3], "stage1_memory")
    with pytest.raises(figures.NothingToDraw, match="perplexity_ratio_to_phase2"):
        drawn([ratio("gpt2", None)])


def peak(model, value, row="peak_memory", **values):
    return metric(f"{row}_ratio_to_phase2", model, value, **values)


def of_quality(ratios, peaks, language="en", **about):
    return figures.quality_over_memory([record(metrics=ratios, **about), record("memory", metrics=peaks)], language)


SEEDS = ratio("stage1", 1.02, samples=(1.0, 1.04))
BOTH = [peak("stage1", 0.5), peak("stage1", 0.75, "peak_memory_recomputed")]


def test_each_seed_is_a_dot_in_both_rows_of_the_memory():
    joined, criterion, equal, baseline = of_quality([SEEDS], BOTH).data
    assert (list(criterion.x), list(criterion.y)) == ([0.5, 0.5], [1.0, 1.04])
    assert (list(equal.x), list(equal.y)) == ([0.75, 0.75], [1.0, 1.04])
    assert equal.marker.symbol == criterion.marker.symbol + "-open"
    assert (list(joined.x), list(joined.y)) == ([0.5, 0.75], [1.02, 1.02])
    assert (list(baseline.x), list(baseline.y)) == ([1], [1])
    assert [trace.showlegend for trace in (joined, criterion, equal)] == [False, True, False]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("far", [1.02, 3.0])
def test_the_box_ends_where_the_criteria_do(far, language):
    figure = of_quality([SEEDS, ratio("gpt2", far)], [*BOTH, peak("gpt2", 2.0)], language)
    (box,) = figure.layout.shapes
    assert (box.x0, box.x1, box.y1) == (0, VRAM_RATIO, PERPLEXITY_RATIO)
    low = figure.layout.yaxis.range[0]
    assert box.y0 == pytest.approx(10**low if figure.layout.yaxis.type == "log" else low)
    assert (figure.layout.yaxis.type == "log") == (far == 3.0)
    (words,) = figure.layout.annotations
    assert str(VRAM_RATIO) in words.text
    assert str(PERPLEXITY_RATIO) in words.text
    assert figure.layout.xaxis.range[1] > 2


@pytest.mark.parametrize(
    ("quality", "memory", "inside"), [(1.03, 0.52, True), (1.031, 0.52, False), (1.03, 0.521, False)]
)
def test_the_caption_says_which_models_lie_inside_the_box(quality, memory, inside):
    caption = of_quality([ratio("stage1", quality)], [peak("stage1", memory)]).layout.meta["caption"]
    assert ("inside it by the criterion's GPU memory: Stage 1." in caption) == inside
    assert ("no model's filled dots lie inside it" in caption) != inside


def test_estimates_and_smaller_trainings_are_said():
    plain = of_quality([SEEDS], BOTH).layout.meta["caption"]
    smaller = {"reductions": [{"setting": "d_model", "value": 64, "published": 512}]}
    said = of_quality([SEEDS], [peak("stage1", 0.5, basis="estimate")], **smaller).layout.meta["caption"]
    for words in ("is an estimate", "smaller training"):
        assert words in said
        assert words not in plain


def test_quality_needs_a_ratio_of_each_kind_for_one_model():
    for found in ([[], BOTH], [[SEEDS], []], [[SEEDS], [peak("gpt2", 0.5)]]):
        with pytest.raises(figures.NothingToDraw):
            of_quality(*found)
