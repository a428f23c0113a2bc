"""Ratios of perplexity: each where its number says, beside a line at 1, on an axis that shows them all."""

from __future__ import annotations

import math

import pytest
from builders import ratio, record

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
    line, twin, twin_seeds, memory, seeds = drawn(NEAR).data
    assert {x for x in line.x if x is not None} == {1}
    assert line.name == "Phase 2 (1)"
    assert (twin.name, twin.x[0], twin.error_x.array, len(twin_seeds.x)) == ("Real twin", 1.0625, None, 0)
    assert (memory.name, memory.x[0]) == ("Stage 1 with memory", 0.875)
    assert (memory.error_x.array[0], memory.error_x.arrayminus[0]) == (0.25, 0.125)
    assert list(seeds.x) == [0.8, 0.9, 0.925]
    assert twin.y[0] < memory.y[0] < seeds.y[0] == seeds.y[2]
    first, second = zip(line.y[::3], line.y[1::3], strict=True)
    assert first[0] < twin.y[0] < first[1] < second[0] < memory.y[0] < seeds.y[0] < second[1]


def test_the_words_name_every_model_with_its_interval():
    figure = drawn(NEAR)
    assert [note.text for note in figure.layout.annotations] == [
        "Real twin: <b>1.062</b>", "Stage 1 with memory: <b>0.875 (0.750 – 1.125)</b>"
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
    assert [figure.data[0].name.removesuffix(" (1)") for figure in found] == [
        texts(language)[f"model.{name}"] for name in ("phase2", "stage1_memory")
    ]
    assert list(found[1].data[1].x) == [2.0]
    for figure in found:
        baseline = figure.data[0].name.removesuffix(" (1)")
        for text in (figure.layout.title.text, figure.layout.xaxis.title.text, *figure.layout.meta.values()):
            assert baseline in text
            assert "{" not in text


def test_without_a_ratio_to_the_baseline_there_is_nothing_to_draw():
    with pytest.raises(figures.NothingToDraw, match="perplexity_ratio_to_stage1_memory"):
        drawn(NEAR[:3], "stage1_memory")
    with pytest.raises(figures.NothingToDraw, match="perplexity_ratio_to_phase2"):
        drawn([ratio("gpt2", None)])
